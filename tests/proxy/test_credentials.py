"""Whose keys these are, where each may go, and where none may ever be found."""

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from gemini_proxy.errors import BadRequest
from gemini_proxy.gemini.calls import read_call
from gemini_proxy.proxy.credentials import Credentials, goes_as_token, read_credentials
from gemini_proxy.proxy.upstream import upstream_headers
from tests.conftest import StartProxy
from tests.support.proxy import prompt
from tests.support.upstream import ScriptedUpstream, candidate, unary

Headers = dict[str, str] | list[tuple[str, str]]


def found(
    headers: Headers, query: str | None = None, configured: str | None = None, dataset: str | None = None
) -> Credentials:
    return read_credentials(CIMultiDict(headers), query, configured, dataset)


@pytest.mark.parametrize(
    ("headers", "query", "configured", "gemini"),
    [
        ({"x-goog-api-key": "K"}, None, None, "K"),
        ({"X-Goog-Api-Key": " K "}, None, "other", "K"),
        ({"authorization": "Bearer K"}, None, None, "K"),
        ({"Authorization": "bearer  K"}, None, "other", "K"),
        ({}, "K", None, "K"),
        ({}, "K", "other", "K"),
        ({}, None, "K", "K"),
        ({"x-goog-api-key": ""}, None, "K", "K"),
        ({"x-goog-api-key": "", "authorization": ""}, "K", None, "K"),
        ({"x-goog-api-key": "K", "authorization": "Bearer K"}, "K", None, "K"),
        ({"x-goog-api-key": "K", "authorization": "Basic dXNlcg=="}, None, None, "K"),
        ({"x-goog-api-key": "K", "authorization": "Token t"}, None, None, "K"),
        ({"authorization": "Basic dXNlcg=="}, "K", None, "K"),
    ],
)
def test_the_gemini_key(headers: Headers, query: str | None, configured: str | None, gemini: str) -> None:
    """From any of three places, the same key in several of them, else the operator's own."""
    credentials = found(headers, query, configured)
    assert (credentials.gemini, credentials.invariant) == (gemini, None)


@pytest.mark.parametrize(
    ("headers", "query", "bearer"),
    [
        ({"authorization": "Bearer K"}, None, True),
        ({"authorization": "Bearer K;invariant-auth=V"}, None, True),
        ({"authorization": "Bearer K", "x-goog-api-key": "inv-1"}, None, True),
        ({"authorization": "Bearer K", "x-goog-api-key": "K"}, None, False),
        ({"authorization": "Bearer inv-1", "x-goog-api-key": "K"}, None, False),
        ({"authorization": "Bearer K"}, "K", False),
        ({}, "K", False),
    ],
)
def test_what_came_as_a_token_alone_is_one(headers: Headers, query: str | None, bearer: bool) -> None:
    """It goes to Vertex AI as it came; an Invariant key beside it is not in the way."""
    credentials = found(headers, query)
    assert (credentials.gemini, credentials.bearer) == ("K", bearer)
    as_token = goes_as_token(credentials, read_call("POST", "/v1/publishers/google/models/m:generateContent"))
    assert not goes_as_token(credentials, read_call("POST", "/v1/models/m:generateContent"))
    outgoing = upstream_headers(CIMultiDict(headers), credentials.gemini or "", bearer=as_token)
    assert outgoing.get("authorization") == ("Bearer K" if bearer else None)
    assert outgoing.get("x-goog-api-key") == (None if bearer else "K")


@pytest.mark.parametrize(
    ("headers", "query"),
    [
        ({"x-goog-api-key": "K", "authorization": "Bearer other"}, None),
        ({"x-goog-api-key": "K"}, "other"),
        ({"authorization": "Bearer K"}, "other"),
        ({"x-goog-api-key": "K;invariant-auth=V"}, "other"),
        ({"x-goog-api-key": "K;invariant-auth=V"}, "K;invariant-auth=other"),
        ({"x-goog-api-key": "K;invariant-auth=V", "invariant-authorization": "Bearer other"}, None),
    ],
)
def test_two_different_keys_are_refused(headers: Headers, query: str | None) -> None:
    """Which one is meant is not for the proxy to guess."""
    with pytest.raises(BadRequest, match="two different (Gemini|Invariant) API keys"):
        found(headers, query)


