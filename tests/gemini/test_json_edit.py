"""Edits of JSON texts: what they are to change changes, and no other byte does."""

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemini_proxy.gemini.json_edit import (
    JsonString,
    Path,
    StringEdit,
    edited,
    json_items,
    json_strings,
    without_items,
)

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=20,
)
OBJECTS = st.dictionaries(TEXTS, VALUES, max_size=5)


def written(value: Any, draw_ascii: bool, indent: int | None) -> bytes:
    """A JSON text in one of the ways in which clients write it."""
    return json.dumps(value, ensure_ascii=draw_ascii, indent=indent).encode()


def leaves(value: Any, path: Path = ()) -> list[tuple[Path, str]]:
    """Every string value, by a walk through the parsed text."""
    if isinstance(value, str):
        return [(path, value)]
    if isinstance(value, dict):
        return [leaf for name, inner in value.items() for leaf in leaves(inner, (*path, name))]
    if isinstance(value, list):
        return [leaf for index, inner in enumerate(value) for leaf in leaves(inner, (*path, index))]
    return []


@given(OBJECTS, st.booleans(), st.sampled_from([None, 2]))
def test_every_string_value_is_found_with_its_path(value: dict[str, Any], ascii_only: bool, indent: int | None) -> None:
    raw = written(value, ascii_only, indent)
    strings = list(json_strings(raw))
    assert [(string.path, string.text) for string in strings] == leaves(value)
    assert all(orjson.loads(b'"' + raw[string.start : string.end] + b'"') == string.text for string in strings)


@given(OBJECTS, st.booleans(), st.sampled_from([None, 2]), st.data())
def test_an_edit_changes_its_characters_alone(
    value: dict[str, Any], ascii_only: bool, indent: int | None, data: st.DataObject
) -> None:
    raw = written(value, ascii_only, indent)
    edits, expected = [], dict[int, str]()
    for string in json_strings(raw):
        start = data.draw(st.integers(0, len(string.text)))
        end = data.draw(st.integers(start, len(string.text)))
        text = data.draw(TEXTS)
        edits.append(StringEdit(string, start, end, text))
        expected[string.start] = string.text[:start] + text + string.text[end:]
    changed = edited(raw, data.draw(st.permutations(edits)))
    assert [string.text for string in json_strings(changed)] == [expected[edit.string.start] for edit in edits]
    assert _frame(changed, list(json_strings(changed))) == _frame(raw, [edit.string for edit in edits])


def _frame(raw: bytes, strings: list[JsonString]) -> bytes:
    """What stands around the strings."""
    pieces, at = [], 0
    for string in strings:
        pieces.append(raw[at : string.start])
        at = string.end
    return b"".join([*pieces, raw[at:]])


@given(OBJECTS)
def test_without_edits_nothing_changes(value: dict[str, Any]) -> None:
    raw = written(value, True, None)
    assert edited(raw, []) == raw


@pytest.mark.parametrize(
    "raw",
    [
        b'data: {"a": ["x", {"b": "y"}]}\r\n\r\n',
        b'data: {"a": ["x",\ndata: {"b": "y"}]}\n\n',
        b'\r\ndata:{"a":["x",{"b":"y"}]}\r\n\r\n',
        b'[{"a":["x",{"b":"y"}]}',
        b',\r\n{"a":["x",{"b":"y"}]}',
        b'  {"a":["x",{"b":"y"}]}]',
    ],
)
def test_what_a_framing_puts_around_an_object_is_no_part_of_it(raw: bytes) -> None:
    strings = list(json_strings(raw))
    assert [(string.path, string.text) for string in strings] == [(("a", 0), "x"), (("a", 1, "b"), "y")]
    assert edited(raw, [StringEdit(strings[1], 0, 1, '"\n')]) == raw.replace(b'"y"', b'"\\"\\n"')


@pytest.mark.parametrize("escaped", [r"\ud83d\ude00", "😀", r"\u00e9", "é", r"\n", r"\"", r"\\"])
def test_characters_are_counted_as_a_reader_counts_them(escaped: str) -> None:
    """An escape is one character, and so is a pair of surrogates."""
    raw = f'{{"a":"1{escaped}2"}}'.encode()
    (string,) = json_strings(raw)
    assert edited(raw, [StringEdit(string, 2, 3, "3")]) == raw.replace(b"2", b"3")
    assert edited(raw, [StringEdit(string, 1, 2, "")]) == b'{"a":"12"}'


LISTS = st.dictionaries(
    TEXTS, st.lists(OBJECTS, min_size=1, max_size=4) | VALUES.filter(lambda one: one != []), max_size=4
)


@given(LISTS, st.booleans(), st.sampled_from([None, 2]), st.data())
def test_items_are_cut_out_with_their_commas(
    value: dict[str, Any], ascii_only: bool, indent: int | None, data: st.DataObject
) -> None:
    """What is left is the same JSON without them; what they are in keeps its other bytes."""
    raw = written(value, ascii_only, indent)
    lists: dict[Any, Any] = {
        name: items for name, items in value.items() if isinstance(items, list) and _are_objects(items)
    }
    found = [item for item in json_items(raw) if item.path[0] in lists]
    paths = [(name, index) for name, items in lists.items() for index in range(len(items))]
    assert [item.path for item in found] == paths
    assert all(json.loads(raw[item.start : item.end]) == lists[item.path[0]][item.path[1]] for item in found)
    dropped = {
        (name, index)
        for name, items in lists.items()
        for index in data.draw(st.sets(st.integers(0, len(items) - 1), max_size=len(items) - 1))
    }
    expected = {
        name: [item for index, item in enumerate(inner) if (name, index) not in dropped] if name in lists else inner
        for name, inner in value.items()
    }
    assert json.loads(without_items(raw, dropped)) == expected
    assert without_items(raw, ()) == raw


def _are_objects(items: list[Any]) -> bool:
    return all(isinstance(item, dict) for item in items)
