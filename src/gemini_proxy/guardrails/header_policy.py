"""Decode, compile and add the policy that a client sends in the header ``Invariant-Guardrails``."""

import asyncio
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Literal

from gemini_proxy.errors import BadRequest, Unavailable
from gemini_proxy.guardrails.rules import (
    HEADER_NAME,
    MAX_HEADER_PROGRAM,
    Guardrail,
    GuardrailSet,
    guardrail,
    is_brief,
)
from gemini_proxy.http.fair_lock import FairLock
from gemini_proxy.policy import PolicyError

COMPILE_SECONDS = 5.0
"""Seconds that a request waits at most for its policy to be compiled."""
COMPILE_ALLOWANCE = 10.0
"""Seconds of compiling that one client may use at once, and in about a minute and a half over time."""
MAX_HEADER_POLICY = 16_384
"""Characters of a policy in a request header: far more than real ones, and twice what one header line may carry."""

_HEADER_COMPILER = ThreadPoolExecutor(1, "header-policy-compiler")
_COMPILING = FairLock(allowance=COMPILE_ALLOWANCE)


async def with_header(
    files: GuardrailSet, header: str | None, mode: Literal["add", "replace", "off"], client: str = ""
) -> GuardrailSet:
    """Return the guardrails for a request whose ``header`` adds to those of the files, replaces them, or is ignored.

    Raises BadRequest if the header cannot be read or its policy does not load, and Unavailable if ``client`` waits too
    long for its policy to be compiled. A client replaces guardrails only if the operator allows it; those that log stay
    in any case.
    """
    if header is None or mode == "off":
        return files
    if len(header) > MAX_HEADER_POLICY:
        raise BadRequest(f"{HEADER_NAME}: the policy is over {MAX_HEADER_POLICY} characters")
    try:
        added = (await _header_guardrail(_ESCAPE.sub(_unescape, header), client),)
    except PolicyError as error:
        raise BadRequest(f"{HEADER_NAME}: {error}") from None
    return replace(files, blocking=added if mode == "replace" else files.blocking + added)


async def _header_guardrail(text: str, client: str) -> Guardrail:
    """Compile the header's policy. Raises PolicyError and Unavailable."""
    if is_brief(HEADER_NAME, text, MAX_HEADER_PROGRAM):
        return _foreign(text)
    try:
        async with asyncio.timeout(COMPILE_SECONDS), _COMPILING.hold(client):
            return await asyncio.get_running_loop().run_in_executor(_HEADER_COMPILER, _foreign, text)
    except TimeoutError:
        raise Unavailable(f"{HEADER_NAME}: the policy could not be compiled in time") from None


def _foreign(text: str) -> Guardrail:
    return guardrail(HEADER_NAME, text, "block", foreign=True)


_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|.|$)", re.DOTALL)
_SIMPLE = {"\\": "\\", "n": "\n", "r": "\r", "t": "\t", "'": "'", '"': '"'}


def _unescape(escape: re.Match[str]) -> str:
    """Decode one escape of Python's ``unicode_escape`` encoding, in which clients send their policy."""
    code = escape[1]
    if code in _SIMPLE:
        return _SIMPLE[code]
    if len(code) < 3 or int(code[1:], 16) > 0x10FFFF:
        raise BadRequest(f"{HEADER_NAME}: the value is not unicode-escaped text; a backslash itself is written twice")
    return chr(int(code[1:], 16))
