"""Texts as a reader sees them: which disguises are seen through, with the ranges of what was disguised."""

import base64
import codecs
import re
from time import process_time
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemini_proxy.policy import Budget, BudgetExceeded, Place, Session, compile_policy
from gemini_proxy.policy.detectors.secrets import SecretsDetector
from gemini_proxy.policy.run.budget import Meter
from gemini_proxy.policy.run.normalized import Normalized, normalize
from tests.policy.conversations import assistant, calling, check, rule, user

TOKEN = "ghp_q7Rk2mZp9XvB4nTs8WcLd3HyJf6GaE1uKo5Q"
TWO_LINES = f"{TOKEN[:22]}\n{TOKEN[22:]}"
CYRILLIC = str.maketrans("acegopxyTHABKM", "асеɡорхуТНАВКМ")
FULL_WIDTH = {code: code + 0xFEE0 for code in range(33, 127)}
BOLD = {ord("A") + i: 0x1D400 + i for i in range(26)} | {ord("a") + i: 0x1D41A + i for i in range(26)}


def between(separator: str) -> str:
    """The token with something between any two characters."""
    return separator.join(TOKEN)


def encoded(data: bytes) -> str:
    """Base64."""
    return base64.b64encode(data).decode()


DISGUISES = {
    "zero-width space": between("\u200b"),
    "zero-width joiner": TOKEN[:9] + "\u200d" + TOKEN[9:],
    "word joiner": between("\u2060"),
    "byte order mark": TOKEN[:12] + "\ufeff" + TOKEN[12:],
    "soft hyphen": TOKEN[:20] + "\u00ad" + TOKEN[20:],
    "variation selectors": between("\ufe0f"),
    "combining marks": between("\u0301"),
    "direction marks": "\u202a" + TOKEN[:8] + "\u200e" + TOKEN[8:],
    "tag characters": "".join(chr(0xE0000 + ord(char)) for char in TOKEN),
    "line break": TWO_LINES,
    "line break and indent": TOKEN[:22] + "\r\n    " + TOKEN[22:],
    "quoted lines": TOKEN[:22] + "\n> " + TOKEN[22:],
    "space": TOKEN[:22] + " " + TOKEN[22:],
    "letters set apart": between(" "),
    "letters with dashes": between("-"),
    "letters with commas": between(", "),
    "a list of letters": "[" + ", ".join(f'"{char}"' for char in TOKEN) + "]",
    "full width": TOKEN.translate(FULL_WIDTH),
    "mathematical letters": TOKEN.translate(BOLD),
    "Cyrillic and Greek": TOKEN.translate(CYRILLIC),
    "percent": "".join(f"%{ord(char):02X}" for char in TOKEN),
    "percent, in part": quote(TOKEN).replace("_", "%5F").replace("R", "%52"),
    "percent, twice": "".join(f"%25{ord(char):02x}" for char in TOKEN),
    "HTML entities": "".join(f"&#{ord(char)};" for char in TOKEN),
    "hexadecimal entities": "".join(f"&#x{ord(char):x};" for char in TOKEN),
    "named entity": TOKEN.replace("_", "&lowbar;"),
    "JSON escapes": "".join(f"\\u{ord(char):04x}" for char in TOKEN),
    "byte escapes": "".join(f"\\x{ord(char):02x}" for char in TOKEN),
    "octal escapes": "".join(f"\\{ord(char):03o}" for char in TOKEN),
    "RTF escapes": "".join(f"\\'{ord(char):02x}" for char in TOKEN),
    "RTF decimal": "".join(f"\\u{ord(char)}?" for char in TOKEN),
    "UTF-7": f"+{encoded(TOKEN.encode('utf-16-be')).rstrip('=')}-",
    "quoted-printable": "".join(f"={ord(char):02X}" for char in TOKEN),
    "soft line break": TOKEN[:20] + "=\n" + TOKEN[20:],
    "base64": encoded(TOKEN.encode()),
    "base64 in lines": "\n".join(re.findall(".{1,20}", encoded(TOKEN.encode()))),
    "base64, URL-safe": base64.urlsafe_b64encode(f"key>>>??? {TOKEN}".encode()).decode().rstrip("="),
    "base64, twice": encoded(encoded(TOKEN.encode()).encode()),
    "base64 of UTF-16": encoded(TOKEN.encode("utf-16-le")),
    "hexadecimal": TOKEN.encode().hex(),
    "hexadecimal in pairs": TOKEN.encode().hex(" "),
    "hexadecimal of base64": encoded(TOKEN.encode()).encode().hex(),
    "character codes": ", ".join(str(ord(char)) for char in TOKEN),
    "rot13": codecs.encode(TOKEN, "rot13"),
    "reversed": TOKEN[::-1],
    "emphasis in a word": f"{TOKEN[:9]}**{TOKEN[9:14]}**{TOKEN[14:]}",
    "code in a word": f"{TOKEN[:9]}`{TOKEN[9:14]}`{TOKEN[14:]}",
    "a tag in a word": f"{TOKEN[:9]}<b>{TOKEN[9:14]}</b>{TOKEN[14:]}",
    "a comment in a word": f"{TOKEN[:9]}<!-- -->{TOKEN[9:]}",
    "escaped punctuation": TOKEN.replace("_", "\\_"),
    "joined texts": f'"{TOKEN[:9]}" + "{TOKEN[9:]}"',
}


