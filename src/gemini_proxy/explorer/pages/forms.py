"""Reads what a form of ours sends, in bounded time and memory."""

from collections.abc import Mapping
from typing import Final
from urllib.parse import parse_qsl

from aiohttp import web

from gemini_proxy.errors import BadRequest, UnsupportedMediaType
from gemini_proxy.explorer.app_keys import SERVER
from gemini_proxy.http.request_body import read_bytes

Form = Mapping[str, str]

MAX_FORM: Final = 512_000
"""Bytes of a form: a policy of the longest kind, each of its characters escaped, and a little more."""
_FIELDS: Final = 20


async def read_form(request: web.Request) -> Form:
    """The fields of an urlencoded form, line ends as ``\\n``.

    Raises UnsupportedMediaType, PayloadTooLarge, and BadRequest for what does not arrive in time, is not UTF-8, or says
    something twice.
    """
    if request.content_type != "application/x-www-form-urlencoded":
        raise UnsupportedMediaType("A form is sent as application/x-www-form-urlencoded.")
    return _fields(await read_bytes(request, MAX_FORM, request.app[SERVER].request_timeout))


def _fields(body: bytes) -> Form:
    try:
        pairs = parse_qsl(body.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=_FIELDS)
    except ValueError:
        raise BadRequest("The form cannot be read.") from None
    fields = {name: value.replace("\r\n", "\n").replace("\r", "\n") for name, value in pairs}
    if len(fields) != len(pairs):
        raise BadRequest("The form says something twice.")
    return fields
