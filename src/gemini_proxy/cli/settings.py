"""The configuration as commands get it: read at first use, its faults reported once, in words."""

import sys
from functools import cached_property
from pathlib import Path
from typing import NoReturn

import click

from gemini_proxy.config import Config, ConfigError, check_secrets, load_config, read_policies
from gemini_proxy.guardrails.plugins import PluginError
from gemini_proxy.guardrails.rules import Action, Guardrail, RuleSet, guardrail, parameters_missing
from gemini_proxy.policy import PolicyError
from gemini_proxy.sections import Traces

EX_CONFIG = 78


class Settings:
    """What ``--config`` names. Reading it ends the program with exit code 78 where it cannot be used."""

    def __init__(self, file: Path | None) -> None:
        self._file = file

    @cached_property
    def config(self) -> Config:
        try:
            return load_config(self._file)
        except ConfigError as error:
            fail(str(error))

    @cached_property
    def serving(self) -> Config:
        """The configuration of a server, which needs the keys of the services that it names."""
        try:
            check_secrets(self.config)
        except ConfigError as error:
            fail(str(error))
        return self.config

    @property
    def traces(self) -> Traces:
        return self.config.traces

    @cached_property
    def rules(self) -> RuleSet:
        """The configured policies, compiled; every fault of every file is reported, not just the first."""
        guardrails = self.config.guardrails
        faults: list[str] = []
        blocking = self._compile(guardrails.policies, "block", faults)
        logging = self._compile(guardrails.log_policies, "log", faults)
        faults += [
            f"guardrails.parameters: {missing} is not set"
            for missing in parameters_missing((*blocking, *logging), dict(guardrails.parameters))
        ]
        if faults:
            fail("\n".join(faults))
        return RuleSet(blocking, logging)

    def _compile(self, patterns: tuple[str, ...], action: Action, faults: list[str]) -> tuple[Guardrail, ...]:
        folder = self._file.parent if self._file else Path()
        key = "guardrails.policies" if action == "block" else "guardrails.log_policies"
        compiled: list[Guardrail] = []
        try:
            for file in read_policies(patterns, folder, key):
                try:
                    compiled.append(guardrail(file.path, file.text, action))
                except PolicyError as error:
                    faults.append(f"{error}\n{error.caret()}")
        except (ConfigError, PluginError) as error:
            faults.append(str(error))
        return tuple(compiled)


def fail(message: str) -> NoReturn:
    """Say what is wrong with the configuration and end with exit code 78."""
    click.echo(message, err=True)
    sys.exit(EX_CONFIG)
