"""Which request targets are served, and what is asked of the upstream for them."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemini_proxy.errors import BadRequest, MethodNotAllowed, NotFound
from gemini_proxy.gemini.calls import ModelCall, Query, read_call
from gemini_proxy.gemini.doors import Method

UPSTREAM_TARGET = re.compile(
    r"/(v1|v1beta|v1alpha|v1beta1)/(models|tunedModels|dynamic)"
    r"(/[A-Za-z0-9][A-Za-z0-9._-]*(:[A-Za-z]+)?)?(\?[A-Za-z0-9%&=._+-]*)?"
)


def post(target: str) -> ModelCall:
    return read_call("POST", target)


@pytest.mark.parametrize("version", ["v1", "v1beta", "v1alpha", "v1beta1", ""])
@pytest.mark.parametrize(
    ("prefix", "dataset"),
    [
        ("", None),
        ("/gemini", None),
        ("/my-set_1/gemini", "my-set_1"),
        ("/api/v1/gateway/gemini", None),
        ("/api/v1/gateway/my-set_1/gemini", "my-set_1"),
        ("/api/v1/gateway/models/gemini", "models"),
    ],
)
@pytest.mark.parametrize("verb", ["generateContent", "streamGenerateContent"])
@pytest.mark.parametrize("collection", ["models", "tunedModels", "dynamic"])
def test_every_form_of_a_route(version: str, prefix: str, dataset: str | None, verb: str, collection: str) -> None:
    """Prefix, dataset and version may each be there or not; the call is the same."""
    start = f"{prefix}/{version}" if version else prefix
    call = post(f"{start}/{collection}/gemini-2.5-flash:{verb}")
    assert (call.method, call.dataset) == (Method(verb), dataset)
    assert call.upstream_target == f"/{version or 'v1beta'}/{collection}/gemini-2.5-flash:{verb}"
    assert call.generates and call.streams == (verb == "streamGenerateContent")
    assert call.model == "gemini-2.5-flash"


@pytest.mark.parametrize("verb", ["countTokens", "embedContent", "batchEmbedContents"])
def test_calls_checked_as_requests(verb: str) -> None:
    call = post(f"/v1beta/models/m:{verb}")
    assert call.method == verb and not call.generates
    assert call.upstream_target == f"/v1beta/models/m:{verb}"
    for other in ("tunedModels", "dynamic"):
        with pytest.raises(NotFound):
            post(f"/v1beta/{other}/m:{verb}")


@pytest.mark.parametrize(
    ("target", "method", "upstream"),
    [
        ("/v1beta/models", Method.LIST_MODELS, "/v1beta/models"),
        ("/models", Method.LIST_MODELS, "/v1beta/models"),
        ("/gemini/v1/models/m", Method.GET_MODEL, "/v1/models/m"),
        ("/v1/models?pageSize=5&pageToken=a%2Fb", Method.LIST_MODELS, "/v1/models?pageSize=5&pageToken=a%2Fb"),
        ("/v1/models?key=K&x=1", Method.LIST_MODELS, "/v1/models"),
    ],
)
def test_listings_pass(target: str, method: Method, upstream: str) -> None:
    call = read_call("GET", target)
    assert (call.method, call.http_method, call.upstream_target) == (method, "GET", upstream)


@pytest.mark.parametrize(
    "target",
    [
        "//v1beta//models//m:generateContent",
        "/api/v1/gateway//gemini///v1beta/models/m:generateContent",
        "//api//v1//gateway//gemini//v1beta//models//m:generateContent",
    ],
)
def test_doubled_slashes_collapse(target: str) -> None:
    """Base URLs end in a slash and SDKs add one."""
    assert post(target).upstream_target == "/v1beta/models/m:generateContent"


HOSTILE = [
    "/v1beta/models/..%2f..%2fv1alpha%2fcachedContents:generateContent",
    "/v1beta/models/..%2F..%2Fv1%2Ffiles:generateContent",
    "/v1beta/models/../../v1/files:generateContent",
    "/v1beta/models/..:generateContent",
    "/v1beta/models/.:generateContent",
    "/v1beta/models/./m:generateContent",
    "/v1beta/../v1/models/m:generateContent",
    "/v1beta%2f..%2fv1/models/m:generateContent",
    "/@evil.com/models/m:generateContent",
    "/v1beta@evil.com/models/m:generateContent",
    "@evil.com/v1beta/models/m:generateContent",
    "/v1beta/models/a%3fkey=1:generateContent",
    "/v1beta/models/a%23:generateContent",
    "/v1beta/models/a#b:generateContent",
    "/v1beta/models/a:generateContent#x",
    "/v1beta/models/a%00:generateContent",
    "/v1beta/models/a\x00:generateContent",
    "/v1beta/models/a%0d%0aX:generateContent",
    "/v1beta/models/a\r\nX:generateContent",
    "/v1beta/models/a:generateContent\n",
    "/v1beta/models/a:generateContent%2f..%2fcountTokens",
    "/v1beta/models/a%3AgenerateContent",
    "/v1beta/models/a:generateContent%20",
    "/v1beta/models/a:generateContent ",
    "/v1beta/models/a:GENERATECONTENT",
    "/v1beta/models/a:generatecontent",
    "/v1beta/models/a:generateContent/",
    "/v1beta/models/a:generateContent;x=1",
    "/v1beta/models/a/b:generateContent",
    "/v1beta/models/google/gemini:generateContent",
    "/v1beta/models/a b:generateContent",
    "/v1beta/models/a%20b:generateContent",
    "/v1beta/models/a\\b:generateContent",
    "/v1beta/models/:generateContent",
    "/v1beta/models:generateContent",
    "/v1beta/models/m:",
    "/v1beta/models/-m:generateContent",
    "/v1beta/models/m\u0430:generateContent",
    "/v1beta/models/\uff4d:generateContent",
    "/v1beta/models/" + "m" * 129 + ":generateContent",
    "/v1beta/Models/m:generateContent",
    "/V1beta/models/m:generateContent",
    "/v2/models/m:generateContent",
    "/v1internal/models/m:generateContent",
    "/v1internal:generateContent",
    "http://evil.com/v1beta/models/m:generateContent",
    "//evil.com/v1beta/models/m:generateContent",
    "/api/v1/gateway/v1beta/models/m:generateContent",
    "/api/v1/gateway/a/b/gemini/v1beta/models/m:generateContent",
    "/api/v1/gateway/da%74a/gemini/v1beta/models/m:generateContent",
    "/api/v1/gateway/../gemini/v1beta/models/m:generateContent",
    "/api/v1/gateway/openai/v1beta/models/m:generateContent",
    "/v1beta/openai/images/edits",
    "/v1beta/openai/chat/completions/",
    "/v1beta/openai/chat%2fcompletions",
    "/v1beta/openai/models/a/b",
    "/v1beta/openai/models/..",
    "/batch",
    "/$rpc/google.ai.generativelanguage.v1beta.GenerativeService/GenerateContent",
    "/v1beta/models/m:countTextTokens",
    "/v1beta/models/m:bidiGenerateContent",
    "/v1beta/models/m:listModels",
    "/v1beta/models/m:getModel",
    "/v1beta/dynamic",
    "/v1beta",
    "/",
    "",
    "*",
]


@pytest.mark.parametrize("target", HOSTILE)
@pytest.mark.parametrize("http_method", ["POST", "GET"])
def test_hostile_and_unknown_paths_are_refused(target: str, http_method: str) -> None:
    """What is not on the allow-list, letter by letter, is not served by any method; the answer says what is."""
    with pytest.raises(NotFound, match="generateContent and streamGenerateContent"):
        read_call(http_method, target)


@pytest.mark.parametrize("start", ["/v1beta/v1", "/v1beta/v1beta", "/gemini/v1/v1beta1"])
def test_a_version_given_twice_is_told(start: str) -> None:
    """A base URL with a version meets SDKs that add theirs."""
    with pytest.raises(NotFound, match="base URL without the version"):
        post(f"{start}/models/m:generateContent")


def test_verb_follows_the_last_colon() -> None:
    """With two colons the first one belongs to the name, which takes none: neither verb is run."""
    for target in ("m:generateContent:countTokens", "m:countTokens:generateContent", "gemini:foo:generateContent"):
        with pytest.raises(NotFound):
            post(f"/v1beta/models/{target}")


@pytest.mark.parametrize("http_method", ["GET", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "post"])
def test_generating_takes_post_only(http_method: str) -> None:
    with pytest.raises(MethodNotAllowed, match="takes POST only"):
        read_call(http_method, "/v1beta/models/m:generateContent")


@pytest.mark.parametrize("http_method", ["POST", "HEAD", "DELETE"])
def test_listing_takes_get_only(http_method: str) -> None:
    with pytest.raises(MethodNotAllowed, match="takes GET only"):
        read_call(http_method, "/v1beta/models")


@pytest.mark.parametrize(
    ("query", "upstream"),
    [
        ("", ""),
        ("?", ""),
        ("?alt=sse", "?alt=sse"),
        ("?alt=json", "?alt=json"),
        ("?$alt=sse", "?alt=sse"),
        ("?%24alt=json", "?alt=json"),
        ("?a%6ct=sse", "?alt=sse"),
        ("?$alt=json;enum-encoding=int", "?%24alt=json%3Benum-encoding%3Dint"),
        ("?%24alt=json%3Benum-encoding%3Dint", "?%24alt=json%3Benum-encoding%3Dint"),
        ("?key=K", ""),
        ("?key=K&alt=sse", "?alt=sse"),
        ("?prettyPrint=false&quotaUser=me&utm=1&alt=sse", "?alt=sse"),
        ("?$unknown=1&invariant-auth=x", ""),
    ],
)
def test_query_parameters_that_pass(query: str, upstream: str) -> None:
    """alt goes upstream, in one spelling; the key never does; unknown harmless ones are dropped."""
    call = post(f"/v1beta/models/m:streamGenerateContent{query}")
    assert call.upstream_target == f"/v1beta/models/m:streamGenerateContent{upstream}"


@pytest.mark.parametrize(
    "query",
    [
        "alt=proto",
        "alt=media",
        "alt=",
        "alt",
        "alt=SSE",
        "alt=sse%20",
        "alt=json;enum-encoding=int",
        "$alt=proto",
        "%24alt=proto",
        "$alt=json;enum-encoding=string",
        "alt=sse&alt=json",
        "alt=sse&alt=sse",
        "alt=sse&%61lt=json",
        "$alt=sse&%24alt=sse",
        "alt=sse&$alt=json;enum-encoding=int",
        "Alt=sse",
        "ALT=proto",
        "$Alt=proto",
        "key=a&key=b",
        "key=a&k%65y=b",
        "Key=a",
        "fields=candidates",
        "%66ields=candidates",
        "$fields=candidates",
        "FIELDS=x",
        "callback=f",
        "$callback=f",
        "jsonp=f",
        "$.xgafv=1",
        "%24.xgafv=2",
        "$httpMethod=GET",
        "$method=GET",
        "$req=x",
        "$ct=x",
        "uploadType=multipart",
        "upload_protocol=raw",
        "access_token=t",
        "$access_token=t",
        "Access_Token=t",
        "oauth_token=t",
        "bearer_token=t",
        "alt=%ff",
        "x=%ff",
        "alt=%ed%a0%80",
        "&".join(f"p{number}=1" for number in range(33)),
    ],
)
def test_query_parameters_that_hide_or_contradict_are_refused(query: str) -> None:
    """What changes the answer a guard reads, brings another credential, or can be read two ways is a 400."""
    with pytest.raises(BadRequest):
        post(f"/v1beta/models/m:generateContent?{query}")


def test_paging_carries_no_invariant_key_upstream() -> None:
    with pytest.raises(BadRequest):
        read_call("GET", "/v1beta/models?pageToken=x%3BInvariant-auth=inv-1")


def test_key_is_read_and_not_shown() -> None:
    call = post("/v1beta/models/m:generateContent?key=AIzaSecret%3Binvariant-auth%3Dinv-1")
    assert call.query.key == "AIzaSecret;invariant-auth=inv-1"
    assert "AIzaSecret" not in repr(call) + str(call) + repr(call.query) + call.upstream_target
    assert post("/v1beta/models/m:generateContent?key=").query == Query()


@given(
    st.sampled_from(["GET", "POST"]),
    st.one_of(
        st.text(max_size=60),
        st.lists(
            st.sampled_from(
                "/ // v1 v1beta api gateway gemini models tunedModels dynamic m : generateContent countTokens "
                "? & = ; alt $alt %24alt sse json pageToken key K invariant %2f %00 .. @evil.com # \\ \r\n ñ".split(" ")
            ),
            max_size=14,
        ).map("".join),
    ),
)
def test_upstream_target_is_made_of_what_was_matched(http_method: str, target: str) -> None:
    """Whatever the target, it is refused, or rebuilt from the allow-list: no other byte of it goes upstream."""
    try:
        call = read_call(http_method, target)
    except (BadRequest, NotFound, MethodNotAllowed):
        return
    assert UPSTREAM_TARGET.fullmatch(call.upstream_target)
    assert ".." not in call.upstream_target.partition("?")[0].split("/")
