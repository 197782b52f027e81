"""Log lines as they are written: their fields, their tracebacks, and what never stands in them."""

import json
import logging
from collections.abc import Callable

import aiohttp
import pytest

from gemini_proxy.guardrails.engine import Check
from gemini_proxy.guardrails.verdict import Verdict
from gemini_proxy.server.logs import StormFilter, formatter
from tests.conftest import StartProxy
from tests.support.proxy import prompt
from tests.support.upstream import ScriptedUpstream, candidate, unary

CANARIES = ("AIzaCANARY0123456789", "inv-CANARY0123456789", "AIza" + "C" * 35, "CANARY that a user wrote")
NO_DUBLIN = """
raise "Dublin detected in the response" if:
    (m: Message)
    m.role == "assistant"
    "Dublin" in m.content
"""


def record(text: str, *values: object, error: BaseException | None = None, **fields: object) -> logging.LogRecord:
    info = (type(error), error, error.__traceback__) if error else None
    made = logging.LogRecord("gemini_proxy.test", logging.INFO, __file__, 1, text, values, info)
    made.__dict__.update(fields)
    return made


def written(made: logging.LogRecord, *, as_text: bool = False) -> str:
    return formatter(as_text=as_text).format(made)


def raised(fail: Callable[[], None]) -> BaseException:
    try:
        fail()
    except BaseException as error:
        return error
    raise AssertionError


def test_what_a_call_adds_are_fields() -> None:
    """In JSON keys of their own, on a terminal name and value."""
    made = record("exchange ended", trace_id="7", outcome="refused_request", status=200)
    line = json.loads(written(made))
    assert {
        "event": "exchange ended",
        "trace_id": "7",
        "outcome": "refused_request",
        "status": 200,
    }.items() <= line.items()
    assert (line["level"], line["logger"]) == ("info", "gemini_proxy.test")
    text = written(made, as_text=True)
    assert "exchange ended" in text and "trace_id=7" in text and "status=200" in text and "{" not in text


@pytest.mark.parametrize("canary", CANARIES)
@pytest.mark.parametrize("as_text", [False, True])
def test_an_error_comes_with_its_traceback_and_without_its_text(canary: str, as_text: bool) -> None:
    """Of each error that led to it too, and of those in a group: the places, and nothing of what they quote."""

    def read_request() -> None:
        raise KeyError(canary)

    def check_request() -> None:
        try:
            read_request()
        except KeyError as error:
            raise ExceptionGroup(canary, [ValueError(canary), OSError(1, canary)]) from error

    line = written(record("unexpected error", error=raised(check_request)), as_text=as_text)
    for name in ("read_request", "KeyError", "which led to", "check_request", "ExceptionGroup", "ValueError"):
        assert name in line
    assert "CANARY" not in line and canary not in line


def test_a_deep_recursion_is_a_short_traceback() -> None:
    def deeper() -> None:
        deeper()

    assert len(written(record("unexpected error", error=raised(deeper)))) < 10_000


def test_asyncio_quotes_nobody() -> None:
    """Its lines show the task and, in that, the text of the exception."""
    made = record(
        "Task exception was never retrieved\nfuture: <Task exception=ValueError('CANARY')>", error=ValueError("CANARY")
    )
    made.name = "asyncio"
    line = written(made)
    assert "CANARY" not in line and "never retrieved" in line and "ValueError" in line


@pytest.mark.parametrize("as_text", [False, True])
def test_keys_and_control_characters_stay_out_of_every_field(as_text: bool) -> None:
    key = "AIza" + "C" * 35
    line = written(record("said %s", key, reason=f"key {key}", rule="a\x1b[31m\nb"), as_text=as_text)
    assert key not in line and "\x1b" not in line and "\n" not in line


def test_a_storm_is_counted() -> None:
    """Lines that differ in their fields are of one kind."""
    storm = StormFilter()
    passed = [made for number in range(100) if storm.filter(made := record("request refused", trace_id=str(number)))]
    assert len(passed) == 20


async def test_an_exchange_that_is_refused_is_a_line_with_fields(
    start_proxy: StartProxy,
    upstream: ScriptedUpstream,
    client: aiohttp.ClientSession,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    proxy = await start_proxy(policy=NO_DUBLIN)
    upstream.reply(unary(candidate("Dublin", "STOP")))
    async with client.post(proxy.method(), json=prompt("Where?")) as response:
        assert response.status == 400
    [line] = [json.loads(written(made)) for made in caplog.records if made.getMessage().startswith("exchange")]
    trace = await proxy.trace()
    expected = {"trace_id": trace.id, "outcome": "refused_response", "status": 200, "rule": "test policy"}
    assert expected.items() <= line.items()
    assert trace.id not in line["event"]


class BrokenEngine:
    """Fails in a way that nobody foresaw, because of what was said."""

    async def run(self) -> None:
        """Nothing is to be loaded."""

    def open_session(self, check: Check, overlap: int) -> None:
        return None

    def check(self, check: Check) -> Verdict:
        raise RuntimeError(str(check.messages)) from ValueError(str(check.messages))


async def test_an_unexpected_error_is_logged_with_its_place(
    start_proxy: StartProxy, client: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    """The client gets Google's error without a word of it; the log says where it happened, and to which trace."""
    proxy = await start_proxy(policy=NO_DUBLIN, engine=BrokenEngine())
    async with client.post(proxy.method(), json=prompt("CANARY")) as response:
        assert response.status == 500
        assert "CANARY" not in await response.text()
    [line] = [written(made) for made in caplog.records if made.levelno == logging.ERROR]
    assert "in check" in line and "RuntimeError" in line and "ValueError" in line and "CANARY" not in line
    trace = await proxy.eventually(lambda trace: True)
    assert json.loads(line)["trace_id"] == trace.id
