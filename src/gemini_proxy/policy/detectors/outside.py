"""Detectors that ask a model, a service or a program.

The engine does no input or output, so such a call only states its ``Question``. A check with unanswered questions ends
with ``Unanswered``, which holds all of them; the caller gets the answers and runs the check again with them.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from gemini_proxy.policy.errors import EvaluationError
from gemini_proxy.policy.run.values import Joined


@dataclass(frozen=True, slots=True)
class LabelledSpan:
    """``[start:end]`` of the text that was asked about is a ``label``, offsets in characters."""

    start: int
    end: int
    label: str


Answer = bool | str | tuple[str | LabelledSpan, ...]
"""The result of a detector: a truth value, a text, or labels, which may have ranges."""
MAX_QUESTIONS: Final = 1_000
"""Questions of one check, answered ones not counted."""


@dataclass(frozen=True, slots=True)
class Question:
    """Ask ``detector`` about ``text``. ``options`` are those of the call as JSON, with sorted keys."""

    detector: str
    text: str
    options: str


class Unanswered(EvaluationError):
    """The check has no verdict yet: it needs answers to ``questions``."""

    def __init__(self, questions: tuple[Question, ...]) -> None:
        names = ", ".join(sorted({question.detector for question in questions}))
        super().__init__(f"{names} needs a service that is not configured here")
        self.questions = questions

    def __reduce__(self) -> tuple[type["Unanswered"], tuple[tuple[Question, ...]]]:
        return Unanswered, (self.questions,)


@dataclass(frozen=True, slots=True)
class OutsideDetector:
    """A detector that is asked.

    ``positional`` are its arguments by position; it is asked about the one named ``subject``. ``nothing`` is its value
    without an answer, and without a text. With ``images`` it is asked about images. A ``placed`` detector answers with
    ``LabelledSpan``.
    """

    name: str
    nothing: Answer
    subject: str = "text"
    positional: tuple[str, ...] = ("text",)
    options: frozenset[str] = frozenset()
    images: bool = False
    placed: bool = False

    def joined(self, answers: Iterable[Answer]) -> Answer | list[str]:
        """Join the answers for each of its texts to the value of the call."""
        if isinstance(self.nothing, tuple):
            labels = [label for answer in answers if isinstance(answer, tuple) for label in answer]
            return [label.label if isinstance(label, LabelledSpan) else label for label in labels]
        if isinstance(self.nothing, str):
            return "\n".join(str(answer) for answer in answers)
        return any([bool(answer) for answer in answers])


@dataclass(slots=True)
class Whole:
    """A text as readers join it, with the starts and ends of the pieces that a call is about, in order."""

    text: str
    starts: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)

    def holds(self, found: LabelledSpan) -> bool:
        """Return whether ``found`` ends in one of the pieces, and so belongs to it."""
        number = bisect_left(self.starts, found.end) - 1
        return number >= 0 and found.end <= self.ends[number]


def whole_texts(texts: Iterable[str]) -> dict[str, list[Whole]]:
    """Return each text once with its places: a turn in several pieces is one question, not one for each."""
    wholes: dict[int, Whole] = {}
    for text in texts:
        readings: Sequence[tuple[str, int, int]] = text.readings if type(text) is Joined else ()
        for reading, start, end in readings or ((text, 0, len(text)),):
            whole = wholes.setdefault(id(reading), Whole(reading))
            whole.starts.append(start)
            whole.ends.append(end)
    by_text: dict[str, list[Whole]] = {}
    for whole in wholes.values():
        if whole.text.strip():
            by_text.setdefault(str(whole.text), []).append(whole)
    return by_text


OUTSIDE: Final = (
    OutsideDetector("injection_model", False),
    OutsideDetector("decision", False, positional=("question", "text")),
    OutsideDetector(
        "llm", "", "prompt", ("prompt", "system_prompt"), frozenset(("model", "temperature", "max_tokens"))
    ),
    OutsideDetector("ocr", (), "image", ("image",), images=True),
    OutsideDetector("presidio", (), positional=("text", "entities"), placed=True),
    OutsideDetector("semgrep", (), "data", ("data", "lang"), placed=True),
    OutsideDetector("model_armor", (), options=frozenset(("response",))),
    OutsideDetector(
        "moderated", False, options=frozenset(("model", "threshold", "default_threshold", "cat_thresholds"))
    ),
)
