"""Tell the values that were masked in what the model read, and that were put back into a call."""

from collections.abc import Mapping
from typing import Any, Final

from gemini_proxy.policy.errors import EvaluationError
from gemini_proxy.policy.run.run import Run

RESTORED_PARAMETER: Final = "restored_values"
"""The parameter of a policy that has them, each by its placeholder."""
# Shorter values occur within words by chance, so they must be whole words.
_LEAST: Final = 4


class Restored:
    """The values that are put back into a response. In the rest of the conversation placeholders stand for them."""

    def __init__(self, values: Mapping[str, str]) -> None:
        # The longest first: one value may hold another.
        self._values = sorted(((value, placeholder) for placeholder, value in values.items()), key=_by_length)

    @classmethod
    def of(cls, parameters: Mapping[str, Any]) -> "Restored":
        """Read the values among a policy's parameters. Raises EvaluationError for another form."""
        values = parameters.get(RESTORED_PARAMETER) or {}
        if not isinstance(values, Mapping) or not all(
            isinstance(text, str) and text for pair in values.items() for text in pair
        ):
            raise EvaluationError(f"{RESTORED_PARAMETER} must map placeholders to values")
        return cls(values)

    def __len__(self) -> int:
        return len(self._values)

    def hide(self, text: str) -> str:
        """Return ``text`` as the model said it: with placeholders, as the conversation has them."""
        for value, placeholder in self._values:
            text = text.replace(value, placeholder)
        return text

    def in_text(self, text: str) -> tuple[int, str, str] | None:
        """Return the place of a value in ``text``, the value and its placeholder; None if there is no value in it.

        The model knows a value only by its placeholder, so no other spelling of it can occur.
        """
        for value, placeholder in self._values:
            at = text.find(value)
            while at >= 0:
                around = text[max(0, at - 1) : at] + text[at + len(value) : at + len(value) + 1]
                if len(value) >= _LEAST or not any(map(str.isalnum, around)):
                    return at, value, placeholder
                at = text.find(value, at + 1)
        return None


def restored_of(run: Run) -> Restored:
    """Return what is put back into the response that is checked, read once."""
    key = ("restored",)
    if key not in run.scans:
        run.scans[key] = Restored.of(run.parameters)
    found: Restored = run.scans[key]
    return found


def _by_length(pair: tuple[str, str]) -> int:
    return -len(pair[0])
