"""Read the key of ``Authorization: Bearer``."""

import re
from typing import Final

from aiohttp import web

_BEARER: Final = re.compile(r"bearer +(\S+) *", re.IGNORECASE)


def bearer_key(request: web.Request) -> str | None:
    """Return the key, valid or not; None if there is no such header, several, or one of another form."""
    values = request.headers.getall("authorization", ())
    match = _BEARER.fullmatch(values[0]) if len(values) == 1 else None
    return match[1] if match else None
