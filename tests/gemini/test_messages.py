"""Parts of every kind as the messages that rules read, and the links between calls and outputs."""

import base64
import time
from typing import Any

import pytest

from gemini_proxy.errors import BadRequest
from gemini_proxy.gemini.messages import MessageList
from gemini_proxy.guardrails.response_messages import for_rules
from tests.gemini.reading import call, messages_of, output, read, said


def image(data: str = "iVBORw0KGgo=") -> dict[str, Any]:
    return {"inlineData": {"mimeType": "image/png", "data": data}}


def chunk(text: str, **extra: str) -> dict[str, Any]:
    return {"type": "text", "text": text, **extra}


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}


@pytest.mark.parametrize(
    ("parts", "content"),
    [
        ([{"text": "a"}], [chunk("a")]),
        ([{"text": "a"}, {"text": "b"}], [chunk("a"), chunk("b")]),
        ([{"text": "a"}, {"text": ""}, {"text": "b"}], [chunk("a"), chunk(""), chunk("b")]),
        ([{"text": ""}], [chunk("")]),
        ([{"text": "a"}, {}, {"text": None}, {"text": "b"}], [chunk("a"), chunk("b")]),
        ([{"text": "a"}, image(), {"text": "b"}], [chunk("a"), IMAGE, chunk("b")]),
        ([{"text": "a", **image()}], [chunk("a"), IMAGE]),
        ([image()], [IMAGE]),
        (
            [{"fileData": {"fileUri": "gs://b/f", "mimeType": "application/pdf"}}],
            [{"type": "file", "file": {"uri": "gs://b/f", "mime_type": "application/pdf"}}],
        ),
        (
            [{"inlineData": {"mimeType": "application/pdf", "data": "JVBE"}}],
            [{"type": "file", "file": {"mime_type": "application/pdf", "data": "JVBE"}}],
        ),
        ([{"inline_data": {"mime_type": "image/png", "data": "iVBORw0KGgo="}}], [IMAGE]),
        ([{"inlineData": {"mime_type": "IMAGE/PNG; x=y", "data": "iVBORw0KGgo="}}], [IMAGE]),
        ([{"partMetadata": {"note": "a"}}], [chunk("partMetadata\nnote\na", field="partMetadata")]),
        ([{"text": "a", "new": ["b", 4111]}], [chunk("a"), chunk("new\nb\n4111", field="new")]),
        ([{"Text": "a"}], [chunk("Text\na", field="Text")]),
        ([{"text": "a", "thoughtSignature": "c2ln", "videoMetadata": {"startOffset": "1s"}}], [chunk("a")]),
    ],
)
def test_user_content(parts: list[Any], content: Any) -> None:
    """Text stays text, media keeps its place beside it, unknown kinds are read as text."""
    assert messages_of(*parts) == [{"role": "user", "content": content}]


@pytest.mark.parametrize(
    "role", ["user", "", "USER", "system", "assistant", "Model", "tool", "function", "mоdel", None]
)
def test_unknown_roles_are_the_users(role: str | None) -> None:
    """Only "model" is the model; a missing, unknown or look-alike role is never skipped."""
    request = read({"contents": [{"role": role, "parts": [{"text": "a"}]}, {"parts": [{"text": "b"}]}]})
    assert [message["role"] for message in request.messages] == ["user", "user"]
    assert messages_of({"text": "a"}, role="model") == [{"role": "assistant", "content": "a"}]


def test_thoughts_stand_apart() -> None:
    """A thought is a message of its own, so that it can be skipped without the text beside it."""
    parts = [{"text": "hm", "thought": True}, {"text": "hi", "thought": False}, {"text": "!"}]
    assert messages_of(*parts, role="model") == [
        {"role": "assistant", "content": "hm", "thought": True},
        {"role": "assistant", "content": "hi!"},
    ]


def test_only_the_model_thinks() -> None:
    """A prompt that a client marks as a thought is a prompt all the same: skipping thoughts does not skip it."""
    marked = messages_of({"text": "secret", "thought": True})
    assert marked == [{"role": "user", "thought": True, "content": [chunk("secret")]}]
    assert for_rules(marked, "skip") is marked
    request = read({"systemInstruction": {"parts": [{"text": "be nice", "thought": True}]}})
    assert request.messages == ({"role": "system", "content": "be nice"},)


