"""Match regular expressions in linear time: google-re2, with offsets in characters and a charge for every search.

RE2 takes bytes. For ASCII text a byte offset is a character offset; for other text characters are counted from the
previous match on, so that all matches of a text cost one pass.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from time import perf_counter, thread_time
from typing import Any, Literal

import re2

from gemini_proxy.policy.errors import BudgetExceeded, EvaluationError
from gemini_proxy.policy.run.budget import Meter
from gemini_proxy.policy.run.regex_dialect import DialectError, Split, split, translate

# RE2 limits the automaton of a pattern to this; beyond it searches become slower, never larger.
_MAX_MEMORY = 2 << 20
MAX_PROGRAM = 10_000
"""The largest program accepted unless the caller says less: 7,000 instructions is "(?s).{0,500}z.{0,400}q"."""
_MAX_PATTERN = 10_000
_MAX_CONDITIONS = 10
# Measured worst case of a search that has lost its automaton, such as "(a|b)*a(a|b){12}c" over a's and b's: seconds of
# processor time for a byte and an instruction. A search is one call into RE2 that nothing can interrupt.
_SLOWEST = 1.5e-8
# Seconds. A search that may take longer is charged by the time that it took.
_TIMED = 5e-3
# On a text this short no program takes longer than ``_TIMED``.
_SHORT = int(_TIMED / (MAX_PROGRAM * _SLOWEST))
# Seconds that the first texts of a large pattern take to build its automaton, which are not charged.
_BUILDING = 5e-3
_PROBE = 16 << 10
_LEAST_PROBE = 512
_PROBE_SECONDS = 0.02

# The obvious beginning of every match, if there is one: at least three characters, none of them optional.
_HEAD = re.compile(r"[A-Za-z0-9_]{3,}(?![A-Za-z0-9_?*+{])")
# Operators that depend on the beginning or the end of a text.
_ANCHOR = re.compile(r"\\[AZz]|(?<!\[)\^|\$")
_SPECIAL = re.compile(r"[\\^$.|?*+(){}\[\]]")
_LONGEST_LITERAL = 200

Span = tuple[int, int]
Mode = Literal["find", "match", "whole"]


class RegexError(ValueError):
    """A pattern that cannot be compiled: with ``excess`` it is too large. ``suggestion`` names the rewrite, if any."""

    def __init__(self, reason: str, suggestion: str | None = None, *, excess: bool = False) -> None:
        super().__init__(reason)
        self.excess = excess
        self.reason = reason
        self.suggestion = suggestion


class Regex:
    """One pattern for one use. Raises RegexError.

    ``find`` searches; ``match`` and ``whole`` are anchored and their dot takes any character, so that a line end cannot
    hide what follows it. Look-aheads at the beginning of the pattern are conditions on the beginning of the text. A
    pattern of more than ``max_program`` instructions is too large. A ``tame`` pattern finds only short texts, so that
    pieces of a text show how long the whole would take; the author of the pattern must guarantee this.
    """

    __slots__ = (
        "_ascii",
        "_conditions",
        "_head",
        "_mode",
        "_tame",
        "_unicode",
        "_unicode_pattern",
        "caveats",
        "pattern",
        "size",
    )

    def __init__(self, pattern: str, mode: Mode, max_program: int = MAX_PROGRAM, *, tame: bool = False) -> None:
        if len(pattern) > _MAX_PATTERN:
            raise RegexError(f"the pattern has more than {_MAX_PATTERN} characters", excess=True)
        parts = split(pattern)
        if parts is not None and (parts.anchored or mode != "find"):
            self._conditions = _conditions(parts, mode)
            plain = parts.rest
        else:
            self._conditions = ()
            plain = pattern
        try:
            translation = translate(plain, whole=mode == "whole")
        except DialectError as error:
            raise RegexError(error.reason, error.suggestion) from error
        self.pattern = pattern
        inner = [caveat for condition, _ in self._conditions for caveat in condition.caveats]
        self.caveats: tuple[str, ...] = tuple(dict.fromkeys((*translation.caveats, *inner)))
        self._mode: Mode = mode
        self._tame = tame
        head = _HEAD.match(plain) if mode == "find" and "|" not in plain else None
        self._head = head[0] if head else ""
        self._ascii = _compile(translation.ascii, mode)
        self._unicode_pattern = translation.unicode
        self._unicode: Any = self._ascii if translation.unicode == translation.ascii else None
        # Unicode classes make large programs, and only counted repetition can make one too large.
        if self._unicode is None and "{" in plain.replace(r"\p{", "").replace(r"\P{", ""):
            self._unicode = _compile(translation.unicode, mode)
        self.size: int = self._ascii.programsize + sum(condition.size for condition, _ in self._conditions)
        if self.size > max_program:
            raise _too_large()

    @property
    def looks_ahead(self) -> bool:
        """Return whether more text can undo a match."""
        return bool(self._conditions)

    def is_missing(self, lines: str, meter: Meter) -> bool:
        """Return whether it is known that the pattern is found in none of the texts that are these lines."""
        if self._mode != "find" or self._conditions or _ANCHOR.search(self.pattern) is not None:
            return False
        # One joined search must not fail a check that several short searches would pass.
        longest = 4 * _TIMED if meter.longest_search is None else meter.longest_search
        return lines.isascii() and len(lines) * self.size * _SLOWEST <= longest and not self.test(lines, meter)

    def _allowed(self, text: str, meter: Meter) -> bool:
        """Return whether the look-aheads at the beginning hold."""
        return all(condition.test(text, meter) is not negative for condition, negative in self._conditions)

    def _for(self, text: str) -> Any:
        if text.isascii():
            return self._ascii
        if self._unicode is None:
            # Two threads may both compile it: their patterns are equal, and one stays.
            self._unicode = _compile(self._unicode_pattern, self._mode)
        return self._unicode

    def test(self, text: str, meter: Meter) -> bool:
        """Return whether the pattern matches the text, in the pattern's own mode."""
        if self._head not in text:
            meter.charge(1 + (len(text) >> 7))
            return False
        compiled = self._for(text)
        data = _encode(text)
        search = {"find": compiled.search, "match": compiled.match, "whole": compiled.fullmatch}[self._mode]
        return self._searched(compiled, search, data, meter) is not None and self._allowed(text, meter)

    def spans(self, text: str, meter: Meter) -> Iterator[Span]:
        """Yield where the pattern is found, left to right without overlap, in characters."""
        if self._head not in text:
            meter.charge(1 + (len(text) >> 7))
            return
        compiled = self._for(text)
        data = _encode(text)
        if self._searched(compiled, compiled.search, data, meter) is None or not self._allowed(text, meter):
            return
        spans: Iterator[Span] = _spans(compiled, data, meter)
        yield from spans if len(data) == len(text) else _in_characters(spans, data)

    def end_of_match(self, text: str, meter: Meter) -> int | None:
        """Return where the match at the beginning of the text ends, None without one; for the mode ``match``."""
        compiled = self._for(text)
        data = _encode(text)
        found = self._searched(compiled, compiled.match, data, meter)
        return None if found is None or not self._allowed(text, meter) else _count(data, 0, found.end())

    def _searched(self, compiled: Any, search: Callable[[bytes], Any], data: bytes, meter: Meter) -> Any:
        """Return what ``search`` finds, and charge for it. Raises BudgetExceeded for a search that is too long."""
        size = len(data)
        meter.charge(1 + (size >> 7))
        if size <= _SHORT:
            return search(data)
        worst = size * compiled.programsize * _SLOWEST
        if worst < _TIMED:
            return search(data)
        if meter.longest_search is not None and worst > meter.longest_search and not self._tame:
            raise BudgetExceeded("a regular expression may take too long on this text")
        limits = [limit for limit in (meter.longest_search, meter.seconds_left()) if limit is not None]
        if size > _LEAST_PROBE and limits and worst > min(limits):
            _probe(compiled, data, meter)
        if self._tame:
            return search(data)
        before = thread_time()
        found = search(data)
        meter.charge(int((thread_time() - before) * 1e6))
        return found


