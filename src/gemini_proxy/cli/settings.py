"""The configuration as commands get it: read at first use, its faults reported once, in words."""

import sys
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click
from click.core import ParameterSource

# What reads a configuration and compiles policies is imported by the commands that do so: every command imports this.
if TYPE_CHECKING:
    from gemini_proxy.config import Config
    from gemini_proxy.guardrails.rules import RuleSet
    from gemini_proxy.sections import Traces

EX_CONFIG = 78


class Settings:
    """What ``--config`` names. Reading it ends the program with exit code 78 where it cannot be used.

    ``given`` says that the file was named on the command line.
    """

    def __init__(self, file: Path | None, *, given: bool = False) -> None:
        self._file = file
        self._given = given

    def chosen(self, file: Path) -> "Settings":
        """The settings for a command that names ``file`` as well. Raises UsageError where another was named before."""
        if self._given and file != self._file:
            raise click.UsageError(f"--config is given twice: {self._file} and {file}")
        return Settings(file, given=True)

    @cached_property
    def config(self) -> "Config":
        from gemini_proxy.config import ConfigError, load_config

        try:
            return load_config(self._file)
        except ConfigError as error:
            fail(str(error))

    @cached_property
    def serving(self) -> "Config":
        """The configuration of a server, which needs the keys of the services that it names."""
        from gemini_proxy.config import ConfigError, check_secrets

        try:
            check_secrets(self.config)
        except ConfigError as error:
            fail(str(error))
        return self.config

    @property
    def traces(self) -> "Traces":
        return self.config.traces

    @cached_property
    def rules(self) -> "RuleSet":
        """The configured policies, compiled; every fault of every file is reported, not just the first."""
        from gemini_proxy.cli.configured_policies import PolicyFaults, compile_configured

        try:
            return compile_configured(self.config, self._folder)
        except PolicyFaults as error:
            fail(error.shown)

    def load_again(self) -> "tuple[Config, RuleSet]":
        """``serving`` and ``rules`` as they are in the files now. Raises ConfigError."""
        from gemini_proxy.cli.configured_policies import compile_configured
        from gemini_proxy.config import check_secrets, load_config

        config = load_config(self._file)
        check_secrets(config)
        return config, compile_configured(config, self._folder)

    @property
    def _folder(self) -> Path:
        return self._file.parent if self._file else Path()


def config_option(**attributes: Any) -> click.Option:
    """``--config``, which the program and each of its commands take."""
    return click.Option(
        ["--config"],
        type=click.Path(path_type=Path),
        callback=_choose,
        expose_value=False,
        help="The configuration file (TOML). Default: $GEMINI_PROXY_CONFIG, else none, every setting at its default.",
        **attributes,
    )


def _choose(context: click.Context, parameter: click.Parameter, file: Path | None) -> None:
    """Make ``context.obj`` the settings of the file: the one that the command line names, before a variable's."""
    given = context.get_parameter_source("config") is ParameterSource.COMMANDLINE
    if context.obj is None:
        context.obj = Settings(file, given=given)
    elif file is not None:
        context.obj = context.obj.chosen(file)


def fail(message: str) -> NoReturn:
    """Say what is wrong with the configuration and end with exit code 78."""
    click.echo(message, err=True)
    sys.exit(EX_CONFIG)
