"""Post the messages of alerts: their JSON, their text for a chat, and their signature. aiohttp's errors end here."""

import asyncio
import base64
import hashlib
import hmac
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

import aiohttp
import orjson

from gemini_proxy.guardrails.service_client import service_session
from gemini_proxy.traces.alerts.rules import AlertMessage, AlertRule, Kind
from gemini_proxy.traces.push.answers import Answer, Delivered, Failed, Failure, read_status
from gemini_proxy.traces.redact import redact

TIMEOUT: Final = 10.0
"""Seconds for one message, connecting included."""


class Webhooks:
    """Post messages. An asynchronous context manager; ``public_url`` is where the pages are, for links to them."""

    def __init__(self, public_url: str | None, *, timeout: float = TIMEOUT) -> None:
        self._public_url = public_url
        self._timeout = timeout
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> "Webhooks":
        self._session = service_session()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def send(self, message: AlertMessage, rule: AlertRule) -> Answer:
        """Post a message once; without raising. Only the status of the response is read."""
        try:
            async with asyncio.timeout(self._timeout):
                return await self._post(message, rule)
        except TimeoutError:
            return Failed(Failure.TIMEOUT)
        # ValueError: a host name that cannot be sent.
        except (aiohttp.ClientError, OSError, ValueError):
            return Failed(Failure.UNREACHABLE)

    async def _post(self, message: AlertMessage, rule: AlertRule) -> Answer:
        assert self._session is not None
        body, now = body_of(message, rule, self._public_url), time.time()
        headers = _headers_of(message, rule, body, now)
        async with self._session.post(rule.url, headers=headers, data=body, allow_redirects=False) as response:
            if 200 <= response.status < 300:
                return Delivered()
            return read_status(response.status, response.headers.get("retry-after"), now)


_LONGEST: Final = 200
"""Characters of a name in a text: those of datasets, guardrails and tools are others' words."""
_NOTHING: Final = "\u200b"
"""A space without width: behind it chats see no mention of a person, and no link."""
_PAGES: Final[Mapping[Kind, str]] = {
    "approval_waiting": "/explorer/approvals",
    "refusals": "/explorer/traffic?outcome=refused",
    "upstream_errors": "/explorer/traffic?outcome=upstream_error",
    "unrecorded_traces": "/explorer/dashboard",
    "budget_spent": "/explorer/dashboard",
}


def body_of(message: AlertMessage, rule: AlertRule, public_url: str | None) -> bytes:
    """Return what is posted: with a link to a page of ``public_url``, which asks to sign in, if there is one."""
    link = _link(message, public_url)
    text = _text(message)
    if rule.format == "slack":
        said = _for_chat(text.replace("@", f"@{_NOTHING}").replace("](", f"]{_NOTHING}("))
        return orjson.dumps({"text": f"{said}\n<{_for_chat(link)}|Open>" if link else said})
    return orjson.dumps(
        {
            "type": message.kind,
            "id": message.id,
            "alert": message.alert,
            "key": redact(message.key),
            "count": message.count,
            "since": _time(message.since),
            "timestamp": _time(message.created),
            "text": text,
            "url": link,
            "example": redact(dict(message.example)),
        }
    )


def _headers_of(message: AlertMessage, rule: AlertRule, body: bytes, now: float) -> dict[str, str]:
    """Return the headers of a message as Standard Webhooks has them: its id and the time, and a signature over both and
    the body if the alert has a secret."""
    at = str(int(now))
    headers = {
        "content-type": "application/json",
        "user-agent": "gemini-proxy",
        "webhook-id": message.id,
        "webhook-timestamp": at,
    }
    if rule.signing_secret is not None:
        headers["webhook-signature"] = signature(rule.signing_secret, message.id, at, body)
    return headers


def signature(secret: bytes, message_id: str, timestamp: str, body: bytes) -> str:
    """Return the signature ``v1`` of Standard Webhooks."""
    signed = b".".join((message_id.encode(), timestamp.encode(), body))
    return f"v1,{base64.b64encode(hmac.digest(secret, signed, hashlib.sha256)).decode()}"


def _link(message: AlertMessage, public_url: str | None) -> str | None:
    if public_url is None:
        return None
    trace = message.example.get("trace")
    is_one = message.count == 1 and trace and message.kind in ("refusals", "upstream_errors")
    if is_one:
        return f"{public_url}/explorer/traces/{trace}"
    asked = message.example.get("approval") if message.count == 1 else None
    return f"{public_url}{_PAGES[message.kind]}{f'#{asked}' if asked else ''}"


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")


def _text(message: AlertMessage) -> str:
    said = _SENTENCES[message.kind](message)
    if dataset := message.example.get("dataset"):
        said += f", {'' if message.count == 1 else 'the last one '}in dataset {_name(dataset)}"
    if message.count > 1:
        said += f", since {_time(message.since)}"
    return f"gemini-proxy: {said}."


def _approvals(message: AlertMessage) -> str:
    tools = ", ".join(map(_name, message.example.get("tools", ())))
    called = f" to call {tools}" if tools else ""
    if message.count == 1:
        return f"an exchange waits for approval{called} ({_name(message.key)})"
    return f"approval was asked for {message.count} times ({_name(message.key)}){f', last{called}' if called else ''}"


def _refusals(message: AlertMessage) -> str:
    return f"{_counted(message.count, 'exchange was', 'exchanges were')} refused by {_name(message.key)}"


def _upstream_errors(message: AlertMessage) -> str:
    what = f"with HTTP {message.key}" if message.key.isdecimal() else f"({_name(message.key).replace('_', ' ')})"
    return f"{_counted(message.count, 'call', 'calls')} to the upstream failed {what}"


def _unrecorded(message: AlertMessage) -> str:
    return f"{_counted(message.count, 'trace was', 'traces were')} not recorded"


def _budgets(message: AlertMessage) -> str:
    limit = _name(message.key).replace("_", " ")
    return f"the budget of {limit} per day is spent, which was met {_counted(message.count, 'time', 'times')}"


_SENTENCES: Final[Mapping[Kind, Callable[[AlertMessage], str]]] = {
    "approval_waiting": _approvals,
    "refusals": _refusals,
    "upstream_errors": _upstream_errors,
    "unrecorded_traces": _unrecorded,
    "budget_spent": _budgets,
}


def _counted(count: int, one: str, several: str) -> str:
    return f"{count:,} {one if count == 1 else several}"


def _name(value: Any) -> str:
    """Return a name on one line, cut, without keys."""
    shown = "".join(character if character.isprintable() else " " for character in str(redact(str(value))))
    return shown if len(shown) <= _LONGEST else f"{shown[:_LONGEST]}…"


def _for_chat(text: str | None) -> str:
    """Return text with the characters escaped that are markup to Slack."""
    return (text or "").replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
