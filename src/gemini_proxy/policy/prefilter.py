"""Tell which rules may fire on messages, by one search through their JSON before a conversation is built.

The ``Needs`` of a rule must be met for it to fire: kinds of event, and one pattern of each clause. They are necessary,
not sufficient: a rule whose needs are met still has to run. All rules run if the messages have a form in which a search
might miss something.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from time import thread_time
from typing import Any, Final, NamedTuple, TypeGuard

import orjson
import re2

from gemini_proxy.policy.policy import LONGEST_NEED, CompiledRule, Need, Policy, RuleWindow
from gemini_proxy.policy.run.readings import begin_a_turn, joined_texts
from gemini_proxy.policy.run.values import count_chars

_KINDS: Final[Mapping[str, int]] = {"Message": 1, "ToolCall": 2, "ToolOutput": 4, "Tool": 8}
_MOST_CHARS: Final = 100_000
# The most calls of a message, or tools: a thousand take a millisecond.
_MOST_LISTED: Final = 1_000
_PIECE: Final = 4096
# Seconds for a piece, many times the usual time. A search that has lost its automaton takes longer.
_SLOW: Final = 0.002
_MOST_RESULTS: Final = 256
_MOST_PREFILTERS: Final = 64
_MAX_MEMORY: Final = 2 << 20
# Numbers that JSON may write differently from the form that rules read: those with an exponent in either form.
_OTHER_NUMBERS: Final = r"[0-9]e[+-]?[0-9]|0\.0000"


class FoundNeeds(NamedTuple):
    """The result of a scan of messages: the sum of ``_KINDS`` of their events, and the numbers of found needs."""

    kinds: int
    found: tuple[int, ...]


class Prefilter:
    """The needs of all rules of some policies behind one search. Safe to share between threads."""

    __slots__ = ("_calls", "_needs", "_policies", "_results", "_set")

    def __init__(self, policies: Sequence[Policy], windows: frozenset[RuleWindow] = frozenset()) -> None:
        """With ``windows`` only rules that have one of them count."""
        self._policies = tuple(
            tuple(rule for rule in policy.compiled if not windows or rule.rule.window in windows) for policy in policies
        )
        rules = [rule for compiled in self._policies for rule in compiled]
        needs = dict.fromkeys(need for rule in rules for clause in rule.needs.clauses for need in sorted(clause))
        self._set, numbers = _search_for([need for need in needs if not need.call])
        self._calls = {need.pattern: -number for number, need in enumerate((need for need in needs if need.call), 1)}
        numbers.update((need, (self._calls[need.pattern],)) for need in needs if need.call)
        # The kinds of each rule, and for each clause the numbers of its patterns, one of which must be found.
        self._needs = {
            id(rule): (
                sum(_KINDS[kind] for kind in rule.needs.kinds),
                [frozenset(number for need in clause for number in numbers[need]) for clause in rule.needs.clauses],
            )
            for rule in rules
        }
        self._results: dict[FoundNeeds, tuple[tuple[CompiledRule, ...], ...]] = {}

    def rules(
        self, messages: Sequence[Mapping[str, Any]], first: int = 0, seen: "FoundNeeds | None" = None
    ) -> tuple[tuple[CompiledRule, ...], ...]:
        """Return for each policy its rules that may fire, in their order.

        ``seen`` is the result of ``see`` for the ``first`` messages. These are not searched again unless a turn joins
        them to the others.
        """
        if not first:
            seen = self.see(messages)
        elif rest := messages[first:]:
            begins = begin_a_turn(rest, messages[:first])
            seen = (seen and _both(seen, self.see(rest))) if begins else self.see(messages)
        if seen is None:
            return self._policies
        return self._may_fire_on(seen)

    def _may_fire_on(self, seen: FoundNeeds) -> tuple[tuple[CompiledRule, ...], ...]:
        known = self._results.get(seen)
        if known is None:
            known = tuple(tuple(rule for rule in rules if self._may_fire(rule, *seen)) for rules in self._policies)
            if len(self._results) < _MOST_RESULTS:
                self._results[seen] = known
        return known

    def rules_on(self, piece: str, readings: Sequence[str]) -> tuple[tuple[CompiledRule, ...], ...]:
        """Return the rules that may fire on a response of one text, which readers join to longer ones."""
        try:
            texts = [orjson.dumps(({"role": "assistant", "content": piece},)), *map(str.encode, readings)]
        except (TypeError, ValueError):
            return self._policies
        found = self._found(texts)
        return self._policies if found is None else self._may_fire_on(FoundNeeds(_KINDS["Message"], found))

    def see(self, messages: Sequence[Mapping[str, Any]]) -> "FoundNeeds | None":
        """Look for the needs in messages. Return None if one may be overlooked."""
        seen = _seen(messages)
        if seen is None:
            return None
        kinds, linked, called = seen
        try:
            texts = [orjson.dumps(messages)]
            if linked:
                texts.extend(text.encode() for text in joined_texts(messages))
        except (TypeError, ValueError):
            return None
        found = self._found(texts)
        if found is not None and called:
            found = (*sorted({number for name in called if (number := self._calls.get(name))}), *found)
        return None if found is None else FoundNeeds(kinds, found)

    def _may_fire(self, rule: CompiledRule, kinds: int, found: tuple[int, ...]) -> bool:
        needed, clauses = self._needs[id(rule)]
        return not needed & ~kinds and not any(clause.isdisjoint(found) for clause in clauses)

    def _found(self, texts: Sequence[bytes]) -> tuple[int, ...] | None:
        """Return the numbers of what is in the texts, ascending; None where that takes too long to tell."""
        if len(texts) == 1 and len(texts[0]) <= _PIECE:
            numbers: list[int] | None = self._set.Match(texts[0])
            return tuple(sorted(numbers)) if numbers else None
        if sum(map(len, texts)) > _MOST_CHARS:
            return None
        found: set[int] = set()
        for text in texts:
            for at in range(0, max(1, len(text)), _PIECE):
                started = thread_time()
                numbers = self._set.Match(text[max(0, at - LONGEST_NEED) : at + _PIECE])
                if not numbers or thread_time() - started > _SLOW:
                    return None
                found.update(numbers)
        return tuple(sorted(found))


@lru_cache(maxsize=_MOST_PREFILTERS)
def prefilter_of(policies: tuple[Policy, ...], windows: frozenset[RuleWindow] = frozenset()) -> Prefilter:
    """Return the prefilter of policies, which is kept for their next check."""
    return Prefilter(policies, windows)


def _both(seen: FoundNeeds, other: FoundNeeds | None) -> FoundNeeds | None:
    if other is None:
        return None
    found = seen.found if seen.found == other.found else tuple(sorted({*seen.found, *other.found}))
    return FoundNeeds(seen.kinds | other.kinds, found)


def _search_for(needs: Iterable[Need]) -> tuple[Any, dict[Need, tuple[int, ...]]]:
    """Return one search for all needs, and the numbers that it gives where each is met."""
    options = re2.Options()
    options.log_errors = False
    options.never_capture = True
    options.max_mem = _MAX_MEMORY
    search = re2.Set.SearchSet(options)
    # This pattern is found in any text, unless the search runs out of memory: then it finds nothing at all. An empty
    # one would be found at every byte, which takes the search twice as long.
    anything = search.Add(r"\z")
    other_number = search.Add(_OTHER_NUMBERS)
    numbers: dict[Need, tuple[int, ...]] = {}
    for need in needs:
        try:
            number = search.Add(need.pattern)
        except re2.error:
            number = anything
        numbers[need] = (number, other_number) if need.numeric else (number,)
    try:
        search.Compile()
    except re2.error:
        # Out of memory: every need counts as met.
        return _search_for(())[0], dict.fromkeys(numbers, (anything,))
    return search, numbers


def _seen(messages: Sequence[Mapping[str, Any]]) -> tuple[int, bool, list[str]] | None:
    """Return the sum of ``_KINDS`` of the messages' events, whether readers may join texts, and the tools called.

    None if messages are long, have a form that rules cannot read, or one in which a rule reads text that their JSON
    does not have.
    """
    if not _ONLY_OBJECTS.issuperset(map(type, messages)):
        return None
    kinds, linked, last, chars = 0, False, "", 0
    called: list[str] = []
    for message in messages:
        role = message.get("role")
        if type(role) is not str:
            if role is not None or not _are_tools(message.get("tools")):
                return None
            kinds |= 8 if message["tools"] else 0
            continue
        content = message.get("content")
        if type(content) is str:
            chars += len(content)
        elif type(content) not in _CONTENTS:
            return None
        else:
            chars += count_chars(content, _MOST_CHARS)
            if chars > _MOST_CHARS:
                return None
            linked = linked or (type(content) is list and len(content) > 1)
        if role == "tool":
            kinds |= 4
            continue
        kinds |= 1
        # Other messages neither belong to a turn nor end one.
        if role == "user" or role == "assistant":
            linked = linked or role == last or "turn" in message
            last = role
        if "tool_calls" in message and (calls := message["tool_calls"]):
            if not _are_calls(calls):
                return None
            kinds |= 2
            called.extend([call["function"]["name"] for call in calls])
    return None if chars > _MOST_CHARS else (kinds, linked, called)


_ONLY_OBJECTS: Final = frozenset({dict})
_CONTENTS: Final = frozenset((list, dict, int, float, type(None)))


def _are_calls(calls: object) -> bool:
    """Return whether these are calls with arguments as data: JSON in JSON is written otherwise."""
    return _is_short_list(calls) and all(
        type(call) is dict
        and type(function := call.get("function")) is dict
        and type(function.get("name")) is str
        and (type(function.get("arguments")) is dict or function.get("arguments") is None)
        for call in calls
    )


def _are_tools(tools: object) -> bool:
    if not _is_short_list(tools):
        return False
    for tool in tools:
        if type(tool) is not dict or type(tool.get("name")) is not str:
            return False
    return True


def _is_short_list(items: object) -> TypeGuard[list[Any]]:
    return type(items) is list and len(items) <= _MOST_LISTED