class Literals:
    """Some texts in small letters, looked for all at once in either case."""

    __slots__ = ("_set",)

    def __init__(self, literals: Sequence[str]) -> None:
        options = _options("find")
        options.case_sensitive = False
        options.literal = True
        self._set = re2.Set.SearchSet(options)
        for literal in literals:
            self._set.Add(literal)
        self._set.Compile()

    def found(self, text: str, meter: Meter) -> Sequence[int]:
        """Return the numbers of those that stand in the text."""
        meter.charge(1 + (len(text) >> 7))
        numbers: Sequence[int] | None = self._set.Match(_encode(text))
        return numbers or ()


class Patterns:
    """Some patterns in RE2's own syntax, looked for all at once. It tells which are there, but not where."""

    __slots__ = ("_set",)

    def __init__(self, patterns: Sequence[str]) -> None:
        self._set = re2.Set.SearchSet(_options("find"))
        for pattern in patterns:
            self._set.Add(pattern)
        self._set.Compile()

    def found(self, text: str, meter: Meter) -> Sequence[int]:
        """Return the numbers of those that match somewhere in the text."""
        meter.charge(1 + (len(text) >> 7))
        numbers: Sequence[int] | None = self._set.Match(_encode(text))
        return numbers or ()


def _conditions(parts: Split, mode: Mode) -> tuple[tuple[Regex, bool], ...]:
    """Return each condition, and whether it must fail; their dot takes what the pattern's own dot takes."""
    if len(parts.conditions) > _MAX_CONDITIONS:
        raise RegexError(f"the pattern has more than {_MAX_CONDITIONS} look-aheads", excess=True)
    begin = r"\A" if mode == "find" else ""
    at_start: Mode = "find" if mode == "find" else "match"
    return tuple((Regex(begin + lookahead.pattern, at_start), lookahead.negative) for lookahead in parts.conditions)


