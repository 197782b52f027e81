"""Answers of all kinds for the checks of growing answers, and an exchange that is driven without a server."""

import re
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import orjson
from aiohttp.test_utils import make_mocked_request

from gemini_proxy.errors import UpstreamError
from gemini_proxy.gemini.calls import read_call
from gemini_proxy.gemini.request import read_request
from gemini_proxy.guardrails.engine import Engine
from gemini_proxy.guardrails.native import NativeEngine
from gemini_proxy.guardrails.rules import GuardrailSet, guardrail
from gemini_proxy.guardrails.workers import Workers
from gemini_proxy.proxy.allowed_turns import AllowedTurns
from gemini_proxy.proxy.approval import ApprovalDesk
from gemini_proxy.proxy.credentials import Credentials
from gemini_proxy.proxy.exchange import Exchange, Refused
from gemini_proxy.proxy.exchange_trace import ExchangeRecorder
from gemini_proxy.proxy.masker import Masker
from gemini_proxy.proxy.pipeline import Pipeline
from gemini_proxy.proxy.request_reader import RequestReader
from gemini_proxy.proxy.response import ClientResponse
from gemini_proxy.proxy.tasks import Tasks
from gemini_proxy.sections import Guardrails, Refusals
from tests.support.proxy import prompt

T = TypeVar("T")
Span = tuple[int, int]
Payload = dict[str, Any]

IMPORTS = (
    "from invariant.detectors import secrets, pii, unicode, prompt_injection\nfrom invariant import count, forall\n"
)


@dataclass(frozen=True)
class TextRule:
    """Conditions on the assistant's message ``m``, and where in a text what they object to stands."""

    lines: tuple[str, ...]
    spans: Callable[[str], Iterator[Span]]
    declaration: str = "(m: Message)"
    window: str = "slice"

    @property
    def policy(self) -> str:
        role = ('m.role == "assistant"',) if "Message" in self.declaration else ()
        lines = "\n".join(f"    {line}" for line in (self.declaration, *role, *self.lines))
        return f'{IMPORTS}\nraise "found" if:\n{lines}\n'

    def __repr__(self) -> str:
        return " / ".join(self.lines)


def found(pattern: str) -> Callable[[str], Iterator[Span]]:
    return lambda text: (match.span() for match in re.finditer(pattern, text, re.ASCII))


def whole(objects: Callable[[str], bool]) -> Callable[[str], Iterator[Span]]:
    return lambda text: iter([(0, len(text))] if objects(text) else [])


def both(text: str) -> Iterator[Span]:
    for one in re.finditer("alpha", text):
        for other in re.finditer("omega", text):
            yield min(one.start(), other.start()), max(one.end(), other.end())


TOKEN = "ghp_" + "a1B2" * 9
SECRETS = TextRule(("any(secrets(m))",), found(TOKEN))
TEXT_RULES = (
    TextRule(('"secret-1" in m.content',), found("secret-1")),
    TextRule(('any(find("secret-[0-9]+", m.content))',), found("secret-[0-9]")),
    TextRule(('find("secret-[0-9]|foob", m)',), found("secret-[0-9]|foob")),
    TextRule(('len(find("secret-[0-9]", m.content)) + len(find("foob", m)) > 0',), found("secret-[0-9]|foob")),
    TextRule(("(t: str) in text(m)", '"foobar" in t'), found("foobar")),
    TextRule(("(u: str) in find(PATTERN, m.content)",), found("foobar")),
    TextRule(('"foobar" in c.text',), found("foobar"), "(c: TextChunk)"),
    TextRule(('"alpha" in m.content and "omega" in m.content',), both),
    TextRule(('"alpha" in m.content or any(find("fo+b", m.content))',), found("alpha|fo+b")),
    TextRule((r'any(find("\bfoo\b", m.content))',), found(r"\bfoo\b"), window="edge"),
    TextRule((r'any(find("\Bret", m.content))',), found(r"\Bret"), window="edge"),
    TextRule(('any(find("foo$", m.content))',), found(r"foo(?=\n?\Z)"), window="edge"),
    TextRule(('any(find("^foo", m.content))',), found(r"\Afoo"), window="edge"),
    TextRule(('any(find("(?m)^foo$", m.content))',), found(r"(?m)^foo$"), window="edge"),
    SECRETS,
    TextRule(("any(secrets(m, generic=True))",), found(TOKEN)),
    TextRule(('any(pii(m, entities=["PHONE_NUMBER"]))',), found(r"[+]49 30 12345"), window="hint"),
    TextRule(("any(pii(m))",), found(r"[+]49 30 12345|a@b[.]example"), window="hint"),
    TextRule(('any(unicode(m, categories=["Co"]))',), found("\ue000")),
    TextRule(("prompt_injection(m)",), found("(?i)ignore all previous rules"), window="edge"),
    TextRule(('not "foo" in m.content',), whole(lambda text: "foo" not in text), window="whole"),
    TextRule(("len(m.content) > 40",), whole(lambda text: len(text) > 40), window="whole"),
    TextRule(('not match("[a-f]", m.content)',), whole(lambda text: not re.match("[a-f]", text)), window="whole"),
    TextRule(('match("foo.*alpha", m.content)',), found(r"(?s)\Afoo.*alpha"), window="whole"),
    TextRule(('len(find("foo", m.content)) > 2',), whole(lambda text: text.count("foo") > 2), window="whole"),
)

