"""The alert rules and the dashboard: every metric and label they name exists in a running server's ``/metrics``."""

import json
import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from gemini_proxy.traces.trace import Outcome
from tests.conftest import StartProxy
from tests.support.proxy import prompt
from tests.support.upstream import ScriptedUpstream, candidate, unary

DEPLOY = Path(__file__).parents[2] / "deploy"
ALERTS = DEPLOY / "prometheus-alerts.yaml"
DASHBOARD = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
PROMTOOL = shutil.which("promtool")
GIVEN_BY_PROMETHEUS = {"instance", "job"}
WITHOUT_SAMPLES = {"gemini_proxy_push_failures_total": {"reason"}, "gemini_proxy_push_given_up_total": {"reason"}}
"""Of these there is none before something goes wrong; what labels they have is for their own tests."""
RULE = 'raise "no" if:\n    (m: Message)\n    "hunter2" in m.content\n'
USAGE = {"promptTokenCount": 7, "candidatesTokenCount": 5, "totalTokenCount": 12}


def alert_expressions() -> Iterator[str]:
    """Each ``expr`` of the rules, on one line or several."""
    for match in re.finditer(r"^( +)expr: (?:\|\n((?:\1 {2}.*\n)+)|(.+)\n)", ALERTS.read_text(), re.MULTILINE):
        yield match[2] or match[3]


def dashboard_expressions() -> Iterator[str]:
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            yield target["expr"]


def metrics_of(expression: str) -> Iterator[tuple[str, set[str], str]]:
    """The metrics that an expression names, with the labels they are selected by, and their selector."""
    for name, selector in re.findall(r"\b((?:gemini_proxy|process)_\w+)(?:\{(.*?)\})?", expression):
        yield name, set(re.findall(r"(\w+)[=!]~?\"", selector)), selector


def labels_grouped_by(expression: str) -> set[str]:
    """The labels that results are told apart by."""
    groups = re.findall(r"\b(?:by|on|without)\s*\(([^)]*)\)", expression)
    return {label.strip() for group in groups for label in group.split(",")}


@pytest.fixture
async def labels(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> Mapping[str, set[str]]:
    """The metrics of a server that pushes its traces and has refused one of two requests, with their labels."""
    push = {"url": "http://127.0.0.1:9", "api_key": "inv-" + "0" * 32}
    alert = {"name": "a", "on": ["budget_spent"], "url": "http://127.0.0.1:9"}
    proxy = await start_proxy(policy=RULE, explorer={"push": push}, alerts=[alert])
    upstream.reply(unary({**candidate("fine", "STOP"), "usageMetadata": USAGE}))
    for text in ("hello", "hunter2"):
        async with client.post(proxy.method(), json=prompt(text)) as response:
            await response.read()
    async with client.get(f"{proxy.url}/metrics") as response:
        families = text_string_to_metric_families(await response.text())
    found: dict[str, set[str]] = defaultdict(set, {name: set(known) for name, known in WITHOUT_SAMPLES.items()})
    for family in families:
        for sample in family.samples:
            found[sample.name] |= sample.labels.keys()
    return found


async def test_every_metric_and_label_exists(labels: Mapping[str, set[str]]) -> None:
    """In the rules and on the dashboard; grouped by too. How an exchange ends is one of the ways there are."""
    expressions = [*alert_expressions(), *dashboard_expressions()]
    assert len(expressions) > 35
    for expression in expressions:
        known = set(GIVEN_BY_PROMETHEUS)
        named = list(metrics_of(expression))
        assert named, expression
        for name, selected, selector in named:
            assert name in labels, f"{name} in {expression}"
            assert selected <= labels[name] | GIVEN_BY_PROMETHEUS, expression
            known |= labels[name]
            for outcomes in re.findall(r'outcome=~?"([^"]*)"', selector):
                assert set(outcomes.split("|")) <= set(Outcome), expression
        assert labels_grouped_by(expression) <= known, expression


def test_what_the_metrics_warn_of_has_an_alert() -> None:
    """Each alert has a severity and says what it is; what a person has to know of is among them."""
    text = ALERTS.read_text()
    names = re.findall(r"- alert: (\w+)", text)
    assert (
        len(names)
        == len(set(names))
        == text.count("severity:")
        == text.count("summary:")
        == len([*alert_expressions()])
    )
    said = "".join(alert_expressions())
    for metric in (
        *("traces_dropped_total", "task_up", "exchanges_total", "guardrail_refusals_total", "traces_waiting"),
        *("guardrail_duration_seconds_bucket", "push_oldest_seconds"),
    ):
        assert f"gemini_proxy_{metric}" in said


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed")
def test_prometheus_takes_the_rules() -> None:
    done = subprocess.run([str(PROMTOOL), "check", "rules", str(ALERTS)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_dashboard_is_one() -> None:
    """Panels with names of their own, none over another, all for the source and the servers that are chosen."""
    panels: list[dict[str, Any]] = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        x, y, width, height = (panel["gridPos"][key] for key in "xywh")
        cells = {(column, line) for column in range(x, x + width) for line in range(y, y + height)}
        assert x + width <= 24 and not cells & taken, panel["title"]
        taken |= cells
        for target in panel.get("targets", ()):
            assert target["datasource"]["uid"] == "${datasource}" and "$instance" in target["expr"]
    assert [variable["name"] for variable in DASHBOARD["templating"]["list"]] == ["datasource", "instance"]