SUFFIXES = [
    "K;invariant-auth=V",
    "K; invariant-auth=V",
    "K ;invariant-auth=V",
    "K;Invariant-Auth=V",
    "K;INVARIANT-AUTH=V",
    "K;  invariant-auth = V",
    " K;invariant-auth=V ",
]


@pytest.mark.parametrize("pair", SUFFIXES)
@pytest.mark.parametrize("dataset", [None, "set"])
def test_invariant_key_behind_the_gemini_key(pair: str, dataset: str | None) -> None:
    """However the pair is spaced and cased, in whichever place it comes, with or without a dataset."""
    assert found({"x-goog-api-key": pair}, dataset=dataset) == Credentials("K", "V")
    assert found({"authorization": f"Bearer {pair}"}, dataset=dataset) == Credentials("K", "V", bearer=True)
    assert found({}, pair, dataset=dataset) == Credentials("K", "V")


def test_invariant_key_in_its_own_header() -> None:
    headers = {"x-goog-api-key": "K", "Invariant-Authorization": "Bearer V"}
    assert found(headers) == found(headers, dataset="set") == Credentials("K", "V")
    assert found({**headers, "x-goog-api-key": "K;invariant-auth=V"}) == Credentials("K", "V")
    assert found({"invariant-authorization": "Bearer V"}, configured="K", dataset="set") == Credentials("K", "V")


@pytest.mark.parametrize(
    ("headers", "query", "configured", "dataset", "message"),
    [
        ({}, None, None, None, "Missing LLM Provider API Key"),
        ({}, None, None, "set", "Missing LLM Provider API Key"),
        ({"invariant-authorization": "Bearer V"}, None, None, "set", "Missing LLM Provider API Key"),
        ({"invariant-authorization": "Bearer V"}, None, None, None, "Missing LLM Provider API Key"),
        ({"x-goog-api-key": "K"}, None, None, "set", "Missing invariant api key"),
        ({}, "K", None, "set", "Missing invariant api key"),
        ({}, None, "K", "set", "Missing invariant api key"),
    ],
)
def test_missing_keys(
    headers: Headers, query: str | None, configured: str | None, dataset: str | None, message: str
) -> None:
    with pytest.raises(BadRequest) as caught:
        found(headers, query, configured, dataset)
    assert caught.value.message == message


@pytest.mark.parametrize(
    "pair",
    [
        ";invariant-auth=V",
        "K;invariant-auth=",
        "K;invariant-auth= ",
        " ;invariant-auth=V",
        "K;invariant-auth",
        "K;invariant-authV",
        "K;invariant-auth:V",
        "K%3Binvariant-auth=V",
        "K%3binvariant-auth%3DV",
        "K invariant-auth=V",
        "K,invariant-auth=V",
        "Kinvariant-auth=V",
        "invariant-auth=V",
        "K;invariant-auth=V;invariant-auth=W",
        "K;invariant-auth=V; Invariant-Auth=W",
        "K;invariant_auth=V",
        "K;x;invariant-auth=V",
        "K;invariant-auth=V;x",
        "K;",
        ";",
        ";K",
        "K;other=V",
        "K L",
        "K\tL",
        "Ké",
        "K\udcff",
        "K" * 4097,
        "K;invariant-auth=V W",
    ],
)
def test_malformed_pairs(pair: str) -> None:
    """What is not exactly one pair is refused, so that no half of it goes where it must not."""
    for headers, query in (({"x-goog-api-key": pair}, None), ({"authorization": f"Bearer {pair}"}, None), ({}, pair)):
        with pytest.raises(BadRequest) as caught:
            found(headers, query)
        assert caught.value.message == "Invalid API Key format"


@pytest.mark.parametrize("value", ["K", "Basic K", "Bearer", "Bearer ", "Bearer\tK", "Token K", "Bearer=K"])
def test_malformed_authorizations(value: str) -> None:
    for headers in ({"authorization": value}, {"x-goog-api-key": "K", "invariant-authorization": value}):
        with pytest.raises(BadRequest, match="Invalid API Key format"):
            found(headers)


