"""``/metrics`` and what ``/readyz`` says of the push queue."""

import asyncio
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
from aiohttp.test_utils import make_mocked_request
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from gemini_proxy.gemini.calls import read_call
from gemini_proxy.gemini.refusal import Refusal
from gemini_proxy.guardrails.rules import HEADER_NAME, guardrail
from gemini_proxy.guardrails.verdict import Violation
from gemini_proxy.proxy.credentials import Credentials
from gemini_proxy.proxy.exchange import Exchange
from gemini_proxy.proxy.exchange_metrics import MAX_LEARNT, OTHER, ExchangeMetrics, Histogram
from gemini_proxy.proxy.response import ClientResponse
from gemini_proxy.server.app_keys import STORAGE
from gemini_proxy.traces.keys import Keys
from gemini_proxy.traces.trace import Outcome
from tests.conftest import StartProxy
from tests.support.explorer_service import KEY, Status, explorer_double, refusing
from tests.support.keys import GEMINI_KEYS, each_kind
from tests.support.proxy import Proxy, prompt
from tests.support.upstream import ScriptedUpstream, candidate, sse, stream, unary

POLICY = 'raise "no magic" if:\n    (msg: Message)\n    "abracadabra" in msg.content\n'
USAGE = {"promptTokenCount": 7, "candidatesTokenCount": 5, "thoughtsTokenCount": True, "cachedContentTokenCount": -1}

Figures = dict[str, float]