def _spans(compiled: Any, data: bytes, meter: Meter) -> Iterator[Span]:
    """Yield the matches. Each may have to scan the rest of the text ("a.*z|a"), which only the clock can tell.

    It is the thread's own clock, which does not count time that other processes take.
    """
    turns = 1 if len(data) > _PROBE else 64
    before = thread_time()
    for count, found in enumerate(compiled.finditer(data)):
        meter.left -= 1
        if meter.left < 0:
            meter.refill()
        if count % turns == 0:
            now = thread_time()
            meter.charge(int((now - before) * 1e6))
            before = now
        yield found.span()


def _in_characters(spans: Iterator[Span], data: bytes) -> Iterator[Span]:
    at_byte = at_char = 0
    for start, end in spans:
        # An empty match may be inside a character: it has no place in the text.
        if start == end and start < len(data) and data[start] & 0xC0 == 0x80:
            continue
        first = at_char + _count(data, at_byte, start)
        at_byte, at_char = end, first + _count(data, start, end)
        yield first, at_char


def _count(data: bytes, start: int, end: int) -> int:
    return len(data[start:end].decode("utf-8", "surrogatepass"))


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _probe(compiled: Any, data: bytes, meter: Meter) -> None:
    """Run over the text in pieces and watch the clock: a slow pattern shows before the whole search begins.

    The whole takes about as long again.
    """
    piece = min(_PROBE, max(_LEAST_PROBE, int(_PROBE_SECONDS / (compiled.programsize * _SLOWEST))))
    begun = perf_counter()
    paid = thread_time() + _BUILDING
    for start in range(0, len(data), piece):
        compiled.search(data[start : start + piece])
        now = thread_time()
        if now > paid:
            meter.charge(int((now - paid) * 1e6))
            paid = now
        left = meter.seconds_left()
        if left is not None and left < perf_counter() - begun:
            raise BudgetExceeded("a regular expression would exceed the deadline")


def _options(mode: Mode) -> Any:
    options = re2.Options()
    options.log_errors = False
    options.never_capture = True
    options.dot_nl = mode != "find"
    options.max_mem = _MAX_MEMORY
    return options


def _compile(pattern: str, mode: Mode) -> Any:
    try:
        compiled = re2.compile(pattern, _options(mode))
    except (re2.error, UnicodeEncodeError) as error:
        reason = _reason(error)
        # The errors of re2 differ only in their text.
        raise RegexError(reason, excess="pattern too large" in reason) from error
    finally:
        # Otherwise re2 keeps the last 128 patterns, each with its automaton.
        re2.purge()
    if compiled.programsize > MAX_PROGRAM:
        raise _too_large()
    return compiled


def _too_large() -> RegexError:
    return RegexError("this pattern is too large", "use smaller counts in {m,n}", excess=True)


def _reason(error: Exception) -> str:
    detail = error.args[0] if error.args else ""
    text = detail.decode("utf-8", "replace") if isinstance(detail, bytes) else "it is not valid Unicode"
    return f"this regular expression cannot be read: {text}"


def literal_finder(text: str) -> Regex | None:
    """Return a search for a literal text; None if it is empty or long, which Python finds as fast."""
    if not 0 < len(text) <= _LONGEST_LITERAL:
        return None
    try:
        return Regex(_SPECIAL.sub(r"\\\g<0>", text), "find", tame=True)
    except RegexError:
        return None


def compile_at_run_time(
    pattern: str, mode: Mode, cache: dict[tuple[str, Mode], Regex], meter: Meter, max_program: int
) -> Regex:
    """Compile a pattern that a rule computed into the check's own ``cache``. Raises EvaluationError."""
    regex = cache.get((pattern, mode))
    if regex is None:
        meter.charge(100 + len(pattern))
        try:
            regex = Regex(pattern, mode, max_program)
        except RegexError as error:
            hint = f" ({error.suggestion})" if error.suggestion else ""
            raise EvaluationError(f"{error.reason}{hint}") from error
        meter.charge(regex.size)
        if regex.looks_ahead and meter.sliced:
            raise EvaluationError("a pattern with a look-ahead needs the whole text")
        if len(cache) < 64:
            cache[pattern, mode] = regex
    return regex
