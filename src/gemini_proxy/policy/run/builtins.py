"""Define the functions that every policy can call. Each takes the Run first, and charges for work before doing it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from gemini_proxy.policy.errors import EvaluationError
from gemini_proxy.policy.run.events import Event
from gemini_proxy.policy.run.normalized import normalize
from gemini_proxy.policy.run.operators import items_of
from gemini_proxy.policy.run.pinning import tool_changed
from gemini_proxy.policy.run.provenance.labels import acts
from gemini_proxy.policy.run.provenance.origins import untrusted
from gemini_proxy.policy.run.provenance.private import private
from gemini_proxy.policy.run.regex import Regex
from gemini_proxy.policy.run.run import Run
from gemini_proxy.policy.run.search import at_beginning, by_pattern
from gemini_proxy.policy.run.texts import images_of, in_lines, searched_texts, texts_of
from gemini_proxy.policy.run.values import Content, Joined, Piece, cut, word_for


@dataclass(frozen=True, slots=True)
class Function:
    """A callable of the language: how many positional arguments it takes, and which keywords."""

    call: Callable[..., Any]
    least: int
    most: int
    keywords: frozenset[str] = frozenset()


def find_all(run: Run, regex: Regex, value: Any) -> list[str]:
    """Find every match in every text of the value and mark it; the matches remember where they stand."""
    found: list[str] = []
    marks = run.marks
    texts = (value,) if isinstance(value, str) else searched_texts(value)
    if (lines := in_lines(texts)) is not None and regex.is_missing(lines, run):
        texts = [text for text in texts if type(text) is Joined]
    for text in texts:
        before = len(marks)
        for start, end in regex.spans(text, run):
            marks.append((text, start, end))
            found.append(cut(text, start, end))
            if len(found) > run.max_items:
                run.items(len(found))
        if type(text) is Joined and text.readings:
            own = [(mark[1], mark[2]) for mark in marks[before:] if type(mark) is tuple]
            across = by_pattern(run, regex, text, own)
            marks.extend(across)
            found.extend(cut(*place) for place in across)
            run.items(len(found))
    return found


def matches(run: Run, regex: Regex, value: Any) -> bool:
    """Return whether the pattern matches the beginning of the text, or of one of the texts of a message.

    A text that does not match is marked as a whole, so that a rule that requires the pattern points at that text.
    """
    if isinstance(value, str):
        if regex.test(value, run):
            return True
        if (place := at_beginning(run, regex, value)) is not None:
            run.marks.append(place)
            return True
        run.marks.append((value, -1, -1))
        return False
    if value is None:
        return False
    if isinstance(value, Content | Event):
        return any([matches(run, regex, text) for text in texts_of(value)])
    if isinstance(value, int | float):
        return regex.test(str(value), run)
    raise EvaluationError(f"match(...) needs a text, not a {word_for(value)}")


def length(run: Run, value: Any) -> int:
    """Implement ``len``: 0 for None."""
    if value is None:
        return 0
    if type(value) is Content:
        value = value.text if value.chunked else value.value
    if isinstance(value, str | list | tuple | dict):
        return len(value)
    raise EvaluationError(f"{word_for(value)} has no length")


def any_of(run: Run, value: Any) -> bool:
    """Return whether an item is true; a truth value is itself, so that any(...) fits every detector."""
    if isinstance(value, bool):
        return value
    items = items_of(value, run)
    run.charge(len(items) >> 3)
    return any(items)


def all_of(run: Run, value: Any) -> bool:
    """Return whether every item is true."""
    if isinstance(value, bool):
        return value
    items = items_of(value, run)
    run.charge(len(items) >> 3)
    return all(items)


def text(run: Run, *values: Any) -> list[str]:
    """Return the texts of the values as a list."""
    found = [item for value in values for item in texts_of(value)]
    run.items(len(found))
    return found


def normalized(run: Run, value: Any) -> Any:
    """Return the text of the value as a reader sees it, a list if it has several. Ranges stay exact."""
    if value is None:
        return None
    if isinstance(value, str):
        return normalize(value, run)
    texts = run.take(normalize(text, run) for text in texts_of(value))
    return texts[0] if len(texts) == 1 else texts


def image(run: Run, *values: Any) -> list[str]:
    """Return the URLs of the images in the values."""
    return [url for value in values for url in images_of(value)]


def _numbers(run: Run, values: tuple[Any, ...], name: str) -> list[Any]:
    items = items_of(values[0], run) if len(values) == 1 else values
    run.charge(len(items) >> 2)
    numbers = all(isinstance(item, int | float) for item in items)
    if not numbers and not (name != "sum" and all(isinstance(item, str) for item in items)):
        raise EvaluationError(f"{name}(...) needs numbers")
    return list(items)


def least(run: Run, *values: Any) -> Any:
    """Implement ``min``: None for nothing."""
    return min(_numbers(run, values, "min"), default=None)


def most(run: Run, *values: Any) -> Any:
    """Implement ``max``: None for nothing."""
    return max(_numbers(run, values, "max"), default=None)


def total(run: Run, values: Any) -> Any:
    """Implement ``sum``."""
    return sum(_numbers(run, (values,), "sum"))


def json_loads(run: Run, value: Any) -> Any:
    """Return the value of a JSON text, None if it is not JSON."""
    if not isinstance(value, str):
        value = "".join(texts_of(value))
    run.room(len(value))
    run.charge(1 + (len(value) >> 5))
    try:
        return orjson.loads(value)
    except ValueError:
        return None


def tool_call(run: Run, output: Any) -> Event | None:
    """Return the call that a tool output answers, None if there is none."""
    if isinstance(output, Event) and output.kind == "ToolOutput":
        return output.call
    if output is None:
        return None
    raise EvaluationError(f"tool_call(...) needs a tool output, not a {word_for(output)}")


def server(run: Run, event: Any) -> Any:
    """Return the server named in an event's metadata."""
    if not isinstance(event, Event):
        raise EvaluationError("server(...) needs an event")
    metadata = event.data.get("metadata")
    return metadata.get("server") if isinstance(metadata, dict) else event.data.get("server")


