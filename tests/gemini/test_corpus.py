"""Recorded streams and bodies, and a few of our own, through every framing and the merger."""

import contextlib
import json
import random
import re
from collections import defaultdict
from pathlib import Path

import orjson
import pytest

from gemini_proxy.errors import DecodeError
from gemini_proxy.gemini.framing.json_array import JsonArrayFraming
from gemini_proxy.gemini.framing.sse import SseFraming
from gemini_proxy.gemini.framing.whole_body import WholeBodyFraming
from gemini_proxy.gemini.merger import Merger
from tests.gemini.framing.chunking import Reading, pieces, read

_ROOT = Path(__file__).parents[2]
_CORPUS = _ROOT.parent / "shared" / "corpus"
_FOLDERS = [_ROOT / "tests" / "data", *sorted(_CORPUS.glob("*ai"))]
_STREAMS = [path for folder in _FOLDERS for path in sorted(folder.glob("streaming-*.txt"))]
_BODIES = [path for folder in _FOLDERS for path in sorted(folder.glob("unary-*"))]
_SIZES = range(1, 65)

Texts = dict[tuple[int, bool], str]


def test_the_recordings_are_here() -> None:
    """Without the recordings only our own samples are run, and this says so."""
    if not _CORPUS.is_dir():
        pytest.skip("the recorded responses are not part of this checkout")
    assert len(_STREAMS) > 10
    assert len(_BODIES) > 10


@pytest.mark.parametrize("path", [*_STREAMS, *_BODIES], ids=lambda path: _name(path))
def test_the_fields_are_of_the_types_that_they_are_read_with(path: Path) -> None:
    """Nothing beside the parts of a recorded response is named as not checked."""
    merger = Merger()
    with contextlib.suppress(DecodeError):
        framing = SseFraming() if path in _STREAMS else WholeBodyFraming()
        for frame in [*framing.feed(path.read_bytes()), *framing.end()]:
            merger.add(frame.payload or {})
    assert not merger.fields.unchecked("response")
    assert not any(candidate.fields.unchecked("candidate") for candidate in merger.candidates)


def _name(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def _is_json(data: bytes) -> bool:
    try:
        json.loads(data)
    except ValueError:
        return False
    return True


def _events(body: bytes) -> list[bytes]:
    """The JSON texts of a recorded stream, read the simple way: data lines, then a bare object from a line's start."""
    stream, _, bare = re.sub(rb"\r\n", b"\n", body).partition(b"\n{") if body[:1] != b"{" else (b"", b"", body[1:])
    lines = [line.removeprefix(b"data:") for line in stream.split(b"\n") if line.startswith(b"data:")]
    return lines + ([b"{" + bare] if bare else [])


def _texts(payloads: list[object]) -> Texts:
    """Text by candidate index and thought flag, joined without a merger."""
    texts: dict[tuple[int, bool], list[str]] = defaultdict(list)
    for payload in payloads:
        assert isinstance(payload, dict)
        for candidate in payload.get("candidates", []):
            for part in candidate.get("content", {}).get("parts", []):
                if part.get("text"):
                    texts[candidate.get("index", 0), part.get("thought", False)].append(part["text"])
    return {key: "".join(found) for key, found in texts.items()}


def _merged(reading: Reading) -> Texts:
    merger = Merger()
    for frame in reading.frames:
        if frame.payload is not None:
            merger.add(frame.payload)
    texts: Texts = {}
    for candidate in merger.candidates:
        for part in candidate.parts:
            if part.get("text"):
                key = (candidate.index, part.get("thought", False))
                texts[key] = texts.get(key, "") + part["text"]
    return texts


def _splits(body: bytes) -> list[list[bytes]]:
    """The body in every size of piece, and in a few random ways that are the same in every run."""
    ways = [list(pieces(body, size)) for size in _SIZES]
    chance = random.Random(len(body))
    for _ in range(8):
        cuts = [0, *sorted(chance.choices(range(len(body) + 1), k=20)), len(body)]
        ways.append([body[a:b] for a, b in zip(cuts, cuts[1:], strict=False)])
    return ways


@pytest.mark.parametrize("path", _STREAMS, ids=_name)
def test_streams(path: Path) -> None:
    """A recorded stream gives its own bytes, its own events and its own text in any chunks."""
    body = path.read_bytes()
    events = _events(body)
    whole = read(SseFraming(), [body])
    assert whole.failed == (not all(map(_is_json, events)))
    if whole.failed:
        return
    assert whole.payloads == [json.loads(each) for each in events]
    assert _merged(whole) == _texts(whole.payloads)
    for way in _splits(body):
        reading = read(SseFraming(), way)
        assert (reading.raw, reading.failed) == (body, False)
        assert reading.settled == whole.settled


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("path", _STREAMS, ids=_name)
def test_streams_as_arrays(path: Path, indent: int | None) -> None:
    """The same events as a JSON array, compact or pretty, give the same payloads and text in any chunks."""
    texts = [each for each in _events(path.read_bytes()) if _is_json(each)]
    events = [json.loads(each) for each in texts]
    body = (
        "[" + "\n,\r\n".join(json.dumps(each, indent=indent, ensure_ascii=False) for each in events) + "\n]"
    ).encode()
    whole = read(JsonArrayFraming(), [body])
    assert (whole.raw, whole.payloads, whole.failed) == (body, events, False)
    assert _merged(whole) == _texts(list(events))
    for way in _splits(body):
        assert read(JsonArrayFraming(), way) == whole


@pytest.mark.parametrize("path", _BODIES, ids=_name)
def test_bodies(path: Path) -> None:
    """A recorded body is one frame with its text; a page or broken JSON in its place is a fault."""
    body = path.read_bytes()
    for way in [[body], *_splits(body)[::8]]:
        reading = read(WholeBodyFraming(), way)
        assert reading.failed == (not _is_json(body))
        assert reading.failed or (reading.raw, reading.payloads) == (body, [orjson.loads(body)])
    assert _merged(reading) == _texts(reading.payloads)
    for frame in reading.frames:
        merger = Merger()
        merger.add(frame.payload or {})
        assert merger.carried_call == (b'"functionCall"' in body)


def test_our_own_samples() -> None:
    """What the merger makes of the hand-made streams."""
    texts = {
        path.name: _merged(read(SseFraming(), [path.read_bytes()])) for path in _STREAMS if path.parent == _FOLDERS[0]
    }
    assert texts["streaming-text.txt"] == {(0, False): 'Bread, salt "data: {}" and\n\nÖl \u2028 \U0001f372.'}
    assert texts["streaming-thought-call.txt"] == {(0, True): "Which pantry? The near one."}
    assert texts["streaming-error-tail.txt"] == {(0, False): "Half an ans"}