@pytest.mark.parametrize("thought", ["false", "true", 0, 1, {}, []])
def test_thought_that_is_no_truth_value_is_refused(thought: Any) -> None:
    """Google reads "false" as false; Python would take it for true."""
    with pytest.raises(BadRequest):
        messages_of({"text": "a", "thought": thought}, role="model")


TEXT = "pässword?>~"


@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize("mime", ["text/plain", "TEXT/HTML; charset=UTF-8", "application/json", "image/svg+xml"])
def test_inline_text_is_decoded(encode: Any, padded: bool, broken: bool, mime: str) -> None:
    """Either alphabet, padded or not, over several lines: rules read the text that the model reads."""
    for text in (TEXT, TEXT + "1", TEXT + "12"):
        data = encode(text.encode()).decode()
        data = data if padded else data.rstrip("=")
        data = "\n".join(data[i : i + 4] for i in range(0, len(data), 4)) if broken else data
        request = read({"contents": {"parts": {"inlineData": {"mimeType": mime, "data": data}}}})
        assert request.messages == ({"role": "user", "content": [chunk(text)]},)
        assert not request.unchecked


@pytest.mark.parametrize("data", ["a", "a===a", "????", "aGk=aGk=", "é"])
def test_inline_text_that_is_not_base64_is_refused(data: str) -> None:
    with pytest.raises(BadRequest):
        messages_of({"inlineData": {"mimeType": "text/plain", "data": data}})


@pytest.mark.parametrize(
    ("mime", "raw"),
    [
        ("text/plain", b"caf\xe9"),
        ("text/plain", "secret".encode("utf-16-le")),
        ("text/plain", "secret".encode("utf-16")),
        ("text/plain; charset=utf-7", b"+AHMAZQBjAHIAZQB0-"),
        ('text/html;charset="windows-1252"', b"abc"),
    ],
)
def test_inline_text_in_another_encoding_is_named(mime: str, raw: bytes) -> None:
    """What is decoded differently by its reader is not passed off as seen."""
    request = read({"contents": {"parts": {"inlineData": {"mimeType": mime, "data": base64.b64encode(raw).decode()}}}})
    assert [one.reason for one in request.unchecked] == [f"inline {mime.partition(';')[0]} that is not UTF-8"]


def test_names_of_media_are_read() -> None:
    """A display name is text that a model may be told; rules read it for images too."""
    named = [
        {"inlineData": {"mimeType": "image/png", "data": "aGk=", "displayName": "one"}},
        {"inlineData": {"mimeType": "audio/wav", "data": "aGk=", "display_name": "two"}},
        {"fileData": {"mimeType": "audio/wav", "fileUri": "gs://x", "displayName": "three"}},
        {"inlineData": {"mimeType": "text/plain", "data": "aGk=", "displayName": "four"}},
    ]
    content = messages_of(*named)[0]["content"]
    assert content[0]["text"] == "one"
    assert [content[1]["file"]["name"], content[2]["file"]["name"]] == ["two", "three"]
    assert content[3] == {"type": "text", "text": "four\nhi"}


@pytest.mark.parametrize(
    ("response", "content"),
    [
        ({"result": "a"}, "a"),
        ({"output": "a"}, {"output": "a"}),
        ({"error": "a"}, {"error": "a"}),
        ({"secret": "a"}, {"secret": "a"}),
        ({"result": {"text": "a"}}, {"text": "a"}),
        ({"result": ["a"]}, ["a"]),
        ({"result": "a", "error": "b"}, {"result": "a", "error": "b"}),
        ({"a": {"b": [{"c": "d"}]}}, {"a": {"b": [{"c": "d"}]}}),
        ({"result": 1}, {"result": 1}),
        (["a"], {"response": ["a"]}),
        ("a", "a"),
        (5, {"response": 5}),
        ({}, {}),
        (None, ""),
    ],
)
def test_outputs_of_every_shape(response: Any, content: Any) -> None:
    """The whole response is there under any key and nesting; a ``result`` alone is the content itself."""
    for name in ("functionResponse", "function_response"):
        messages = messages_of(call("f"), {name: {"name": "f", "response": response}})
        assert messages[1] == {"role": "tool", "tool_name": "f", "content": content}


