"""Detectors that other packages bring by an entry point."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gemini_proxy.guardrails import plugins
from gemini_proxy.guardrails.engine import Check
from gemini_proxy.guardrails.native import NativeEngine
from gemini_proxy.guardrails.plugins import PluginError, installed_detectors
from gemini_proxy.guardrails.rules import guardrail
from gemini_proxy.guardrails.verdict import Verdict
from gemini_proxy.guardrails.workers import Workers
from gemini_proxy.policy import PolicyError

POLICY = """
from invariant.detectors import shouting

raise "no shouting" if:
    (m: Message)
    any(shouting(m.content))
"""
MODULE = """
from gemini_proxy.policy.detectors import Finding

class Shouting:
    name = "shouting"
    options = frozenset()

    def detect(self, texts, options, meter):
        for number, text in enumerate(texts):
            if text.isupper():
                yield Finding(number, 0, len(text), "SHOUT")
"""


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    installed_detectors.cache_clear()
    plugins._kept.clear()
    yield
    installed_detectors.cache_clear()
    plugins._kept.clear()
    sys.modules.pop("shouting_plugin", None)


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, value: str, module: str = MODULE) -> None:
    """A distribution of one module, as pip would leave it."""
    (folder / "shouting_plugin.py").write_text(module)
    info = folder / "shouting_plugin-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shouting-plugin\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[gemini_proxy.detectors]\nshouting = {value}\n")
    monkeypatch.syspath_prepend(str(folder))
    importlib.invalidate_caches()


def test_an_installed_detector_finds_and_marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, "shouting_plugin:Shouting")
    check = Check((guardrail("p", POLICY, "block"),), [{"role": "user", "content": "HELLO"}])
    verdict = NativeEngine(Workers(), 1.0).check(check)
    assert isinstance(verdict, Verdict)
    assert verdict.violations[0].ranges == ("messages.0.content:0-5",)


def test_a_detector_that_is_not_installed_is_an_error_at_load() -> None:
    """A rule never fires silently for want of its detector: the policy does not load."""
    with pytest.raises(PolicyError, match="shouting"):
        guardrail("p", POLICY, "block")


@pytest.mark.parametrize("value", ["shouting_plugin:Missing", "shouting_plugin:Finding", "no_such_module:X"])
def test_a_plug_in_that_cannot_be_used_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    install(tmp_path, monkeypatch, value)
    with pytest.raises(PluginError, match="shouting"):
        installed_detectors()
