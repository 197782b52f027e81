"""Detectors that the engine cannot answer by itself: a model, a service or a program is asked.

The engine does no input or output, so such a call only states its ``Question``. A check that meets questions without an
answer ends with ``Unanswered``, which has all of them; whoever awaits the answers runs the check again with them.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from gemini_proxy.policy.errors import EvaluationError
from gemini_proxy.policy.values import Joined

Answer = bool | str | tuple[str, ...]
"""What was answered: whether it is so, a text, or labels."""
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
        super().__init__(f"{names} has to be asked, which is not configured here")
        self.questions = questions

    def __reduce__(self) -> tuple[type["Unanswered"], tuple[tuple[Question, ...]]]:
        return Unanswered, (self.questions,)


@dataclass(frozen=True, slots=True)
class OutsideDetector:
    """A detector that is asked. ``positional`` are its arguments by position, of which ``subject`` is what it is asked
    about. ``nothing`` is its value while there is no answer, and of no text. With ``images`` it is asked about images.
    """

    name: str
    nothing: Answer
    subject: str = "text"
    positional: tuple[str, ...] = ("text",)
    options: frozenset[str] = frozenset()
    images: bool = False

    def joined(self, answers: Iterable[Answer]) -> Answer | list[str]:
        """The value of the call, from the answers for each of its texts."""
        if isinstance(self.nothing, tuple):
            return [label for answer in answers if isinstance(answer, tuple) for label in answer]
        if isinstance(self.nothing, str):
            return "\n".join(str(answer) for answer in answers)
        return any([bool(answer) for answer in answers])


def whole_texts(texts: Iterable[str]) -> Iterator[str]:
    """Yield each text once, as readers join it: a turn that is cut into pieces is one question, not one for each."""
    seen: set[str] = set()
    for text in texts:
        readings: list[str] = [reading for reading, _, _ in text.readings] if type(text) is Joined else []
        for reading in readings or [text]:
            whole = str(reading)
            if whole.strip() and whole not in seen:
                seen.add(whole)
                yield whole


OUTSIDE: Final = (
    OutsideDetector("injection_model", False),
    OutsideDetector("decision", False, positional=("question", "text")),
    OutsideDetector(
        "llm", "", "prompt", ("prompt", "system_prompt"), frozenset(("model", "temperature", "max_tokens"))
    ),
    OutsideDetector("ocr", (), "image", ("image",), images=True),
    OutsideDetector("model_armor", (), options=frozenset(("response",))),
    OutsideDetector(
        "moderated", False, options=frozenset(("model", "threshold", "default_threshold", "cat_thresholds"))
    ),
)
