"""Tell the shape of a value by its form and the name of its argument: an address, a date, a number or a text.

An address says where a call goes or what it changes. A tool's name says what the tool does.
"""

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Final, Literal

from gemini_proxy.policy.run.provenance.folded import MONTHS

Shape = Literal[
    "email", "url", "account", "phone", "user", "path", "id", "secret", "date", "number", "word", "message", "text"
]

ADDRESSES: Final = frozenset(("email", "url", "account", "phone", "user", "path", "id", "secret"))

# Every repetition is bounded: a text without any of these is scanned in linear time.
_EMAIL = r"[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){1,8}"
_URL = (
    r"[A-Za-z][A-Za-z0-9+.-]{0,20}://[^\s<>\"'`)\]}]+|www\.[^\s<>\"'`)\]}]+"
    r"|(?<![@\w.-])(?:[A-Za-z0-9-]{1,63}\.){1,8}(?:com|net|org|io|dev|app|info|biz|edu|gov|co|ai|me|xyz|site|example)"
    r"(?![\w.-])(?:/[^\s<>\"'`)\]}]*)?"
)
_ACCOUNT = r"(?<![A-Za-z0-9])[A-Z]{2}[0-9]{2}(?:[ -]?[A-Z0-9]){11,30}(?![A-Za-z0-9])"
_PHONE = r"(?<![\w+])\+[0-9][0-9 ()./-]{6,18}[0-9](?!\w)"
_WITHIN = re.compile(f"(?P<email>{_EMAIL})|(?P<url>{_URL})|(?P<account>{_ACCOUNT})|(?P<phone>{_PHONE})")
# Characters of which every address has at least one.
_SIGN_OF_ADDRESS = re.compile(r"[@.:+\d]")
_DATE = re.compile(r"(\d{4})-(\d{2})-(\d{2})(?:[T ]\d{2}:\d{2}.*)?")
_NUMBER = re.compile(r"[+-]?[\d.,' ]*\d%?")
_PATH = re.compile(r"(?:[A-Za-z]:\\|[~.]{0,2}/)\S*|[\w.-]+(?:/[\w.-]+)*/[\w-]+\.\w{1,5}")
_HOST = re.compile(r"(?:[A-Za-z][A-Za-z0-9+.-]*:[/\\]{2})?(?:[^/\\?#@\s]*@)*([^/\\?#\s:@]+)")
_NAME_PARTS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_SAME_TOOL = re.compile(r"__|[./:]")

_BY_NAME: Final[dict[str, Shape]] = {
    **dict.fromkeys(("id", "ids", "uuid", "guid"), "id"),
    **dict.fromkeys(("email", "emails", "mail", "cc", "bcc"), "email"),
    **dict.fromkeys(("url", "urls", "uri", "link", "href", "host", "domain", "endpoint", "webhook"), "url"),
    **dict.fromkeys(("account", "iban", "payee", "beneficiary", "wallet"), "account"),
    **dict.fromkeys(("phone", "telephone", "mobile", "fax"), "phone"),
    **dict.fromkeys(
        (
            "recipient", "recipients", "to", "user", "users", "username", "channel", "channels", "participant",
            "participants", "attendee", "attendees", "guest", "guests", "member", "members", "owner", "assignee",
            "group",
        ),
        "user",
    ),
    **dict.fromkeys(("path", "file", "filename", "folder", "directory"), "path"),
    **dict.fromkeys(("password", "passphrase", "secret", "token", "pin", "credential"), "secret"),
}  # fmt: skip
_MESSAGES: Final = frozenset("body content contents text message msg".split())
# Fields in which anyone may write anything: an address that fills one counts no more than an address within a text.
_WRITTEN: Final = frozenset(
    "subject body content text message description title comment comments note notes summary review reviews bio about "
    "caption html snippet abstract memo remark remarks reason details purpose feedback answer headline topic "
    "agenda".split()
)
# Fields that name things: they vouch for a name, not for an address that stands in them.
_NAMING: Final = frozenset("name names label location place venue city street status tag tags category".split())
_IDENTIFYING: Final = frozenset("id ids uuid guid number no nr key code index".split())
_READS: Final = frozenset(
    "get list search read find fetch query lookup look view show describe count check browse open visit download load "
    "retrieve select explain summarize calculate compute convert validate verify compare inspect is has".split()
)
_DOCUMENTS: Final = frozenset("webpage website page site url document article html".split())
_READS_DOCUMENTS: Final = frozenset("read fetch open visit browse download scrape crawl cat".split())
_MONTHS: Final = frozenset(month[:3] for month in MONTHS)
_ANSWERED = re.compile(r"(?:(?:re|fwd?|aw|wg): *)+", re.IGNORECASE)
_ENDING = re.compile(r"\.\w{1,5}$")
# The fewest letters of a name, and digits of a number, by which a user may refer to something.
_LEAST_NAME: Final = 3
_LONG: Final = 120
# Digits of a number that counts.
_FEW: Final = 3


def named_shape(name: str) -> Shape | None:
    """Return the shape that values of that name have, None if it tells nothing of it."""
    return _named(name) if len(name) <= _LONG else _named.__wrapped__(name)


