"""Whatever JSON comes, it is read or refused; nothing else is raised."""

import contextlib
from typing import Any

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from gemini_proxy.errors import BadRequest, DecodeError
from gemini_proxy.gemini.calls import read_call
from gemini_proxy.gemini.json_edit import json_strings
from gemini_proxy.gemini.merger import Merger
from gemini_proxy.gemini.openai.request import messages_read, read_chat, read_embeddings
from gemini_proxy.gemini.openai.wire import OPENAI

CALL = read_call("POST", "/v1beta/openai/chat/completions")
NAMES = st.sampled_from(
    "messages refusal role content tool_calls function name arguments id index type text image_url url file".split()
    + "extra_content google tools choices delta message finish_reason reasoning_content usage input".split()
)
LEAVES = st.none() | st.booleans() | st.integers(-2, 2) | st.sampled_from(["user", "{}", "data:a/b;base64,AA=="])
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=10,
)
OBJECTS = st.dictionaries(NAMES, VALUES, max_size=4)
ROLES = st.sampled_from(["user", "assistant", "tool", "system"]).map(lambda role: {"role": role})
MESSAGES = st.lists(st.tuples(OBJECTS, ROLES).map(lambda both: both[0] | both[1]), max_size=3)


@settings(max_examples=60)
@given(OBJECTS | MESSAGES.map(lambda messages: {"messages": messages}))
def test_requests(body: dict[str, Any]) -> None:
    raw = orjson.dumps(body)
    with contextlib.suppress(BadRequest):
        read_embeddings(raw)
    with contextlib.suppress(BadRequest):
        assert len(messages_read(raw)) == len(read_chat(raw).messages)
    for string in json_strings(raw):
        OPENAI.is_request_text(string.path)
        OPENAI.content_of(string.path)


@settings(max_examples=60)
@given(st.lists(OBJECTS | st.lists(OBJECTS, max_size=2).map(lambda choices: {"choices": choices}), max_size=3))
def test_responses(frames: list[dict[str, Any]]) -> None:
    reader, merger, places = OPENAI.new_reader(CALL), Merger(), OPENAI.places
    with contextlib.suppress(DecodeError):
        for payload in [said for frame in frames for said in reader.read(frame)]:
            merger.add(payload)
        for payload in reader.end():
            merger.add(payload)
    for frame in frames:
        assert all(isinstance(text, str) for text in places.texts(frame))
        for path in (string.path for string in json_strings(orjson.dumps(frame))):
            run = places.run_of(path, frame)
            assert run is None or isinstance(places.ends(run, frame), bool)
            assert isinstance(places.is_json(path), bool) and isinstance(places.is_opaque(path), bool)


def test_arguments_stand_nowhere_else() -> None:
    for path in (("arguments",), ("choices", 0, "arguments")):
        assert not OPENAI.places.is_json(path)
