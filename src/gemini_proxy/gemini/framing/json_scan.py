"""Find the end of a JSON object in bytes that arrive in pieces."""

import re

# Everything up to the next brace outside strings. Possessive throughout: no backtracking, and constant memory.
_TO_BRACE = re.compile(rb'(?:[^"{}]++|"[^"\\]*+(?:\\.[^"\\]*+)*+")*+', re.DOTALL)

_QUOTE, _BACKSLASH, _OPEN = b'"\\{'


class ObjectScanner:
    """Find the end of one JSON object, looking at each byte a fixed number of times for any chunking.

    Only braces outside strings are counted; whether the bytes between are JSON is for the parser to say.
    """

    __slots__ = ("_at", "_depth", "_in_string")

    def __init__(self) -> None:
        self._at = 0
        self._depth = 0
        self._in_string = False

    def find_end(self, source: bytes | bytearray, start: int) -> int:
        """Return the index after the end of the object that begins at ``start``, or -1 if more bytes are needed.

        Pass the same bytes with more appended to the next call; ``start`` may have moved with them.
        """
        at = start + self._at
        while True:
            if self._in_string:
                at = _string_end(source, at)
                if at == -1:
                    break
                self._in_string = False
            match = _TO_BRACE.match(source, at)
            at = at if match is None else match.end()
            if at == len(source):
                break
            byte = source[at]
            at += 1
            if byte == _QUOTE:
                self._in_string = True
            elif byte == _OPEN:
                self._depth += 1
            else:
                self._depth -= 1
                if self._depth == 0:
                    return at
        self._at = len(source) - start
        return -1


def _string_end(source: bytes | bytearray, at: int) -> int:
    """Return the index behind the quote that closes a string, searched from ``at``, -1 if there is none."""
    while (quote := source.find(b'"', at)) != -1:
        before = quote
        while source[before - 1] == _BACKSLASH:
            before -= 1
        if (quote - before) % 2 == 0:
            return quote + 1
        at = quote + 1
    return -1