@lru_cache(maxsize=1024)
def _named(name: str) -> Shape | None:
    return next((shape for word in reversed(words_of(name)) if (shape := _BY_NAME.get(word))), None)


def words_of(name: str) -> list[str]:
    """Return the words of an identifier in small letters."""
    return [word.lower() for word in _NAME_PARTS.findall(name)]


def shape_of(value: str, name: str) -> Shape:
    """Return what a value under ``name`` is; its own form goes first."""
    if _SIGN_OF_ADDRESS.search(value) is not None:
        match = _WITHIN.fullmatch(value.strip())
        if match is not None and match.lastgroup is not None:
            return match.lastgroup  # type: ignore[return-value]
        if _DATE.fullmatch(value):
            return "date"
    named = named_shape(name)
    # The number of guests does not identify them.
    counts = named in ("user", "url", "path", "email") and len(value) <= _FEW and _NUMBER.fullmatch(value) is not None
    if named is not None and not counts:
        return named
    if _NUMBER.fullmatch(value):
        return "number"
    if _PATH.fullmatch(value):
        return "path"
    if "\n" in value.strip() or len(value) > _LONG:
        return "text"
    words = words_of(name)
    if _WRITTEN.isdisjoint(words):
        return "word"
    return "text" if _MESSAGES.isdisjoint(words) else "message"


def addresses_in(value: str) -> Iterator[tuple[Shape, int, int]]:
    """Yield the addresses in a text with their spans."""
    if _SIGN_OF_ADDRESS.search(value) is None:
        return
    for match in _WITHIN.finditer(value):
        if match.lastgroup is not None:
            yield match.lastgroup, *match.span()  # type: ignore[misc]


def host_of(url: str) -> str:
    """Return the host of a URL, empty if it has none."""
    match = _HOST.match(url)
    return match[1] if match is not None else ""


def date_of(value: str) -> tuple[int, int, int] | None:
    """Return year, month and day of a value that begins with an ISO date."""
    match = _DATE.fullmatch(value)
    return (int(match[1]), int(match[2]), int(match[3])) if match is not None else None


def is_in_date(text: str, start: int, end: int) -> bool:
    """Return whether a number in a text is the day of a date, or part of a time or of a longer number."""
    before, after = text[max(0, start - 20) : start].rstrip(" ,"), text[end : end + 20].lstrip(" ,")
    if text[start - 1 : start] in (":", "-", "/") or text[end : end + 1] in (":", "-", "/"):
        return True
    names = (_NAME_PARTS.findall(before[-12:])[-1:], _NAME_PARTS.findall(after[:12])[:1])
    return any(word.lower()[:3] in _MONTHS for found in names for word in found)


def thing_of(name: str) -> str:
    """Return what an identifier identifies, by the name of its argument: ``file`` for ``file_id``, empty for ``id``."""
    words = words_of(name)
    return words[-2].rstrip("s") if len(words) > 1 and _BY_NAME.get(words[-1]) == "id" else ""


def is_written(key: str) -> bool:
    """Return whether a field of that name holds what people write."""
    return not _WRITTEN.isdisjoint(words_of(key))


def is_naming(key: str) -> bool:
    """Return whether a field of that name holds names and places."""
    return not _NAMING.isdisjoint(words_of(key))


def is_identifying(key: str) -> bool:
    """Return whether a field of that name holds identifiers. One without a name may."""
    return not key or not _IDENTIFYING.isdisjoint(words_of(key))


def names_in(value: str) -> Iterator[str]:
    """Yield the names by which a user may refer to a thing, from a field's value: its title, file or person, or a sum.

    An address gives the words of its person's name; a file is named without its ending and a subject without ``Re:``. A
    single word counts only if it is written like a name, since others describe a state. A date and a small number are
    not names.
    """
    shape = shape_of(value, "")
    if shape == "email":
        yield value
        yield from (word for word in _NAME_PARTS.findall(value.partition("@")[0]) if len(word) >= _LEAST_NAME)
    elif shape in ADDRESSES:
        yield from {value, _ENDING.sub("", value)}
    elif shape == "number":
        if sum(map(str.isdigit, value)) >= _LEAST_NAME:
            yield from (value, f"{value}0")[: 1 + (value[-2:-1] == ".")]
    elif shape != "date" and len(value) <= _LONG:
        name = _ANSWERED.sub("", value)
        names = dict.fromkeys((name, _ENDING.sub("", name)))
        yield from (each for each in names if len(each) > _LEAST_NAME and (not each.isalpha() or each.istitle()))


def reads_by_name(tool: str) -> bool:
    """Return whether a tool's name says that it only reads."""
    words = words_of(_SAME_TOOL.split(tool)[-1])
    return bool(words) and words[0] in _READS


def is_document(tool: str) -> bool:
    """Return whether a tool's name says that its output is a document, which has no fields."""
    words = words_of(_SAME_TOOL.split(tool)[-1])
    return bool(words) and (words[0] in _READS_DOCUMENTS or not _DOCUMENTS.isdisjoint(words))
