"""Find in a call's arguments what private outputs said, however it is spelled: ``private(call)``."""

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Final

from gemini_proxy.policy.detectors.pii import PiiDetector
from gemini_proxy.policy.detectors.secrets import SecretsDetector
from gemini_proxy.policy.errors import EvaluationError
from gemini_proxy.policy.run.budget import Meter
from gemini_proxy.policy.run.events import Event
from gemini_proxy.policy.run.operators import items_of
from gemini_proxy.policy.run.provenance.folded import decoded, fold, folded_words
from gemini_proxy.policy.run.provenance.labels import Labels
from gemini_proxy.policy.run.provenance.origins import Found, Traced, leaves_of, record_of, tool_of
from gemini_proxy.policy.run.provenance.restored import Restored, restored_of
from gemini_proxy.policy.run.provenance.shapes import Shape, addresses_in, is_written, shape_of
from gemini_proxy.policy.run.run import Run
from gemini_proxy.policy.run.texts import texts_of
from gemini_proxy.policy.run.values import MarkedRecord, word_for

_DETECTORS: Final = (SecretsDetector(), PiiDetector())
# This many words of prose in a row, with this many characters, identify a sentence.
_WORDS: Final = 3
_LEAST_WORDS: Final = 12
# A word with a digit is distinctive by itself, unless it is a year.
_LEAST_WORD: Final = 4
_YEAR = re.compile(r"(?:19|20)\d\d")
# A value may be spelled in groups; a longer one is found by its parts.
_LONGEST: Final = 64
_FORMS: Final = ("email", "url", "phone", "account")
# Separators between the parts of a URL, each of which may be encoded.
_IN_URLS = re.compile(r"[?&#;/]|=(?=[^=&])")


def private(run: Run, call: Any, tools: Any = None) -> list[MarkedRecord]:
    """Return the values of a call that contain something private, read before it and not said by the user.

    ``tools`` are names of tools whose outputs are private, beside those that are labeled so. A masked value that is
    restored in the call is private, whatever its source.
    """
    if not isinstance(call, Event) or call.kind != "ToolCall":
        raise EvaluationError(f"private(...) needs a tool call, not a {word_for(call)}")
    names = () if tools is None else tuple(items_of(tools, run))
    key = ("private", names)
    if key not in run.scans:
        events = [event for kind in ("Message", "ToolOutput") for event in run.events(kind)]
        events.sort(key=lambda event: event.position)
        run.scans[key] = PrivateData(events, Labels.of(run.parameters, (), names), run, restored_of(run))
    data: PrivateData = run.scans[key]
    records = [record_of(run, found, call) for found in data.carried_by(call)]
    run.items(len(records))
    run.marks.extend(mark for record in records for mark in record.marks)
    return records