def test_output_with_parts() -> None:
    """An output's text and media are read in order: what it says first, then its parts."""
    parts = [image(), {"text": "b"}, {"file_data": {"file_uri": "gs://x"}}, {"new": ["c", 7]}]
    request = read({"contents": {"parts": [call("f"), output("f", {"result": "a"}, parts=parts)]}})
    assert request.messages[1]["content"] == [
        {"type": "text", "text": "a"},
        IMAGE,
        {"type": "text", "text": "b"},
        {"type": "file", "file": {"uri": "gs://x", "mime_type": ""}},
        {"type": "text", "text": "c\n7"},
    ]
    assert [(one.address, one.reason) for one in request.unchecked] == [
        ("messages.1.content.1", "inline image/png"),
        ("messages.1.content.3", "a file behind a URI"),
    ]


def test_output_with_parts_keeps_numbers_and_unknown_fields() -> None:
    found = messages_of(call("f"), output("f", {"card": 4111111111111111}, parts=[image()], note="psst"))[1]["content"]
    assert found[0]["text"] == "card\n4111111111111111"
    assert found[2] == {"type": "text", "text": "psst"}


@pytest.mark.parametrize(
    "part",
    [
        {"text": 5},
        {"text": ["a"]},
        {"text": {"a": "b"}},
        {"inlineData": "a"},
        {"inlineData": ["a"]},
        {"inlineData": {"mimeType": 5, "data": ""}},
        {"inlineData": {"mimeType": "text/plain", "data": 5}},
        {"fileData": "gs://x"},
        {"functionCall": "f"},
        {"functionCall": {"name": 5}},
        {"functionCall": {"name": "f", "id": 5}},
        {"functionResponse": ["f"]},
        {"functionResponse": {"name": ["f"]}},
        {"functionResponse": {"name": "f", "parts": ["a"]}},
        {"executableCode": "print(1)"},
        {"codeExecutionResult": "1"},
        {"text": "a", "inlineData": {"mimeType": "a/b", "mime_type": "c/d"}},
        {"inlineData": {}, "inline_data": {}},
        {"functionCall": {}, "function_call": {}},
        {"function_response": {}, "functionResponse": {}},
        {"functionResponse": {"response": {}, "parts": [{"inlineData": {}, "inline_data": {}}]}},
        "a",
        5,
        True,
    ],
)
def test_parts_that_cannot_be_read_one_way_are_refused(part: Any) -> None:
    with pytest.raises(BadRequest):
        messages_of(part)


def test_code_is_a_call_and_its_result_an_output() -> None:
    parts = [
        {"text": "let me see"},
        {"executableCode": {"language": "PYTHON", "code": "print(1)"}},
        {"codeExecutionResult": {"outcome": "OUTCOME_OK", "output": "1\n"}},
        {"text": "done"},
    ]
    arguments = {"language": "PYTHON", "code": "print(1)"}
    assert messages_of(*parts, role="model") == [
        {"role": "assistant", "content": "let me see"},
        {"role": "assistant", "provider": True, "tool_calls": [called("code_execution", arguments)]},
        {"role": "tool", "tool_name": "code_execution", "content": "1\n", "provider": True},
        {"role": "assistant", "content": "done"},
    ]
    snake = messages_of({"executable_code": {"code": "x"}}, {"code_execution_result": {"output": "y"}})
    assert said(snake).count("code_execution") == 2 and {"x", "y"} <= set(said(snake).split("\n"))


def test_the_models_turn_in_the_order_of_the_wire() -> None:
    """A run of text is a message, a thought one, calls that follow each other one, an image one."""
    parts = [{"text": "a"}, {"text": "b"}, call("f", x=1), call("g"), {"text": "c", "thought": True}, image()]
    assert messages_of(*parts, {"text": "d"}, role="model") == [
        {"role": "assistant", "content": "ab"},
        {"role": "assistant", "tool_calls": [called("f", {"x": 1}), called("g", {})]},
        {"role": "assistant", "content": "c", "thought": True},
        {"role": "assistant", "content": [IMAGE]},
        {"role": "assistant", "content": "d"},
    ]


def test_a_users_content_in_the_order_of_the_wire() -> None:
    """An output ends the user's message, and what follows is another."""
    assert messages_of({"text": "a"}, output("f", {"result": "b"}), {"text": "c"}, image()) == [
        {"role": "user", "content": [chunk("a")]},
        {"role": "tool", "tool_name": "f", "content": "b"},
        {"role": "user", "content": [chunk("c"), IMAGE]},
    ]