def labels(text: str, **options: bool) -> list[str]:
    """The labels of the secrets in a text."""
    return [found.label for found in SecretsDetector().detect([text], options, Meter(Budget()))]


@pytest.mark.parametrize("name", DISGUISES)
def test_secrets_are_seen_through_disguises(name: str) -> None:
    """Each is found, not as it stands, and the range holds all of what was disguised."""
    disguise = DISGUISES[name]
    text = f"Please keep this: {disguise} Thank you."
    assert "GITHUB_TOKEN" not in labels(text, raw=True)
    finding = next(
        found for found in SecretsDetector().detect([text], {}, Meter(Budget())) if found.label == "GITHUB_TOKEN"
    )
    begins = text.index(disguise)
    assert begins <= finding.start + (finding.start < begins)
    assert finding.end <= begins + len(disguise) + 1
    assert finding.end - finding.start >= 0.8 * len(disguise)


LETTERS = [*TOKEN]


def test_a_letter_in_each_item_of_a_list() -> None:
    """The letters are read together; the violation points at the call, since a letter has no place of its own."""
    policy = rule("(c: ToolCall)", "any(secrets(c))", head="from invariant.detectors import secrets")
    assert len(check(policy, calling("send", {"parts": LETTERS}))) == 1
    assert check(policy.replace("secrets(c)", "secrets(c, raw=True)"), calling("send", {"parts": LETTERS})) == ()


def test_ranges_of_a_detector_are_those_of_the_disguise() -> None:
    """Characters in the message, not in what was made of it."""
    policy = rule("(m: Message)", "any(secrets(m))", head="from invariant.detectors import secrets")
    disguise = "\u200b".join(TOKEN)
    assert check(policy, user(f"é {disguise} %41"))[0].ranges == (f"messages.0.content:2-{2 + len(disguise)}",)


@pytest.mark.parametrize(
    ("test", "text", "expected"),
    [
        ('find("secret", normalized(m.content))', "a s\u200bеcret", "2-9"),
        ('"secret" in normalized(m.content)', "a %73ecret b", "2-10"),
        ('"secret" in normalized(m.content)', "a c2VjcmV0IGlzIHNlY3JldA b", "2-24"),
        ('"SECRET" in normalized(m.content[2:]).upper()', "a s\u00adecret", "2-9"),
        ('"secret" in normalized(normalized(m.content))', "a %2573ecret b", "2-12"),
        ('find("e c", normalized(m.content)[1:])', "he\u200b\u3000class", "1-5"),
        ('"plain" in normalized(m.content)', "is plain", "3-8"),
    ],
)
def test_ranges_of_normalized_text(test: str, text: str, expected: str) -> None:
    """Whatever is done to the text, its places are those of the message."""
    policy = rule("(m: Message)", test)
    assert check(policy, user(text))[0].ranges == (f"messages.0.content:{expected}",)


def test_normalized_takes_any_value() -> None:
    """One text as a text, several as their list, nothing as nothing."""
    policy = rule(
        "(c: ToolCall)",
        '"ab" in normalized(c.function.arguments.one)',
        '"ab" in normalized(c.function.arguments)',
        "normalized(c.function.arguments.none) == None",
    )
    assert len(check(policy, calling("send", {"one": "a\u200bb", "two": "x", "none": None}))) == 1