@pytest.mark.parametrize("name", ["x-goog-api-key", "authorization", "invariant-authorization"])
@pytest.mark.parametrize("values", [("Bearer K", "Bearer K"), ("Bearer K", "Bearer L"), ("", "Bearer K")])
def test_repeated_headers_are_refused(name: str, values: tuple[str, str]) -> None:
    """Another reader may take the other one; a key elsewhere does not make it right."""
    with pytest.raises(BadRequest, match=f"{name} is given more than once"):
        found([("x-goog-api-key", "K"), *((name.upper(), value) for value in values)][name == "x-goog-api-key" :])


@pytest.mark.parametrize("gemini", ["AIzaSecret", "AQ.Secret"])
def test_keys_are_not_in_a_repr(gemini: str) -> None:
    credentials = Credentials(gemini, "inv-secret", "inv-other-secret")
    assert "ecret" not in f"{credentials} {credentials!r} {[credentials]}"
    assert repr(Credentials(None, None)) == "Credentials(gemini=None, invariant=None, guardrails=None)"


PASS = {
    "content-type": "application/json",
    "user-agent": "google-genai-sdk/2.34.0",
    "accept": "*/*",
    "x-server-timeout": "31",
    "x-goog-api-client": "google-genai-sdk/2.34.0 gl-python/3.11.7",
    "x-goog-user-project": "p",
    "x-goog-request-params": "model=m",
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "tracestate": "a=b",
}
DROP = {
    "x-goog-api-key": "client's own",
    "authorization": "Bearer K",
    "proxy-authorization": "Basic K",
    "cookie": "a=b",
    "host": "evil.com",
    "content-length": "3",
    "content-encoding": "gzip",
    "transfer-encoding": "chunked",
    "accept-encoding": "gzip, br",
    "accept-language": "*",
    "connection": "keep-alive",
    "keep-alive": "1",
    "te": "trailers",
    "trailer": "x",
    "upgrade": "websocket",
    "expect": "100-continue",
    "forwarded": "for=1.2.3.4",
    "x-forwarded-for": "1.2.3.4",
    "x-forwarded-host": "evil.com",
    "x-real-ip": "1.2.3.4",
    "x-http-method-override": "GET",
    "x-api-key": "K",
    "x_goog_api_key": "K",
    "x-goog_api_key": "K",
    "x_goog-user-project": "p",
    "user_agent": "a",
    "invariant-authorization": "Bearer V",
    "invariant-guardrails": "raise",
    "invariant-guardrails-authorization": "Bearer V",
    "x-goog-invariant": "V",
    "x-goog-Invariant-Auth": "V",
    "origin": "https://evil.com",
    "referer": "https://evil.com/?key=K",
    "range": "bytes=0-1",
    "anything": "else",
}


def test_headers_go_upstream_by_allow_list() -> None:
    """Those on the list go as they are; all others stay here; the key and the encoding are the proxy's."""
    outgoing = upstream_headers(CIMultiDict({**PASS, **DROP}), "KEY", ("x-extra",))
    assert outgoing == {**PASS, "x-goog-api-key": "KEY", "accept-encoding": "identity"}


def test_configured_headers_go_upstream() -> None:
    headers = CIMultiDict({"X-Extra": "1", "x-other": "2", "invariant-x": "3"})
    outgoing = upstream_headers(headers, "KEY", ("x-extra", "invariant-x"))
    assert outgoing == {"x-extra": "1", "x-goog-api-key": "KEY", "accept-encoding": "identity"}


@pytest.mark.parametrize("named", ["x-goog-user-project", "close, X-Goog-User-Project ", "a,x-goog-user-project,b"])
def test_headers_that_connection_names_stay_here(named: str) -> None:
    headers = CIMultiDict({"Connection": named, "x-goog-user-project": "p", "accept": "*/*"})
    assert upstream_headers(headers, "KEY").keys() == {"x-goog-api-key", "accept-encoding", "accept"}


