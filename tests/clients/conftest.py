"""The SDK's blocking and asyncio halves, one after the other."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import certifi
import pytest
from google import genai
from google.genai import types

from tests.clients.sdk import KEY, Connect, Sdk
from tests.support.proxy import Proxy


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with one certificate authority of those that everybody trusts."""
    end = "-----END CERTIFICATE-----\n"
    file = tmp_path_factory.mktemp("tls") / "authority.pem"
    file.write_text(Path(certifi.where()).read_text().partition(end)[0] + end)
    return file


@pytest.fixture(autouse=True)
def one_authority(authority: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have clients load one authority. All of them take 50 ms to load, up to three times for each client."""
    monkeypatch.setenv("SSL_CERT_FILE", str(authority))


@pytest.fixture(params=["blocking", "asyncio"])
async def connect(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Connect]:
    """Make an SDK client for a proxy, told nothing but where it is and which key to send."""
    for name in ("GOOGLE_API_KEY", "GEMINI_API_KEY", "GOOGLE_GEMINI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    async with contextlib.AsyncExitStack() as stack:

        def make(proxy: Proxy, prefix: str = "", key: str = KEY, headers: dict[str, str] | None = None) -> Sdk:
            options = types.HttpOptions(base_url=proxy.url + prefix, headers=headers)
            client = genai.Client(api_key=key, http_options=options)
            stack.callback(client.close)
            stack.push_async_callback(client.aio.aclose)
            return Sdk(client, request.param == "blocking")

        yield make