async def scrape(client: aiohttp.ClientSession, proxy: Proxy) -> Figures:
    """Every sample, as ``name{label=value,...}``."""
    async with client.get(f"{proxy.url}/metrics") as response:
        assert response.status == 200
        text = await response.text()
    return {
        sample.name
        + "{"
        + ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
        + "}": sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def ask(client: aiohttp.ClientSession, url: str, text: str, **headers: str) -> None:
    async with client.post(url, json=prompt(text), headers=headers) as response:
        await response.read()


def push_to(url: str, **keys: Any) -> Mapping[str, Any]:
    return {"push": {"url": url, "api_key": KEY, **keys}}


async def test_exchanges_are_counted_by_method_and_outcome_and_timed(
    start_proxy: StartProxy, client: aiohttp.ClientSession, upstream: ScriptedUpstream
) -> None:
    proxy = await start_proxy(policy=POLICY)
    upstream.reply(unary({**candidate("fine", "STOP"), "usageMetadata": USAGE}))
    await ask(client, proxy.method(), "hello")
    await ask(client, proxy.method(), "abracadabra")
    upstream.reply(stream(*sse(candidate("fine", "STOP"))))
    await ask(client, proxy.stream, "hello")
    figures = await scrape(client, proxy)
    prefix = "gemini_proxy_exchanges_total"
    assert {name: value for name, value in figures.items() if name.startswith(prefix)} == {
        prefix + "{method=generateContent,outcome=completed}": 1,
        prefix + "{method=generateContent,outcome=refused_request}": 1,
        prefix + "{method=streamGenerateContent,outcome=completed}": 1,
    }
    assert figures["gemini_proxy_exchange_duration_seconds_count{stream=false}"] == 2
    assert figures["gemini_proxy_exchange_duration_seconds_bucket{le=+Inf,stream=true}"] == 1
    assert figures["gemini_proxy_time_to_first_byte_seconds_count{}"] == 3
    assert figures["gemini_proxy_guardrail_duration_seconds_count{}"] == 3
    assert figures["gemini_proxy_guardrail_refusals_total{rule=test policy}"] == 1
    assert figures["gemini_proxy_tokens_total{type=prompt}"] == 7
    assert figures["gemini_proxy_tokens_total{type=candidates}"] == 5
    assert not [name for name in figures if "type=thoughts" in name or "type=cached" in name]
    assert figures["gemini_proxy_in_flight_requests{}"] == 1
    assert figures["gemini_proxy_traces_dropped_total{}"] == figures["gemini_proxy_traces_waiting{}"] == 0
    assert figures["gemini_proxy_log_rules_given_up_total{}"] == 0
    assert [name for name in figures if name.startswith("gemini_proxy_build_info{python=")]
    assert not [name for name in figures if "push" in name]
    assert 0 < figures["process_open_fds{}"] < figures["process_max_fds{}"]
    assert figures["process_resident_memory_bytes{}"] > 1_000_000


async def test_two_proxies_in_one_process_count_for_themselves(
    start_proxy: StartProxy, client: aiohttp.ClientSession, upstream: ScriptedUpstream
) -> None:
    upstream.reply(unary(candidate("fine", "STOP")))
    first, second = await start_proxy(), await start_proxy()
    await ask(client, first.method(), "hello")
    counted = "gemini_proxy_exchanges_total{method=generateContent,outcome=completed}"
    assert (await scrape(client, first))[counted] == 1
    assert counted not in await scrape(client, second)


@each_kind
async def test_no_label_holds_a_key_or_what_a_client_says(
    start_proxy: StartProxy, client: aiohttp.ClientSession, upstream: ScriptedUpstream, key: str
) -> None:
    upstream.reply(unary(candidate("fine", "STOP")))
    proxy = await start_proxy(access={"mode": "open"})
    secrets = [key, "inv-" + "5" * 64, "canary-model", "canary-dataset", "canary-text"]
    gemini, invariant, model, dataset, text = secrets
    url = f"{proxy.url}/api/v1/gateway/{dataset}/gemini/v1beta/models/{model}:generateContent"
    policy = f'raise "{text}" if: (m: Message); "{text}" in m.content'.encode("unicode_escape").decode()
    headers = {"x-goog-api-key": gemini, "invariant-authorization": f"Bearer {invariant}"}
    await ask(client, url, text, **headers)
    await ask(client, url, text, **headers, **{HEADER_NAME: policy.replace("; ", "\\n    ")})
    async with client.get(f"{proxy.url}/metrics") as response:
        shown = await response.text()
    assert "generateContent" in shown
    assert [secret for secret in secrets if secret in shown] == []


async def test_the_push_queue_is_seen_in_metrics_and_readyz_and_readiness_does_not_depend_on_it(
    start_proxy: StartProxy, client: aiohttp.ClientSession, upstream: ScriptedUpstream
) -> None:
    upstream.reply(unary(candidate("fine", "STOP")))
    with refusing() as nowhere:
        proxy = await start_proxy(explorer=push_to(nowhere))
        await ask(client, proxy.method(), "hello")
        async with asyncio.timeout(10):
            while not (await scrape(client, proxy))["gemini_proxy_push_failures_total{reason=unreachable}"]:
                pass
        figures = await scrape(client, proxy)
        assert figures["gemini_proxy_push_queue_traces{}"] == 1
        assert 0 < figures["gemini_proxy_push_oldest_seconds{}"] < 10
        assert figures["gemini_proxy_push_delivered_total{}"] == 0
        assert figures["gemini_proxy_push_given_up_total{reason=rejected}"] == 0
        async with client.get(f"{proxy.url}/readyz") as response:
            said = await response.json()
    assert response.status == 200 and said["status"] == "ready"
    assert said["push"].pop("oldest_seconds") > 0
    assert said["push"] == {"waiting": 1, "last_error": "unreachable"}


async def test_an_exchange_is_pushed_with_what_its_logging_rules_found_and_counted(
    start_proxy: StartProxy, client: aiohttp.ClientSession, upstream: ScriptedUpstream
) -> None:
    upstream.reply(unary(candidate("fine", "STOP")))
    async with explorer_double() as explorer:
        proxy = await start_proxy(log_policy=POLICY, explorer=push_to(explorer.url))
        await ask(client, proxy.method(), "abracadabra")
        async with asyncio.timeout(10):
            await explorer.arrived.wait()
            while not (await scrape(client, proxy))["gemini_proxy_push_delivered_total{}"]:
                pass
        trace = await proxy.trace()
    [body] = explorer.stored
    assert [one["content"] for one in body["annotations"][0]] == ["no magic"]
    assert explorer.received == {trace.id: 1}
    assert b"AIzaTestKey" not in orjson.dumps(body)


async def test_rejections_are_counted(
    start_proxy: StartProxy, client: aiohttp.ClientSession, upstream: ScriptedUpstream
) -> None:
    upstream.reply(unary(candidate("fine", "STOP")))
    async with explorer_double() as explorer:
        explorer.behaviour = Status(422)
        proxy = await start_proxy(explorer=push_to(explorer.url))
        await ask(client, proxy.method(), "hello")
        async with asyncio.timeout(10):
            while not (await scrape(client, proxy))["gemini_proxy_push_given_up_total{reason=rejected}"]:
                pass
        assert (await scrape(client, proxy))["gemini_proxy_push_queue_traces{}"] == 0


async def test_a_database_that_fails_takes_the_queues_lines_and_no_others(
    start_proxy: StartProxy, client: aiohttp.ClientSession
) -> None:
    with refusing() as nowhere:
        proxy = await start_proxy(explorer=push_to(nowhere))
        push = proxy.app[STORAGE].push
        assert push is not None
        await proxy.store.close()
        figures = await scrape(client, proxy)
    assert "gemini_proxy_push_delivered_total{}" in figures
    assert "gemini_proxy_push_queue_traces{}" not in figures


async def status(client: aiohttp.ClientSession, url: str, **headers: str) -> int:
    async with client.get(url, headers=headers) as response:
        text = await response.text()
        assert (response.status == 200) == ("gemini_proxy_build_info" in text)
        return response.status


@pytest.mark.parametrize("spends", [False, True])
async def test_figures_are_for_whoever_has_a_key_where_keys_are_asked_for(
    start_proxy: StartProxy, client: aiohttp.ClientSession, spends: bool
) -> None:
    """Not for strangers, from this machine either: they may come by a server in front. Readiness is for everyone."""
    upstream = {"api_key": "AIzaOperator"} if spends else {}
    proxy = await start_proxy(access={"mode": "keys"}, upstream=upstream)
    record, key = await Keys(proxy.store.database).add("prometheus")
    url = f"{proxy.url}/metrics"
    assert await status(client, url) == 401
    for wrong in ("", "Bearer", "Bearer ", key, f"Basic {key}", "Bearer inv-wrong", f"Bearer {key}x", "Bearer \u00e4"):
        assert await status(client, url, authorization=wrong) == 401
    assert await status(client, url, authorization=f"Bearer {key}") == 200
    assert await status(client, url, authorization=f"bearer {key}") == 200
    async with client.get(f"{proxy.url}/readyz") as ready, client.get(f"{proxy.url}/healthz") as alive:
        assert ready.status == alive.status == 200
    await Keys(proxy.store.database).revoke(record.id)
    assert await status(client, url, authorization=f"Bearer {key}") == 401


async def test_figures_stay_while_the_database_is_away(start_proxy: StartProxy, client: aiohttp.ClientSession) -> None:
    """For who had them last; nobody else is let in unseen."""
    proxy = await start_proxy(access={"mode": "keys"})
    _, key = await Keys(proxy.store.database).add("prometheus")
    _, other = await Keys(proxy.store.database).add("other")
    url = f"{proxy.url}/metrics"
    assert await status(client, url, authorization=f"Bearer {key}") == 200
    await proxy.store.close()
    assert await status(client, url, authorization=f"Bearer {key}") == 200
    assert await status(client, url, authorization=f"Bearer {other}") == 503
    assert await status(client, url, authorization="Bearer inv-wrong") == 503
    assert await status(client, url) == 401


@pytest.mark.parametrize("enabled", [True, False])
async def test_open_figures_are_for_the_names_of_this_machine(
    start_proxy: StartProxy, client: aiohttp.ClientSession, enabled: bool
) -> None:
    """A foreign page whose name leads here reads none."""
    proxy = await start_proxy(explorer={"enabled": enabled, "hosts": ["mine.example"]})
    url = f"{proxy.url}/metrics"
    assert await status(client, url) == 200
    assert await status(client, url, host="mine.example:8080") == 200
    assert await status(client, url, host="evil.example") == 421


def exchange(rule: str = "", usage: Any = None) -> Exchange:
    call = read_call("POST", "/v1beta/models/m:generateContent")
    made = Exchange(call, Credentials("g", None), ClientResponse(make_mocked_request("POST", "/")))
    made.end(Outcome.COMPLETED)
    if rule:
        made.violations.append(Violation(("x",), {}, (), guardrail(rule, POLICY, "block")))
        made.refusal = Refusal(phase="request", messages=("x",), errors=(), guardrail=rule)
    if usage is not None:
        made.merger.add({"usageMetadata": usage})
    return made


def test_names_of_rules_are_bounded_and_the_operators_are_always_named() -> None:
    metrics = ExchangeMetrics(["files.gr"])
    for number in range(MAX_LEARNT + 5):
        metrics.add(exchange(f"rule {number}"))
    metrics.add(exchange("files.gr"))
    assert len(metrics.refusals) == MAX_LEARNT + 2
    assert (metrics.refusals["files.gr"], metrics.refusals[OTHER]) == (1, 5)


@pytest.mark.parametrize("name", ["x" * 65, "two\nlines", *GEMINI_KEYS, "inv-" + "5" * 64])
def test_what_is_no_name_of_a_rule_is_no_label(name: str) -> None:
    metrics = ExchangeMetrics()
    metrics.add(exchange(name))
    assert metrics.refusals == {OTHER: 1}


def test_where_names_are_not_to_be_learnt_only_the_operators_are_shown() -> None:
    metrics = ExchangeMetrics(["files.gr"], learns=0)
    for name in ("files.gr", "mine", HEADER_NAME):
        metrics.add(exchange(name))
    assert metrics.refusals == {"files.gr": 1, OTHER: 1, HEADER_NAME: 1}


@given(st.lists(st.floats(0, 1000)))
def test_a_histogram_counts_each_observation_once(values: list[float]) -> None:
    """Buckets are cumulative, ``le`` is inclusive, and the last one holds all."""
    bounds = (0.1, 1.0, 10.0)
    histogram = Histogram(bounds)
    for value in values:
        histogram.observe(value)
    assert histogram.buckets == [
        *((str(bound), float(sum(value <= bound for value in values))) for bound in bounds),
        ("+Inf", float(len(values))),
    ]


def test_counting_an_exchange_costs_microseconds() -> None:
    """Far below a hundredth of what an exchange costs; the bound is generous for a machine that is busy."""
    metrics, one = ExchangeMetrics(), exchange(usage=USAGE)
    best = min(_seconds(metrics, one, 200) for _ in range(20)) / 200
    assert best < 50e-6


def _seconds(metrics: ExchangeMetrics, one: Exchange, times: int) -> float:
    started = time.perf_counter()
    for _ in range(times):
        metrics.add(one)
    return time.perf_counter() - started


async def test_the_document_lists_every_metric_as_it_is(
    start_proxy: StartProxy, client: aiohttp.ClientSession, upstream: ScriptedUpstream
) -> None:
    """docs/operations.md has each with its type and its meaning, and no other."""
    with refusing() as nowhere:
        proxy = await start_proxy(explorer=push_to(nowhere))
        await ask(client, proxy.method(), "hello")
        async with client.get(f"{proxy.url}/metrics") as response:
            text = await response.text()
    types = dict(re.findall(r"^# TYPE (\S+) (\w+)$", text, re.MULTILINE))
    given = {(name, types[name], help) for name, help in re.findall(r"^# HELP (\S+) (.*)$", text, re.MULTILINE)}
    document = (Path(__file__).parents[2] / "docs" / "operations.md").read_text().partition("\n## Metrics\n")[2]
    listed = re.findall(r"^\| `(\w+)` \| (\w+) \| (.*) \|$", document, re.MULTILINE)
    # The lines that are missing in the document, then those that are wrong in it.
    assert (given - {*listed}, {*listed} - given) == (set(), set())
    assert len(listed) == len(given) > 20
