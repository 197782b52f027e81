"""Read the responses of a guardrails service strictly: any other form gives no verdict. No I/O."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import orjson

from gemini_proxy.errors import EngineUnavailable, Unauthenticated
from gemini_proxy.guardrails.rules import Guardrail
from gemini_proxy.guardrails.verdict import Verdict, Violation
from gemini_proxy.policy import MAX_RANGES, MAX_VIOLATIONS

_TEXT: Final = 300
"""Characters of a service's own words that are passed on: enough for a reason, too few for a page."""
_SHORTEST_KEY: Final = 8
"""Characters of the shortest key that is looked for: shorter ones occur in texts and addresses by chance."""
_DEEPEST: Final = 64
"""Levels of nesting in an error's args and kwargs."""
_Kind = TypeVar("_Kind")


@dataclass(frozen=True, slots=True)
class ServiceResponse:
    """A response as it came, and the key of its request."""

    status: int
    body: bytes = field(repr=False)
    key: str = field(repr=False)

    def words(self, text: str) -> str:
        """Return the service's own words as they may be passed on: short, and without the key."""
        bare = _without(self.key, text)
        return bare if len(bare) <= _TEXT else f"{bare[:_TEXT]}…"


@dataclass(frozen=True, slots=True)
class _PolicyResult:
    """The result for one policy. ``failure`` says why its check failed or did not end, None if it did."""

    violations: tuple[Violation, ...]
    failure: str | None


def read_verdict(response: ServiceResponse, guardrails: Sequence[Guardrail], milliseconds: float) -> Verdict:
    """Read ``{"result": [{"errors": [{"args", "kwargs", "ranges"}], "error_message"?}]}``, one result a guardrail.

    The first ``MAX_VIOLATIONS`` of a policy are read, as many as our own engine finds, and the key is removed. If there
    are violations, ``unchecked`` names the policies that the service could not check. Without any violation, such a
    policy raises EngineUnavailable, and so does a response of any other status or shape; 401 raises Unauthenticated.
    """
    if response.status != 200:
        raise _failed(response, _detail(response))
    documents = _member(_object(_json(response.body), "the response"), "result", list)
    if len(documents) != len(guardrails):
        raise _unreadable(f"{len(documents)} results for {len(guardrails)} policies")
    results = [
        _result(document, guardrail, response.key) for document, guardrail in zip(documents, guardrails, strict=True)
    ]
    violations = tuple(violation for result in results for violation in result.violations)
    failures = "; ".join(
        f"{guardrail.name}: {result.failure}"
        for result, guardrail in zip(results, guardrails, strict=True)
        if result.failure is not None
    )
    if failures and not violations:
        raise EngineUnavailable(f"The guardrails service could not check {response.words(failures)}")
    return Verdict(violations, milliseconds, response.words(failures) if failures else None)


def read_loaded(response: ServiceResponse) -> None:
    """Read the response to a policy that was sent ahead.

    Raises EngineUnavailable if it did not load, Unauthenticated for 401. Neither repeats the service's own message,
    which may quote the policy.
    """
    if response.status != 200:
        raise _failed(response)
    if _object(_json(response.body), "the response").get("errors"):
        raise EngineUnavailable("The guardrails service found errors in it")


def _failed(response: ServiceResponse, why: str = "") -> EngineUnavailable | Unauthenticated:
    if response.status == 401:
        return Unauthenticated("The guardrails service did not accept the API key")
    if 300 <= response.status < 400:
        return EngineUnavailable("The guardrails service answered with a redirect")
    return EngineUnavailable(f"The guardrails service answered with HTTP {response.status}{why and f': {why}'}")


def _detail(response: ServiceResponse) -> str:
    """Return the reason that the service gives for an error, empty if it gives none."""
    try:
        detail = _object(_json(response.body), "the response").get("detail")
    except EngineUnavailable:
        return ""
    return response.words(detail) if isinstance(detail, str) else ""


def _result(document: object, guardrail: Guardrail, key: str) -> _PolicyResult:
    result = _object(document, "a result")
    failure = result.get("error_message")
    if failure is not None and not isinstance(failure, str):
        raise _unreadable("an error_message is not text")
    errors = _member(result, "errors", list, default=None if failure is None else [])
    return _PolicyResult(tuple(_violation(error, guardrail, key) for error in errors[:MAX_VIOLATIONS]), failure)


def _violation(document: object, guardrail: Guardrail, key: str) -> Violation:
    error = _object(document, "an error")
    ranges = _member(error, "ranges", list)[:MAX_RANGES]
    if not all(isinstance(address, str) for address in ranges):
        raise _unreadable("a range is not text")
    args, kwargs = _member(error, "args", list), _member(error, "kwargs", dict, default={})
    return Violation(tuple(_bare(args, key)), _bare(kwargs, key), tuple(_bare(ranges, key)), guardrail)


def _bare(value: Any, key: str, levels: int = _DEEPEST) -> Any:
    """Remove the key wherever the service repeats it: clients see ``value``, and traces keep it."""
    if isinstance(value, str):
        return _without(key, value)
    if levels == 0:
        raise _unreadable("it is nested too deeply")
    if isinstance(value, list):
        return [_bare(inner, key, levels - 1) for inner in value]
    if isinstance(value, dict):
        return {_without(key, name): _bare(inner, key, levels - 1) for name, inner in value.items()}
    return value


def _without(key: str, text: str) -> str:
    return text.replace(key, "***") if len(key) >= _SHORTEST_KEY else text


def _json(body: bytes) -> object:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        raise _unreadable("it is not JSON") from None


def _object(value: object, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _unreadable(f"{name} is not an object")
    return value


def _member(of: dict[str, Any], name: str, kind: type[_Kind], default: _Kind | None = None) -> _Kind:
    value = of.get(name, default)
    if not isinstance(value, kind):
        raise _unreadable(f'"{name}" is missing or of another type')
    return value


def _unreadable(why: str) -> EngineUnavailable:
    return EngineUnavailable(f"The response of the guardrails service cannot be read: {why}")
