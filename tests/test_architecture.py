"""docs/architecture.md says where things are: a function that it names is there. So are files named elsewhere."""

import importlib
import re
from pathlib import Path

import pytest

from tests.conftest import LONGEST

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "architecture.md").read_text()
NAMED = re.findall(r"`([a-z_/]+)\.py` \|? ?`([A-Za-z_.]+)`", TEXT)


@pytest.mark.parametrize(("module", "name"), NAMED)
def test_every_function_that_is_named_is_there(module: str, name: str) -> None:
    found: object = importlib.import_module(f"gemini_proxy.{module.replace('/', '.')}")
    for step in name.split("."):
        found = getattr(found, step)


def test_the_walks_are_there_and_every_file_is() -> None:
    assert len(NAMED) > 30
    for file in re.findall(r"`([a-z_/]+\.py)`", TEXT):
        assert (ROOT / "src" / "gemini_proxy" / file).is_file(), file


def test_every_package_is_in_the_table() -> None:
    packages = {path.parent.name for path in (ROOT / "src" / "gemini_proxy").glob("*/__init__.py")} - {"shipped"}
    rows = set(re.findall(r"^\| `([a-z]+)` \|", TEXT, re.MULTILINE))
    assert packages <= rows


def test_every_test_file_that_begins_early_is_there() -> None:
    for file in LONGEST:
        assert (ROOT / file).is_file(), file
