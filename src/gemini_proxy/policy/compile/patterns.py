"""Patterns after ``is``: which tool, and what its arguments must look like."""

from collections.abc import Callable
from typing import Any

from gemini_proxy.policy.compile.scope import Context
from gemini_proxy.policy.detectors import Detector
from gemini_proxy.policy.parse import syntax
from gemini_proxy.policy.run.events import Event
from gemini_proxy.policy.run.regex import Regex
from gemini_proxy.policy.run.run import Run
from gemini_proxy.policy.run.texts import texts_of
from gemini_proxy.policy.run.values import Content

Matcher = Callable[[Run, Any], bool]


def compile_pattern(context: Context, pattern: syntax.Pattern) -> Matcher:
    """Compile a test of a value. A tool output is tested as its call, without a call by its own ``name``."""
    if isinstance(pattern, syntax.ToolPattern):
        return _tool(context, pattern)
    if isinstance(pattern, syntax.TextPattern):
        return _text(context, pattern)
    if isinstance(pattern, syntax.Wildcard):
        return lambda run, value: True
    if isinstance(pattern, syntax.EntityPattern):
        return _entity(context, pattern)
    if isinstance(pattern, syntax.ListPattern):
        return _list([compile_pattern(context, item) for item in pattern.items])
    if isinstance(pattern, syntax.MappingPattern):
        return _mapping([(key, compile_pattern(context, item)) for key, item in pattern.entries])
    return _literal(pattern.value)


def _tool(context: Context, pattern: syntax.ToolPattern) -> Matcher:
    name = pattern.name
    arguments = None if pattern.arguments is None else compile_pattern(context, pattern.arguments)

    def match_tool(run: Run, value: Any) -> bool:
        if type(value) is not Event:
            return False
        call = value.call if value.kind == "ToolOutput" else value
        if call is None:
            # The client left the call out of the history: only the output itself names its tool.
            return arguments is None and value.data.get("name") == name
        if call.kind != "ToolCall":
            return False
        function = call.data["function"]
        return function["name"] == name and (arguments is None or arguments(run, function["arguments"]))

    return match_tool


def _text(context: Context, pattern: syntax.TextPattern) -> Matcher:
    written = pattern.value
    if isinstance(written, syntax.Name):
        known = context.constants.get(written.name)
        if known is None:
            context.unknown(written, written.name, ())
        if not isinstance(known.value, str):
            return _literal(known.value)
        literal, raw = known.value, known.raw
    else:
        literal, raw = str(written.value), written.raw
    regex = context.regex(pattern, raw if raw is not None else literal, "whole")
    return _whole(regex, literal)


def _whole(regex: Regex, literal: str) -> Matcher:
    def match_text(run: Run, value: Any) -> bool:
        if isinstance(value, str):
            if value == literal or regex.test(value, run):
                return True
            run.marks.append((value, -1, -1))
            return False
        return type(value) is Content and any([match_text(run, text) for text in value.texts])

    return match_text


def _entity(context: Context, pattern: syntax.EntityPattern) -> Matcher:
    detector = context.detectors.detectors.get("pii")
    if not isinstance(detector, Detector):
        context.fail(pattern, f"<{pattern.entity}> needs the pii detector, which is not installed")
    known = getattr(detector, "entities", frozenset((pattern.entity,)))
    context.warn_if_not_found(pattern, "pii", pattern.entity)
    if pattern.entity not in known | getattr(detector, "not_found", frozenset()):
        context.fail(pattern, f"unknown entity <{pattern.entity}>", f"one of {', '.join(sorted(known))}")
    options = {"entities": [pattern.entity]}

    def match_entity(run: Run, value: Any) -> bool:
        texts = list(texts_of(value))
        findings = list(detector.detect(texts, options, run))
        run.marks.extend((texts[found.text], found.start, found.end) for found in findings)
        return bool(findings)

    return match_entity


def _list(items: list[Matcher]) -> Matcher:
    def match_list(run: Run, value: Any) -> bool:
        if not isinstance(value, list | tuple) or len(value) != len(items):
            return False
        return all(matcher(run, item) for matcher, item in zip(items, value, strict=True))

    return match_list


def _mapping(entries: list[tuple[str, Matcher]]) -> Matcher:
    def match_mapping(run: Run, value: Any) -> bool:
        if not isinstance(value, dict):
            return False
        return all(key in value and matcher(run, value[key]) for key, matcher in entries)

    return match_mapping


def _literal(expected: object) -> Matcher:
    if isinstance(expected, bool) or expected is None:
        return lambda run, value: value is expected
    return lambda run, value: not isinstance(value, bool) and bool(value == expected)
