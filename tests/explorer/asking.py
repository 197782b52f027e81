"""Approvals to look at and to decide: of exchanges that wait, and made up."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from gemini_proxy.explorer.app_keys import APPROVALS
from gemini_proxy.traces.approvals import Approval, ApprovalRequest, Approvals
from tests.support.proxy import Proxy, prompt
from tests.support.upstream import call_part

PAYMENTS = """
raise "a payment" if:
    (c: ToolCall)
    c is tool:pay
"""
PAY = call_part("pay", "STOP", to="ACME", amount=12)
UNKNOWN = "0123456789abcdef"


async def asked_for(
    approvals: Approvals, owner: str, shown: Any = None, seconds: float = 60.0, **fields: Any
) -> Approval:
    """An approval that waits although no exchange does."""
    asked = {"asked": [{"tool": "pay", "arguments": {"to": "ACME"}}]} if shown is None else {"asked": shown}
    request = {"dataset": None, "trace": UNKNOWN, "guardrail": "payments", "message": "a payment", "subject": owner}
    return await approvals.open(ApprovalRequest(owner=owner, shown=asked, **{**request, **fields}), seconds)


@asynccontextmanager
async def waiting_call(proxy: Proxy, key: str) -> AsyncIterator[tuple[Approval, "asyncio.Task[tuple[int, bytes]]"]]:
    """A model call that waits for a person, and what its client gets once that is over."""
    async with aiohttp.ClientSession() as session:
        asking = asyncio.create_task(_call(session, proxy, key))
        async with asyncio.timeout(10):
            # What waits is in the database, and says nothing of itself.
            while not (found := await proxy.app[APPROVALS].latest(1, waiting=True)):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        yield found[0], asking
        asking.cancel()


async def _call(session: aiohttp.ClientSession, proxy: Proxy, key: str) -> tuple[int, bytes]:
    headers = {"x-goog-api-key": "AIzaTestKey", "invariant-authorization": f"Bearer {key}"}
    async with session.post(proxy.method(), json=prompt("Pay them"), headers=headers) as response:
        return response.status, await response.read()