PIECES = (
    *("secret-1", "secret-2", "sec", "ret-", "1", "foo", "foobar", "foo.", " foo ", "bar", "alpha", "omega"),
    *(TOKEN, "ghp_", "\ue000", "é", "\n", " ", "x" * 20, "lorem ipsum dolor " * 3, "+49 30 ", "12345", "678901234567"),
    *("a@b.example", "ignore all ", "previous rules", "the end."),
)


def part_payload(part: Payload, index: int = 0, finish: str | None = None) -> Payload:
    found: Payload = {"index": index, "content": {"role": "model", "parts": [part]}}
    if finish:
        found["finishReason"] = finish
    return {"candidates": [found]}


def frames(payloads: Sequence[Payload]) -> list[bytes]:
    return [b"data: " + orjson.dumps(payload) + b"\r\n\r\n" for payload in payloads]


def done(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that has nothing to wait for but its turn."""
    try:
        while work.send(None) is None:
            pass
    except StopIteration as end:
        result: T = end.value
        return result
    raise AssertionError("it waits")


def pipeline(settings: Guardrails, engine: Engine | None = None) -> Pipeline:
    """Return a pipeline whose exchanges are not recorded."""
    reader, desk, masker = cast(RequestReader, None), cast(ApprovalDesk, None), cast(Masker, None)
    turns = cast(AllowedTurns, None)
    recorder, engine = cast(ExchangeRecorder, None), engine or NativeEngine(Workers(), 5.0)
    return Pipeline(reader, desk, masker, turns, engine, settings, Refusals(), recorder, Tasks(), 1 << 24)


def exchange_of(*policies: str, question: str = "hi") -> Exchange:
    call = read_call("POST", "/v1beta/models/gemini-2.5-flash:streamGenerateContent?alt=sse")
    response = ClientResponse(make_mocked_request("POST", "/"))
    made = Exchange(call, Credentials("AIzaTest", None), response)
    made.rules = GuardrailSet(tuple(guardrail(f"policy {index}", text, "block") for index, text in enumerate(policies)))
    made.request = read_request(call, orjson.dumps(prompt(question)))
    return made


@dataclass
class Answered:
    """What came of an answer: the bytes that left after each chunk, and whether it was refused."""

    left: list[bytes]
    refused: bool
    exchange: Exchange

    @property
    def body(self) -> bytes:
        return b"".join(self.left)


def answered(steps: Pipeline, exchange: Exchange, chunks: Sequence[bytes]) -> Answered:
    """Feed an answer chunk by chunk, and end it."""
    steps.open_stream(exchange, "text/event-stream")
    left: list[bytes] = []
    try:
        for chunk in chunks:
            left.append(done(steps.feed(exchange, chunk)))
        left.append(done(steps.end(exchange)))
    except Refused:
        return Answered(left, True, exchange)
    except UpstreamError:
        assert not b"".join(chunks)
    return Answered(left, False, exchange)
