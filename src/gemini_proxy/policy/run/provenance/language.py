"""Provenance in the language: ``untrusted(call)``, ``private(call)`` and ``acts(call)``."""

import threading
from collections.abc import Iterator
from typing import Any

from gemini_proxy.policy.errors import EvaluationError
from gemini_proxy.policy.run.events import Event
from gemini_proxy.policy.run.operators import items_of
from gemini_proxy.policy.run.provenance.labels import Labels, acts_by_hint
from gemini_proxy.policy.run.provenance.origins import Origins, OriginsCache, Traced
from gemini_proxy.policy.run.provenance.private import PrivateData
from gemini_proxy.policy.run.provenance.restored import Restored
from gemini_proxy.policy.run.ranges import Mark
from gemini_proxy.policy.run.run import Run
from gemini_proxy.policy.run.values import Address, MarkedRecord, Piece, cut, word_for


def untrusted(run: Run, value: Any, trusted: Any = None, shapes: Any = None, fields: Any = True) -> list[MarkedRecord]:
    """Return the values of a call or an argument that neither the user nor anyone trusted said before it.

    ``trusted`` are names of tools whose outputs are trusted, beside those that are labeled so; ``shapes`` are the
    shapes that are asked for, all by default. Without ``fields`` a whole field of an output vouches for no address;
    with "named" it does only if its record is one that the user named. A value is marked in the call and at its source.
    """
    if value is None:
        return []
    call, name, arguments = _of_call(run, value)
    added = () if trusted is None else tuple(items_of(trusted, run))
    key = ("untrusted", added, bool(fields), id(arguments))
    traced = run.scans.get(key)
    if traced is None:
        traced = run.scans[key] = list(_origins(run, added, bool(fields)).untrusted(arguments, name, call))
    if not traced:
        run.charge(1)
        return []
    wanted = None if shapes is None else items_of(shapes, run)
    records = [
        _record(run, trace, call)
        for trace in traced
        if (wanted is None or trace.shape in wanted) and (fields == "named" or not trace.source.unnamed)
    ]
    run.items(len(records))
    run.marks.extend(mark for record in records for mark in record.marks)
    return records


def private(run: Run, call: Any, tools: Any = None) -> list[MarkedRecord]:
    """Return the values of a call that contain something private, read before it and not said by the user.

    ``tools`` are names of tools whose outputs are private, beside those that are labeled so. A masked value that is
    restored in the call is private, whatever its source.
    """
    if not isinstance(call, Event) or call.kind != "ToolCall":
        raise EvaluationError(f"private(...) needs a tool call, not a {word_for(call)}")
    names = () if tools is None else tuple(items_of(tools, run))
    key = ("private", names)
    if key not in run.scans:
        events = [event for kind in ("Message", "ToolOutput") for event in run.events(kind)]
        events.sort(key=lambda event: event.position)
        run.scans[key] = PrivateData(events, Labels.of(run.parameters, (), names), run, _restored(run))
    data: PrivateData = run.scans[key]
    records = [_record(run, found, call) for found in data.carried_by(call)]
    run.items(len(records))
    run.marks.extend(mark for record in records for mark in record.marks)
    return records


def acts(run: Run, call: Any) -> bool:
    """Return whether a call has an effect: by labels, else hints, else the tool's name. Unknown tools have one."""
    if not isinstance(call, Event) or call.kind != "ToolCall":
        raise EvaluationError(f"acts(...) needs a tool call, not a {word_for(call)}")
    run.charge(1)
    name = call.data["function"]["name"]
    key = ("acts", name)
    known: bool | None = run.scans.get(key)
    if known is None:
        known = run.scans[key] = _labels(run, ()).acts_by(name, _hints(run).get(name))
    return known


def _hints(run: Run) -> dict[str, bool]:
    """Return what declarations say of their tools' calls; if two of one tool differ, that they have an effect."""
    key = ("hints",)
    if key not in run.scans:
        tools = run.events("Tool")
        run.charge(1 + len(tools))
        hints = [(tool.data["name"], acts_by_hint(tool.data)) for tool in tools]
        acting = {name for name, hint in hints if hint}
        run.scans[key] = {name: name in acting for name, hint in hints if hint is not None}
    found: dict[str, bool] = run.scans[key]
    return found


def _labels(run: Run, trusted: tuple[Any, ...]) -> Labels:
    """Return the labels of this check, read once."""
    key = ("labels", trusted)
    if key not in run.scans:
        run.scans[key] = Labels.of(run.parameters, trusted)
    found: Labels = run.scans[key]
    return found


def _restored(run: Run) -> Restored:
    """Return what is put back into the response that is checked, read once."""
    key = ("restored",)
    if key not in run.scans:
        run.scans[key] = Restored.of(run.parameters)
    found: Restored = run.scans[key]
    return found


def _origins(run: Run, trusted: tuple[Any, ...], fields: bool) -> Origins:
    """Return what traces the conversation's values if these tools are trusted as well, made once a check."""
    key = ("origins", trusted, fields)
    if key not in run.scans:
        events = [event for kind in ("Message", "ToolOutput", "Tool") for event in run.events(kind)]
        events.sort(key=lambda event: event.position)
        run.scans[key] = _kept().origins(events, _labels(run, trusted), run, fields=fields, restored=_restored(run))
    found: Origins = run.scans[key]
    return found


_THREAD = threading.local()


def _kept() -> OriginsCache:
    """Return this thread's indices: a check runs in one thread from beginning to end."""
    if not hasattr(_THREAD, "kept"):
        _THREAD.kept = OriginsCache()
    kept: OriginsCache = _THREAD.kept
    return kept


def _of_call(run: Run, value: Any) -> tuple[Event, str, Any]:
    """Return the call, the name of the argument if the value is one, and the arguments."""
    if isinstance(value, Event) and value.kind == "ToolCall":
        return value, "", value.data["function"]["arguments"]
    if isinstance(value, dict | list | str):
        key = ("arguments",)
        if key not in run.scans:
            run.scans[key] = dict(_arguments(run))
        known = run.scans[key].get(id(value))
        if known is not None:
            return *known, value
    raise EvaluationError(f"untrusted(...) needs a tool call or one of its arguments, not a {word_for(value)}")


def _arguments(run: Run) -> Iterator[tuple[int, tuple[Event, str]]]:
    """Yield every call and argument by the identity of its value, the first of one identity last."""
    for call in reversed(run.events("ToolCall")):
        arguments = call.data["function"]["arguments"]
        run.charge(1 + len(arguments))
        yield from ((id(item), (call, name)) for name, item in arguments.items())
        yield id(arguments), (call, "")


def _record(run: Run, found: Traced, call: Event) -> MarkedRecord:
    run.charge(2)
    # A number has no string object of its own: its root is its path.
    if type(found.leaf) is Piece and isinstance(found.leaf.root, Address):
        marks: list[Mark] = [(Address(f"{call.address}.function.arguments.{found.path}"), -1, -1)]
        value = found.value
    else:
        marks = [(found.leaf, found.start, found.start + len(found.value))]
        value = cut(found.leaf, found.start, found.start + len(found.value))
    source = found.source
    if source.place is not None:
        marks.append(source.place)
    fields = {
        "path": found.path, "value": value, "shape": found.shape, "origin": source.origin, "share": source.share,
        "tool": source.tool,
    }  # fmt: skip
    return MarkedRecord(fields, marks)