def test_what_stands_in_the_others_turn_says_so() -> None:
    """A call among a user's parts and an output among the model's interrupt no text of the turn."""
    code = [{"executableCode": {"code": "1"}}, {"codeExecutionResult": {"output": "1"}}]
    asked = messages_of({"text": "a"}, *code, {"text": "b"})
    assert [(message["role"], message.get("turn")) for message in asked] == [
        ("user", None),
        ("assistant", "user"),
        ("tool", "user"),
        ("user", None),
    ]
    said_ = messages_of({"text": "a"}, output("f", {"result": "1"}), {"text": "b"}, role="model")
    assert [message.get("turn") for message in said_] == [None, "assistant", None]
    assert not any("turn" in message for message in messages_of({"text": "a"}, *code, call("f"), role="model"))


def test_ids_are_there_where_they_were_given() -> None:
    messages = messages_of(call("f", "x"), call("g"), output("f", {"result": "a"}, "x"), output("g", {"result": "b"}))
    assert [found.get("id") for found in messages[0]["tool_calls"]] == ["x", None]
    assert [message.get("tool_call_id") for message in messages[1:]] == ["x", None]


@pytest.mark.parametrize(
    ("tool", "name"),
    [
        ("GOOGLE_SEARCH_WEB", "google_search"),
        ("URL_CONTEXT", "url_context"),
        ("NEW_TOOL", "new_tool"),
        (7, "server_tool_7"),
    ],
)
def test_what_geminis_servers_ran_is_a_call_and_an_output(tool: Any, name: str) -> None:
    """Egress that already happened is a call to rules, and says that nobody here ran it."""
    for camel, snake in (("toolCall", "toolType"), ("tool_call", "tool_type")):
        response = "toolResponse" if camel == "toolCall" else "tool_response"
        parts = [
            {camel: {"id": "1", snake: tool, "args": {"queries": ["q"]}}},
            {response: {"id": "1", snake: tool, "response": {"result": "found"}, "note": "beside"}},
        ]
        messages = messages_of(*parts, role="model")
        assert messages[0] == {
            "role": "assistant",
            "provider": True,
            "tool_calls": [{"id": "1", **called(name, {"queries": ["q"]})}],
        }
        assert messages[1] == {
            "role": "tool",
            "tool_name": name,
            "content": "found",
            "tool_call_id": "1",
            "provider": True,
        }
        assert messages[2] == {"role": "assistant", "content": "beside", "field": "toolResponse"}


def called(name: str, arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def test_calls_are_the_assistants_and_carry_all_they_say() -> None:
    """A call is the assistant's whoever sends it; streamed argument pieces in a history are read as well."""
    message, beside = messages_of(
        {"function_call": {"name": "f", "args": {"a": [1]}, "partial_args": [{"string_value": "b"}]}}
    )
    assert message == {"role": "assistant", "tool_calls": [called("f", {"a": [1]})], "turn": "user"}
    assert "b" in said([beside]).split("\n")


@pytest.mark.parametrize(("args", "arguments"), [(None, {}), ({}, {}), ("raw", "raw"), (["x"], ["x"])])
def test_arguments_of_any_shape(args: Any, arguments: Any) -> None:
    (message,) = messages_of({"functionCall": {"name": "f", "args": args}})
    assert message["tool_calls"][0]["function"]["arguments"] == arguments


@pytest.mark.parametrize(
    "parts",
    [
        [call("f")] * 8000 + [output("g")] * 8000,
        [call("f", "x")] * 8000 + [output("f", None, "x")] * 8000,
        [call("f", f"x_{number}") for number in range(4000, 8000)] + [call("f", "x")] * 8000,
        [output("f", None, "x")] * 16000,
        [{"text": "word " * 20}] * 20_000,
        [{"text": "word"}, {"new": "kind"}] * 10_000,
    ],
    ids=["unanswered", "one id", "ids in the way", "no calls", "many texts", "many kinds"],
)
def test_cost_grows_with_the_body_only(parts: list[dict[str, Any]]) -> None:
    """A body made to be slow is read in proportion to its size: quadratic work on these takes many seconds."""
    reader = MessageList()
    started = time.process_time()
    reader.add_content("user", parts)
    assert time.process_time() - started < 3
