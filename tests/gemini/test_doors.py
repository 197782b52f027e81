"""The table of doors: no method of Google's SDK is unknown, and nothing but the table's paths goes upstream."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import google.genai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemini_proxy.errors import BadRequest, MethodNotAllowed, NotFound
from gemini_proxy.gemini.calls import read_call
from gemini_proxy.gemini.doors import DEFAULT_DUTIES, DOORS, ROWS, Duty, Row, matches
from gemini_proxy.gemini.wires import WIRES
from tests.gemini.doors_table import DOCUMENT, doors, methods, written

OPEN = dict.fromkeys(DOORS, Duty.PASS)
NODE = Path(os.environ.get("TEST_NODE_MODULES", "/nonexistent"))
SDK = Path(google.genai.__file__).parent
STATED = re.compile(r"""path = '([^'?]*)[^']*'(?:\.format_map)?""")
ASKED = re.compile(r"""request(?:_streamed)?\(\s*'(\w+)'|http_method\s*=\s*'(\w+)'""")
GENERATED = re.compile(r'method="(\w+)",\s*path="([^"]*)"')
NAMES = {
    "model": ["models/m", "tunedModels/m"],
    "models_url": ["models", "tunedModels"],
    "resourceName": ["models/m"],
    "operationName": ["models/m/operations/o", "fileSearchStores/s/operations/o", "tunedModels/m/operations/o"],
    "file_search_store_name": ["fileSearchStores/s"],
    "parent": ["fileSearchStores/s"],
}
"""What the SDK puts in for names that are paths."""
NAMED = {
    "caches.py": ["cachedContents/c"],
    "documents.py": ["fileSearchStores/s/documents/d"],
    "file_search_stores.py": ["fileSearchStores/s"],
    "models.py": ["models/m"],
    "tunings.py": ["tunedModels/m", "tuningJobs/j"],
}
OF_VERTEX = re.compile(
    r"batchPredictionJobs|/fileSearchStores/s/tuningJobs|:computeTokens|"
    # Names that are of two kinds: not every method has both.
    r"tunedModels/m:(?:predict|count|batch|async|fetch|cancel)"
)
"""Paths of Vertex AI alone, and those that nobody asks for."""


def sdk_paths() -> Iterator[tuple[str, str]]:
    """Every HTTP method and path in the source of google-genai, with something for each name."""
    for file in sorted(SDK.glob("*.py")):
        source = file.read_text()
        for stated in STATED.finditer(source):
            asked = ASKED.search(source, stated.end(), stated.end() + 2500)
            if asked is None or file.name.startswith("_"):
                continue
            for path in filled(stated[1], file.name):
                yield (asked[1] or asked[2]).upper(), path
    for file in sorted(SDK.glob("_gaos/*.py")):
        for method, path in GENERATED.findall(file.read_text()):
            yield method, re.sub(r"\{\w+\}", "x", path.replace("{api_version}", "v1"))


ON_VERTEX = re.compile(
    r"if self\._api_client\.vertexai:\n(?:(?!else:\n {6}request_dict).){0,500}?path = '([^'?]*)", re.DOTALL
)
VERTEX_NAMES = {
    "model": ["publishers/google/models/m"],
    "resourceName": ["publishers/google/models/m"],
    "operationName": ["publishers/google/models/m/operations/o", "operations/o"],
    "models_url": ["publishers/google/models", "models"],
    "parent": [""],
}
VERTEX_NAMED = {"caches.py": ["cachedContents/c"], "tunings.py": ["tuningJobs/j"], "models.py": ["models/m"]}


def vertex_paths() -> Iterator[tuple[str, str]]:
    """The same of what it calls on Vertex AI, within a project's location."""
    for file in sorted(SDK.glob("[a-z]*.py")):
        source = file.read_text()
        for stated in ON_VERTEX.finditer(source):
            asked = ASKED.search(source, stated.end(), stated.end() + 2500)
            if asked is None:
                continue
            name = re.search(r"\{(\w+)\}", stated[1])
            values = (VERTEX_NAMES.get(name[1]) or VERTEX_NAMED.get(file.name, ["x"])) if name else [""]
            if stated[1] == "{model}":
                values = ["models/m"]
            for value in values:
                path = stated[1].replace(name[0], value) if name else stated[1]
                yield (asked[1] or asked[2]).upper(), f"/v1beta1/projects/p/locations/us/{path.lstrip('/')}"


def node_paths() -> Iterator[tuple[str, str]]:
    """The same of @google/genai, each path in every form that it may have."""
    source = (NODE / "@google" / "genai" / "dist" / "node" / "index.mjs").read_text()
    for stated in re.finditer(r"formatMap\('([^'?]*)", source):
        asked = re.search(r"httpMethod: '(\w+)'", source[stated.end() : stated.end() + 1500])
        if asked is not None:
            yield asked[1], stated[1]


def filled(path: str, file: str) -> Iterator[str]:
    """The paths that ``path`` may become."""
    path = re.sub(r"\{+api_version\}+", "v1", path)
    name = re.search(r"\{(\w+)\}", path)
    if name is None:
        yield path if path.startswith(("/", "upload/")) else f"v1/{path}"
        return
    values = NAMED.get(file, ["x"]) if path.startswith(name[0]) else ["x"]
    for value in NAMES.get(name[1], values):
        yield from filled(path.replace(name[0], value), file)


def test_every_method_of_the_sdk_has_a_door() -> None:
    """Whatever google-genai calls is in the table, under its own HTTP method."""
    paths = {(method, f"/{path.lstrip('/')}") for method, path in sdk_paths() if not OF_VERTEX.search(path)}
    unknown = [(method, path) for method, path in paths if not any(match.row.http == method for match in matches(path))]
    assert sorted(unknown) == [] and len(paths) > 70


def test_every_method_of_the_sdk_on_vertex_has_a_door() -> None:
    paths = set(vertex_paths())
    unknown = [(method, path) for method, path in paths if not any(match.row.http == method for match in matches(path))]
    assert sorted(unknown) == [] and len(paths) > 20


@pytest.mark.skipif(not (NODE / "@google" / "genai").is_dir(), reason="TEST_NODE_MODULES names no @google/genai")
def test_every_method_of_the_sdk_for_node_has_a_door() -> None:
    kept = [name for names in NAMED.values() for name in names]
    unknown, known = [], 0
    for method, stated in set(node_paths()):
        if stated.startswith(("batchPredictionJobs", "{parent}/tuningJobs")):
            continue
        forms = [form for file in (*NAMED, "") for form in filled(stated, file)]
        forms += [form for name in kept for form in filled(stated.replace("{name}", name), "")]
        place = "/v1beta1/projects/p/locations/us/"
        forms += [place + stated.replace("{model}", "publishers/google/models/m")]
        if any(match.row.http == method for form in forms for match in matches(f"/{form.lstrip('/')}")):
            known += 1
        else:
            unknown.append((method, stated))
    assert unknown == [] and known > 25


def test_the_document_has_the_table() -> None:
    """``python -m tests.gemini.doors_table`` writes it."""
    text = DOCUMENT.read_text()
    assert written(text) == text
    assert doors() in text and methods() in text


@pytest.mark.parametrize("row", ROWS.values(), ids=lambda row: row.method)
def test_each_row_is_behind_a_door_and_reads_its_own_paths(row: Row) -> None:
    door = DOORS[row.door]
    assert row.wire in WIRES
    assert door.default in door.duties and Duty.DENY in door.duties
    for path in row.paths:
        target = re.sub(r"\{(?!v\})\w+\}", "x", path).replace("{v}", "v1beta1")
        call = read_call(row.http, target, OPEN)
        assert (call.method, call.upstream_target) == (row.method, target)
        for hostile in ("%2e%2e", "..", "a%2Fb", "a@b", "a\\b", "a b", "a/../b", "a\r\nb"):
            for name in re.findall(r"\{(?!v\})\w+\}", path):
                given = re.sub(r"\{\w+\}", "x", path.replace("{v}", "v1").replace(name, hostile))
                with pytest.raises((NotFound, MethodNotAllowed)):
                    read_call(row.http, given, OPEN)


def test_a_shut_door_names_the_setting_that_opens_it() -> None:
    with pytest.raises(NotFound, match=re.escape('doors.tuning = "pass" opens it')):
        read_call("GET", "/v1beta/tunedModels")
    with pytest.raises(NotFound, match="keeps shut"):
        read_call("POST", "/v1beta/models/m:generateAnswer")
    with pytest.raises(NotFound, match=re.escape('doors.tokens = "guard" opens it')):
        read_call("POST", "/v1/models/m:countTokens", {**DEFAULT_DUTIES, "tokens": Duty.DENY})


SHAPE = re.compile(r"/(?:upload/|ws/)?[A-Za-z0-9._:/-]+(\?[A-Za-z0-9%&=._+-]*)?")
WORDS = [
    *"/ // v1 v1beta upload ws gemini x : ? & = alt=media .. . % %2f %00 @evil.com # \\ \r\n ñ key=K".split(" "),
    *sorted({step for row in ROWS.values() for path in row.paths for step in re.findall(r"[A-Za-z_]+", path)}),
]


@settings(max_examples=100)
@given(st.sampled_from(["GET", "POST", "DELETE", "PATCH", "PUT"]), st.lists(st.sampled_from(WORDS), max_size=10))
def test_whatever_is_open_only_what_was_matched_goes_upstream(http_method: str, words: list[str]) -> None:
    try:
        call = read_call(http_method, "".join(words), OPEN)
    except (BadRequest, NotFound, MethodNotAllowed):
        return
    path = call.upstream_target.partition("?")[0]
    assert SHAPE.fullmatch(call.upstream_target)
    assert ".." not in path.split("/") and "%" not in path