def as_text(run: Run, value: Any) -> str:
    """Return a value as an f-string shows it: texts as they are, data as JSON."""
    if isinstance(value, str):
        return value
    if type(value) is Content:
        return "".join(value.texts)
    if value is None or isinstance(value, bool | int | float):
        return str(value)
    if isinstance(value, Event):
        value = value.data
    run.charge(8)
    shown = orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS)
    run.room(len(shown))
    return shown.decode()


def substitute(run: Run, template: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """Implement ``str.format`` with only ``{}``, ``{0}`` and ``{name}``: no attributes, indexes or formats."""
    parts: list[str] = []
    at = automatic = size = 0
    while at < len(template):
        opening = min((where for where in (template.find("{", at), template.find("}", at)) if where >= 0), default=-1)
        if opening < 0:
            break
        parts.append(template[at:opening])
        if template[opening : opening + 2] in ("{{", "}}"):
            parts.append(template[opening])
            at = opening + 2
            continue
        closing = template.find("}", opening)
        field = template[opening + 1 : closing] if closing > opening else "{"
        field, automatic = (str(automatic), automatic + 1) if not field else (field, automatic)
        parts.append(as_text(run, _field(field, args, kwargs)))
        size += len(parts[-1])
        run.room(size)
        at = closing + 1
    parts.append(template[at:])
    run.room(size + len(template))
    return "".join(parts)


def _field(field: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    if field in kwargs:
        return kwargs[field]
    if field.isascii() and field.isdigit() and len(field) < 4 and int(field) < len(args):
        return args[int(field)]
    raise EvaluationError(f"format(...) has no value for {{{field}}}")


def should_allow_rbac(run: Run, data: Any, scope: Any, user: Any, user_roles: Any, role_grants: Any) -> bool:
    """Return whether one of the user's roles is granted the scope; ``data`` is not read."""
    if not isinstance(user_roles, dict) or not isinstance(role_grants, dict):
        raise EvaluationError("should_allow_rbac(...) needs the roles of users and the grants of roles as dictionaries")
    roles = items_of(user_roles.get(user) if isinstance(user, str) else None, run)
    grants = [role_grants.get(role) for role in roles if isinstance(role, str)]
    run.charge(1 + len(grants))
    return isinstance(scope, str) and any(bool(grant.get(scope)) for grant in grants if isinstance(grant, dict))


def as_tuple(run: Run, value: Any = ()) -> tuple[Any, ...]:
    """Implement ``tuple``."""
    return tuple(items_of(value, run))


FUNCTIONS: Mapping[str, Function] = {
    "len": Function(length, 1, 1),
    "empty": Function(lambda run, value: length(run, value) == 0, 1, 1),
    "any": Function(any_of, 1, 1),
    "all": Function(all_of, 1, 1),
    "min": Function(least, 1, 100),
    "max": Function(most, 1, 100),
    "sum": Function(total, 1, 1),
    "tuple": Function(as_tuple, 0, 1),
    "text": Function(text, 0, 100),
    "image": Function(image, 0, 100),
    "normalized": Function(normalized, 1, 1),
    "json_loads": Function(json_loads, 1, 1),
    "tool_call": Function(tool_call, 1, 1),
    "server": Function(server, 1, 1),
    "should_allow_rbac": Function(should_allow_rbac, 5, 5),
    "untrusted": Function(untrusted, 1, 1, frozenset(("trusted", "shapes", "fields"))),
    "private": Function(private, 1, 1, frozenset(("tools",))),
    "acts": Function(acts, 1, 1),
    "tool_changed": Function(tool_changed, 1, 1),
    # Writes nothing and is always true, so that a leftover print does not change a rule.
    "print": Function(lambda run, *values, **named: True, 0, 100, frozenset(("sep", "end", "flush"))),
}

__all__ = ["FUNCTIONS", "Function", "Piece", "find_all", "matches", "substitute"]
