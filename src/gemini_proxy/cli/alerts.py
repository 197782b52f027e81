"""``gemini-proxy alerts``: send a sample message to the webhooks of alerts."""

import asyncio
import time

import click

from gemini_proxy.cli.settings import Settings
from gemini_proxy.sections import alert_rule
from gemini_proxy.traces.alerts.rules import AlertMessage, AlertRule
from gemini_proxy.traces.alerts.webhook import Webhooks
from gemini_proxy.traces.push.answers import Answer, Delivered, Failed


@click.group()
def alerts() -> None:
    """Send a sample message of each alert."""


@alerts.command()
@click.argument("name", required=False)
@click.pass_obj
def test(settings: Settings, name: str | None) -> None:
    """Post a sample to the webhook of the alert NAME, or to those of all. Exit code 1 if one does not accept it."""
    config = settings.config
    chosen = [alert for alert in config.alerts if name in (None, alert.name)]
    if not chosen:
        raise click.ClickException(f"there is no alert {name}" if name else "the configuration has no [[alerts]]")
    if missing := [alert.name for alert in chosen if alert.url is None]:
        raise click.ClickException(
            f"no URL here for {', '.join(missing)}: set it, or run this command where the service's credentials are "
            "available"
        )
    rules = list(map(alert_rule, chosen))
    answers = asyncio.run(_send(rules, config.explorer.public_url))
    for rule, answer in zip(rules, answers, strict=True):
        click.echo(f"{rule.name}: {_told(answer)}")
    if not all(isinstance(answer, Delivered) for answer in answers):
        raise SystemExit(1)


async def _send(rules: list[AlertRule], public_url: str | None) -> list[Answer]:
    async with Webhooks(public_url) as webhooks:
        return [await webhooks.send(_sample(rule), rule) for rule in rules]


def _sample(rule: AlertRule) -> AlertMessage:
    """Return a message of the first kind that the alert sends."""
    kind, now = min(rule.on), time.time()
    key = min(rule.guardrails, default="sample")
    return AlertMessage(0, f"msg_sample{int(now)}", rule.name, kind, key, 1, now, now, now, 1, {"dataset": "sample"})


def _told(answer: Answer) -> str:
    if isinstance(answer, Delivered):
        return "accepted"
    return f"failed: {answer.reason}" if isinstance(answer, Failed) else f"rejected with HTTP {answer.status}"
