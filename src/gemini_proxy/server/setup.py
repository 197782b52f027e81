"""What holds for exchanges: settings, rules, and the parts made of them. A reload replaces all of it at once."""

from collections.abc import Callable
from dataclasses import dataclass

from gemini_proxy.config import Config, reloaded
from gemini_proxy.guardrails.rules import GuardrailSet
from gemini_proxy.proxy.pipeline import Pipeline
from gemini_proxy.proxy.request_reader import RequestReader


@dataclass(frozen=True, slots=True)
class Setup:
    """One configuration at work. An exchange keeps to its end the one with which it began."""

    config: Config
    rules: GuardrailSet
    reader: RequestReader
    pipeline: Pipeline


class Setups:
    """The setup for exchanges that begin now."""

    def __init__(self, build: Callable[[Config, GuardrailSet], Setup], config: Config, rules: GuardrailSet) -> None:
        self._build = build
        self.current = build(config, rules)

    def replace(self, loaded: Config, rules: GuardrailSet) -> tuple[str, ...]:
        """Let ``loaded`` and ``rules`` hold from now on. Return the changed keys that do not without a restart."""
        config, waiting = reloaded(self.current.config, loaded)
        self.current = self._build(config, rules)
        return waiting
