import orjson
import pytest

from gemini_proxy.traces.redact import redact, redact_json
from tests.support.keys import GEMINI_KEYS

GEMINI, GEMINI_TODAY = GEMINI_KEYS
INVARIANT = "inv-" + "0a" * 32
TOKEN = "ya29.a0AfB_byC-abcdefgh=="


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"https://host/v1?alt=sse&key={GEMINI}&x=1", "https://host/v1?alt=sse&key=[redacted]&x=1"),
        (f"the key {GEMINI_TODAY}, they say", "the key [redacted], they say"),
        (f"/v1/x%3Fkey%3D{GEMINI_TODAY}", "/v1/x%3Fkey%3D[redacted]"),
        ("https://host/v1?key=odd-key", "https://host/v1?key=[redacted]"),
        (f"{GEMINI};invariant-auth={INVARIANT}", "[redacted];invariant-auth=[redacted]"),
        (f"{GEMINI_TODAY};invariant-auth={INVARIANT}", "[redacted];invariant-auth=[redacted]"),
        (f"Bearer {TOKEN}", "Bearer [redacted]"),
        (f"bearer {INVARIANT}", "bearer [redacted]"),
        ("the bearer of news, inv-oice, monkey=1, FAQ.html", "the bearer of news, inv-oice, monkey=1, FAQ.html"),
    ],
)
def test_keys_go_and_the_rest_stays(text: str, expected: str) -> None:
    assert redact(text) == expected
    assert orjson.loads(redact_json(orjson.dumps({"url": text}))) == {"url": expected}


def test_values_are_walked_and_headers_that_carry_keys_are_blanked() -> None:
    value = {"headers": {"X-Goog-Api-Key": "short", "accept": ["*/*", f"a{GEMINI}"]}, "n": 1}
    assert redact(value) == {
        "headers": {"X-Goog-Api-Key": "[redacted]", "accept": ["*/*", "a[redacted]"]},
        "n": 1,
    }


def test_configured_secrets_are_removed_by_value() -> None:
    assert redact(["x hunter2 y"], secrets=["hunter2", ""]) == ["x [redacted] y"]
