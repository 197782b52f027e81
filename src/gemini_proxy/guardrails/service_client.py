"""What the clients of Invariant's services, Guardrails and Explorer, have in common."""

import io
from typing import Final

import aiohttp

_LARGE_BODY: Final = 1_048_576
"""Bytes of a request above which aiohttp warns that writing them at once holds up the loop."""
_KEEPALIVE: Final = 15.0
"""aiohttp's own, in seconds."""


def service_session(*, keepalive: float = _KEEPALIVE) -> aiohttp.ClientSession:
    """Connections to one service, idle for ``keepalive`` seconds at most. A call's time is the caller's to limit."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=keepalive),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None),
        # An answer's size is counted as it comes over the wire.
        auto_decompress=False,
        trust_env=False,
    )


def service_headers(key: str) -> dict[str, str]:
    """Those of a call with JSON, by who has ``key``."""
    return {
        "authorization": f"Bearer {key}",
        "accept": "application/json",
        "accept-encoding": "identity",
        "content-type": "application/json",
    }


def in_pieces(document: bytes) -> bytes | io.BytesIO:
    """A request's body to be sent: a large one from a file object, so that neighbours get their turn between pieces."""
    return io.BytesIO(document) if len(document) > _LARGE_BODY else document