def normal(text: str) -> str:
    """The text as a reader sees it."""
    return normalize(text, Meter(Budget()))


@pytest.mark.parametrize(
    "text",
    [
        "", "Nothing is changed in a plain sentence.", "if a < b and c > d:\n    return x * y ** z  # 100% of R&D",
        "sha256 md5sum utf8 cp1252", "1, 2, 3, 4, 5, 6, 7, 8, 9, 10", "a-b c-d", "x = [0x00, 0xff]",
        "d41d8cd98f00b204e9800998ecf8427e", "getElementsByTagName querySelectorAll",
        "12 34 56 78 90 12 34 56 78 90 12 34",
    ],
)  # fmt: skip
def test_plain_text_stays_the_same(text: str) -> None:
    """The very object, so that nothing is looked at twice."""
    assert normal(text) is text


PARTS = st.lists(
    st.one_of(
        st.sampled_from([TOKEN, *DISGUISES.values(), " ", "\n", "%", "&#", "\\u", "=\n", "'", "+A"]),
        st.text(max_size=8),
    ),
    max_size=8,
)


@settings(max_examples=75, deadline=None)
@given(PARTS)
def test_ranges_are_always_of_the_original(parts: list[str]) -> None:
    """Every span lies within the text, spans follow each other, and what was not changed stands there as it is."""
    text = "".join(parts)
    made = normal(text)
    if type(made) is not Normalized:
        assert made is text
        return
    assert made.source is text
    before = 0
    for at in range(len(made)):
        start, end = made.span(at, at + 1)
        assert before <= start < end <= len(text)
        before = start
        if not any(first <= at < last for first, last in made.changes):
            assert (end - start, text[start]) == (1, made[at])
    assert len(made) <= 8 * len(text)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([*DISGUISES]), st.integers(1, 300), st.integers(0, 60))
def test_streaming_finds_what_the_whole_shows(name: str, cut: int, before: int) -> None:
    """Wherever the text is cut: a session that has seen all of it has found it, at the same place."""
    text = f"{'word ' * before}Please keep this: {DISGUISES[name]} Thank you."
    policy = compile_policy(rule("(m: Message)", "any(secrets(m))", head="from invariant.detectors import secrets"))
    session = Session([policy], {}, 600)
    turn = session.turn()
    session.begin(turn, Place(0))
    pieces = [text[:cut], text[cut:]] if cut < len(text) else [text]
    by_policy = [session.check(turn, piece, Budget()) for piece in pieces]
    found = {address for piece in by_policy for violations in piece for one in violations for address in one.ranges}
    whole = check(
        rule("(m: Message)", "any(secrets(m))", head="from invariant.detectors import secrets"), assistant(text)
    )
    assert {address for one in whole for address in one.ranges} <= found


@pytest.mark.parametrize(
    "text",
    ["a-" * 40_000, "%25" * 20_000, "\u200b" * 40_000, "&#38;" * 12_000,
     "a" * 80_000, "+" * 80_000, "a1 " * 20_000,
     "\"'" * 40_000, "\ufdfa" * 20_000, "a<!--" * 16_000, "\\" * 80_000, "0x" * 40_000, "=\n" * 40_000,
     "a*" * 40_000, "1, " * 20_000, "\u0301a" * 20_000, "QUFB" * 20_000],
    ids=lambda text: ascii(text[:4]),
)  # fmt: skip
def test_long_texts_take_time_in_proportion(text: str) -> None:
    """Or the check ends at its budget; never does a pass go over the text again and again."""
    meter = Meter(Budget(steps=10**9))
    half = text[: len(text) // 8]
    first = timed(half, meter)
    # Time in proportion to the square of these would be seconds.
    assert timed(text, meter) < 8 * 3 * first + 0.5


def timed(text: str, meter: Meter) -> float:
    """Seconds of processor time for a look at a text."""
    started = process_time()
    made = normalize(text, meter)
    spent = process_time() - started
    assert len(made) <= 8 * len(text)
    return spent


def test_a_small_budget_ends_it() -> None:
    """Changes are paid for before they are made."""
    with pytest.raises(BudgetExceeded):
        normalize("\u200ba" * 100_000, Meter(Budget(steps=10_000)))