class PrivateData:
    """The texts of a conversation's private outputs: values, and prose in runs of words. Linear in their size.

    Private are the outputs of tools labeled so, secrets and personal data in other outputs, and masked values, which
    are ``restored`` in calls, whatever their source.
    """

    def __init__(self, events: Sequence[Event], labels: Labels, meter: Meter, restored: Restored) -> None:
        self._meter = meter
        self._events = events
        self._restored = restored
        self._outputs: list[tuple[Event, str]] = []
        self._known: dict[str, int] = {}
        self._longest = 0
        self._chars = 0
        self._said: list[tuple[int, str]] = []
        for event in events:
            if event.kind == "ToolOutput":
                self._add_output(event, labels)
            elif event.data.get("role") != "assistant":
                said = [fold(form) for text in texts_of(event) for form in (text, *decoded(text))]
                self._said.extend((event.position, text) for text in said)
                self._chars += sum(map(len, said))

    def _add_output(self, event: Event, labels: Labels) -> None:
        texts = list(texts_of(event))
        self._meter.charge(1 + (sum(map(len, texts)) >> 2))
        if labels.is_private(tool_of(event)):
            found = [(text, key) for text in texts for form in (text, *decoded(text)) for key in _keys(form)]
        else:
            findings = [finding for detector in _DETECTORS for finding in detector.detect(texts, {}, self._meter)]
            found = [
                (texts[finding.text], fold(texts[finding.text][finding.start : finding.end])) for finding in findings
            ]
        for text, key in found:
            if key and key not in self._known:
                if not self._outputs or self._outputs[-1][1] is not text:
                    self._outputs.append((event, text))
                self._known[key] = len(self._outputs) - 1
                self._longest = max(self._longest, len(key))

    def carried_by(self, call: Event) -> Iterator[Traced]:
        """Yield the arguments of a call that contain something private, read before it and not said by the user."""
        for path, name, value in leaves_of(call.data["function"]["arguments"], ""):
            self._meter.charge(4 + (len(value) >> 2))
            shape = shape_of(value, name)
            # The destination of a call is not data in it, such as a link that was read or a participant of a private
            # list.
            if _is_destination(value, name) and fold(value) in self._known:
                continue
            if (restored := self._restored_in(path, name, value, shape)) is not None:
                yield restored
                continue
            output = next((self._outputs[number] for number in self._numbers(value, call)), None)
            if output is not None:
                event, text = output
                yield Traced(path, value, shape, value, 0, Found("text", 1.0, tool_of(event), (text, 0, len(text))))

    def _restored_in(self, path: str, name: str, value: str, shape: Shape) -> Traced | None:
        """Return what was restored in an argument, unless it is the destination itself."""
        self._meter.charge(len(self._restored))
        found = self._restored.in_text(value)
        if found is None or (_is_destination(value, name) and value == found[1]):
            return None
        at, restored, placeholder = found
        return Traced(path, restored, shape, value, at, self._said_masked(placeholder))

    def _said_masked(self, placeholder: str) -> Found:
        """Return where what the placeholder stands for was read, or where it was said."""
        for event in sorted(self._events, key=lambda event: event.kind != "ToolOutput"):
            for text in texts_of(event):
                self._meter.charge(1 + (len(text) >> 7))
                if (at := text.find(placeholder)) >= 0:
                    return Found("text", 1.0, tool_of(event), (text, at, at + len(placeholder)))
        return Found("text", 1.0)

    def _numbers(self, value: str, call: Event) -> Iterator[int]:
        if not self._known:
            return
        for form in (value, *decoded(value), *decoded(_IN_URLS.sub(" ", value))):
            for key in self._runs(folded_words(form)):
                number = self._known.get(key)
                if number is not None and self._outputs[number][0].position < call.position:
                    self._meter.charge(1 + len(self._said) + (self._chars >> 9))
                    if not any(key in said for position, said in self._said if position < call.position):
                        yield number

    def _runs(self, words: Sequence[str]) -> Iterator[str]:
        """Yield every word, and what it makes with those after it, as far as something known may be as long."""
        longest = min(_LONGEST, self._longest)
        for start in range(len(words)):
            run = ""
            for count, word in enumerate(words[start : start + longest]):
                run += word
                if len(run) > longest and count:
                    break
                yield run
            self._meter.charge(1 + (count >> 2))


def _is_destination(value: str, name: str) -> bool:
    return not is_written(name) and shape_of(value, "") in _FORMS


def _keys(text: str) -> Iterator[str]:
    """Yield the folded parts of a private text that tell where it came from."""
    words = folded_words(text)
    yield from (word for word in words if _is_telling(word))
    yield from (fold(text[start:end]) for _, start, end in addresses_in(text))
    for (first, second), (_, third) in pairwise(pairwise(words)):
        if len(run := first + second + third) >= _LEAST_WORDS:
            yield run


def _is_telling(word: str) -> bool:
    if len(word) < _LEAST_WORD or word.isalpha() or _YEAR.fullmatch(word) is not None:
        return False
    return any(map(str.isdigit, word))
