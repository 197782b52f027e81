"""The proxies that clients are put before, each behind a tap, and one scripted Gemini behind all of them."""

import contextlib
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.clients.matrix.cases import Before
from tests.clients.matrix.model import POLICY, gemini
from tests.support.proxy import proxy_before
from tests.support.relay import Relay
from tests.support.upstream import ScriptedUpstream

_CONFIGURATIONS: Final[Mapping[Before, dict[str, Any]]] = {
    Before.DEFAULT: {},
    Before.HTTP_400: {"refusals": {"before_stream": "http_400"}},
    Before.HOLD: {"refusals": {"before_stream": "http_400"}, "guardrails": {"stream_check": "hold"}},
    Before.OPEN: {},
}
_GENERATES: Final = re.compile(
    rb"POST /\S+(?::(?:streamG|g)enerateContent|/chat/completions|/interactions)\S* HTTP/1\.1\r\n"
)


@dataclass(frozen=True)
class Setting:
    """Counts what clients ask for, and what of it the model is asked."""

    upstream: ScriptedUpstream
    taps: Mapping[Before, Relay]

    def url(self, before: Before) -> str:
        """The base URL for a client."""
        return f"http://127.0.0.1:{self.taps[before].port}"

    def sent(self, before: Before) -> int:
        """Requests for an answer that clients have sent there so far."""
        return sum(len(_GENERATES.findall(sent)) for sent in self.taps[before].sent)

    @property
    def reached(self) -> int:
        """Requests for an answer that the model has had so far."""
        return sum(
            "enerateContent" in call.target or call.target.endswith(("/chat/completions", "/interactions"))
            for call in self.upstream.calls
        )


@contextlib.asynccontextmanager
async def setting(folder: Path) -> AsyncIterator[Setting]:
    """Everything listens on this machine's own address; traces are in ``folder``."""
    async with contextlib.AsyncExitStack() as stack:
        upstream = ScriptedUpstream()
        await upstream.start()
        stack.push_async_callback(upstream.stop)
        upstream.reply(gemini)
        taps: dict[Before, Relay] = {}
        for before, sections in _CONFIGURATIONS.items():
            own = folder / before
            own.mkdir()
            policy = None if before is Before.OPEN else POLICY
            behind = {"upstream": {"vertex": upstream.url}, **sections}
            proxy = await stack.enter_async_context(proxy_before(upstream.url, own, policy=policy, **behind))
            port = int(proxy.url.rpartition(":")[2])
            taps[before] = await stack.enter_async_context(Relay(port))
        yield Setting(upstream, taps)