def test_connection_cannot_name_the_key_away() -> None:
    headers = CIMultiDict({"connection": "x-goog-api-key, accept-encoding"})
    assert upstream_headers(headers, "KEY") == {"x-goog-api-key": "KEY", "accept-encoding": "identity"}


@pytest.mark.parametrize("name", ["X-Goog-FieldMask", "x-goog-fieldmask"])
def test_field_mask_is_refused(name: str) -> None:
    """It would cut out of the answer what the guard has to see."""
    with pytest.raises(BadRequest, match="FieldMask"):
        upstream_headers(CIMultiDict({name: "candidates.content"}), "KEY")


NAMES = st.sampled_from([*PASS, *DROP, "Invariant-Authorization", "X-INVARIANT", "x-goog-x", "x-extra"])
VALUES = st.sampled_from(["a", "Bearer K", "K;invariant-auth=V", "INVARIANT", "x-goog-x", "close", ""])


@given(st.lists(st.tuples(NAMES, VALUES)), st.sampled_from(["K", None]))
def test_nothing_of_invariant_goes_upstream(headers: list[tuple[str, str]], query: str | None) -> None:
    """Whatever headers come, what goes out has one key, names Invariant nowhere, and is on the list."""
    given_headers = CIMultiDict(headers)
    try:
        credentials = read_credentials(given_headers, query, None, None)
    except BadRequest:
        return
    outgoing = upstream_headers(given_headers, credentials.gemini or "", ("x-extra",))
    assert "invariant" not in repr(sorted(outgoing.items())).lower()
    assert outgoing["x-goog-api-key"] == credentials.gemini
    assert all(name in PASS or name == "x-extra" or name.startswith(("x-goog-", "accept-enc")) for name in outgoing)


async def test_upstream_sees_the_gemini_key_alone(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    """In whichever way the keys come, the upstream gets one in its header, and nothing that names Invariant."""
    proxy = await start_proxy()
    upstream.reply(unary(candidate("ok", "STOP")))
    ways: list[tuple[str, dict[str, str]]] = [
        ("", {"x-goog-api-key": "GK;invariant-auth=inv-1"}),
        ("", {"Authorization": "Bearer GK; Invariant-Auth=inv-1"}),
        ("?key=GK%3Binvariant-auth%3Dinv-1", {}),
        ("?key=GK", {"invariant-authorization": "Bearer inv-1"}),
        ("?invariant-auth=inv-1&key=GK", {"x-invariant": "inv-1", "cookie": "invariant=inv-1"}),
        ("?alt=json&key=GK", {"user-agent": "x;invariant-auth=inv-1"}),
        ("?alt=json&key=GK", {"invariant-guardrails-authorization": "Bearer inv-1"}),
    ]
    async with aiohttp.ClientSession() as bare:
        for prefix in ("", "/gemini", "/api/v1/gateway/gemini"):
            for query, headers in ways:
                async with bare.post(
                    proxy.method(query=query, prefix=prefix), json=prompt("hi"), headers=headers
                ) as got:
                    assert got.status == 200
        async with bare.get(f"{proxy.url}/v1beta/models{ways[2][0]}") as got:
            assert got.status == 200
    assert len(upstream.calls) == 22
    for call in upstream.calls:
        head = call.raw_head.lower()
        assert b"invariant" not in head and b"inv-1" not in head and b"key=" not in head
        assert head.count(b"gk") == 1 and call.headers["x-goog-api-key"] == "GK"


async def test_dataset_names_the_trace_and_a_key_its_tenant(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    proxy = await start_proxy()
    upstream.reply(unary(candidate("ok", "STOP")))
    url = proxy.method(prefix="/api/v1/gateway/my-set/gemini")
    async with client.post(url, json=prompt("hi")) as answer:
        assert answer.status == 400
        assert (await answer.json())["error"]["message"] == "Missing invariant api key"
    async with client.post(url, json=prompt("hi"), headers={"invariant-authorization": "Bearer inv-1"}) as answer:
        assert answer.status == 200
    trace = await proxy.trace()
    assert trace.dataset == "my-set"
    assert trace.tenant and "inv-1" not in trace.tenant
