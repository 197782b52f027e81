"""The forms of what detectors find: labeled regular expressions, behind one search for their words."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from gemini_proxy.policy.detectors import Finding
from gemini_proxy.policy.run.budget import Meter
from gemini_proxy.policy.run.regex import Patterns, Regex
from gemini_proxy.policy.run.texts import in_lines


def _always(text: str) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Form:
    """``pattern`` finds candidates with this label; ``accept`` sees the text of each and has the last word.

    Every match of the pattern contains one of the lower-case ``words``; a form without words is tried on any text. If
    the words are frequent, ``sign`` narrows this down: this pattern matches, in any letter case, within every match.
    """

    label: str
    pattern: str
    words: tuple[str, ...] = ()
    accept: Callable[[str], bool] = _always
    sign: str = ""

    @property
    def signs(self) -> tuple[str, ...]:
        """Patterns of which one matches in whatever the form finds."""
        return (self.sign,) if self.sign else tuple(map(re.escape, self.words))


class Forms:
    """Forms behind one search for their words and one for the patterns of those without: most texts have neither.

    ``stays`` says that for all forms an accepted match stays accepted when the text continues. What begins or ends a
    text has to begin or end a line as well.
    """

    __slots__ = ("_any", "_by_sign", "_forms", "_regexes", "_signs", "_stays", "_wordless", "labels")

    def __init__(self, forms: Iterable[Form], *, stays: bool = False) -> None:
        self._forms = tuple(forms)
        self._stays = stays
        # By pattern, compiled on first use: most are never used.
        self._regexes: dict[str, Regex] = {}
        self.labels = frozenset(form.label for form in self._forms)
        by_sign: dict[str, list[int]] = {}
        for number, form in enumerate(self._forms):
            for sign in form.signs:
                by_sign.setdefault(sign, []).append(number)
        signs = sorted(by_sign)
        self._signs = Patterns([f"(?i){sign}" for sign in signs]) if signs else None
        self._by_sign = [frozenset(by_sign[sign]) for sign in signs]
        self._wordless = frozenset(number for number, form in enumerate(self._forms) if not form.signs)
        patterns = [self._forms[number].pattern for number in sorted(self._wordless)]
        self._any = "|".join(f"(?:{pattern})" for pattern in patterns)

    def find(self, texts: Sequence[str], meter: Meter) -> Iterable[Finding]:
        """Find all forms, text by text; of findings at the same place the first form's is kept."""
        lines = in_lines(texts)
        if lines is not None and not self._tried(lines, meter):
            return ()
        hits = [(index, text, tried) for index, text in enumerate(texts) if (tried := self._tried(text, meter))]
        return (finding for hit in hits for finding in self._find(*hit, meter)) if hits else ()

    def _tried(self, text: str, meter: Meter) -> frozenset[int]:
        """Return the numbers of the forms that may be in the text."""
        tried = self._wordless if self._any and self._regex(self._any).test(text, meter) else frozenset()
        return tried.union(*(self._by_sign[sign] for sign in self._signs.found(text, meter))) if self._signs else tried

    def _find(self, index: int, text: str, tried: frozenset[int], meter: Meter) -> Iterator[Finding]:
        seen: set[tuple[int, int]] = set()
        unseen = meter.sliced and not self._stays
        for number in sorted(tried):
            form = self._forms[number]
            # The next slice, which includes the end of this one, shows whether a word at that end continues.
            last = len(text) - 1 if meter.sliced and self._stays and form.pattern.endswith(r"\b") else len(text)
            for start, end in self._regex(form.pattern).spans(text, meter):
                if end > last:
                    continue
                if (start, end) not in seen and (unseen or form.accept(text[start:end])):
                    seen.add((start, end))
                    yield Finding(index, start, end, form.label)

    def _regex(self, pattern: str) -> Regex:
        """Return the compiled pattern. Two threads may both compile it; their patterns are equal and one stays."""
        regex = self._regexes.get(pattern)
        if regex is None:
            regex = self._regexes[pattern] = Regex(pattern, "find", tame=True)
        return regex
