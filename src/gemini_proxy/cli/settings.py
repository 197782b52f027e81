"""Read the configuration for commands, at first use; report its faults once, in words."""

import sys
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click
from click.core import ParameterSource

# Every command imports this module; only those that read a configuration or compile policies import the rest.
if TYPE_CHECKING:
    from gemini_proxy.config import Config
    from gemini_proxy.guardrails.rules import GuardrailSet
    from gemini_proxy.sections import Traces
    from gemini_proxy.server.sources import Sources

EX_CONFIG = 78


class Settings:
    """The file that ``--config`` names. Reading an invalid one ends the program with exit code 78.

    ``given`` says that the command line named the file. ``file`` is None if there is none.
    """

    def __init__(self, file: Path | None, *, given: bool = False) -> None:
        self.file = file
        self._given = given

    def chosen(self, file: Path) -> "Settings":
        """Return the settings for a command that names ``file`` as well. Raise UsageError if another one was named."""
        if self._given and file != self.file:
            raise click.UsageError(f"--config is given twice: {self.file} and {file}")
        return Settings(file, given=True)

    @cached_property
    def config(self) -> "Config":
        from gemini_proxy.config import ConfigError, load_config

        try:
            return load_config(self.file)
        except ConfigError as error:
            fail(str(error))

    @cached_property
    def serving(self) -> "Config":
        """Return the configuration of a server, which needs the keys of the services that it names."""
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
    def rules(self) -> "GuardrailSet":
        """Return the configured policies, compiled. All faults of all files are reported, not just the first."""
        from gemini_proxy.server.sources import PolicyFaults, compile_sources

        try:
            return compile_sources(self.sources)
        except PolicyFaults as error:
            fail(error.shown)

    @cached_property
    def sources(self) -> "Sources":
        """Return the configuration of a server and its policies, as read."""
        from gemini_proxy.server.sources import PolicyFaults, read_sources

        try:
            return read_sources(self.config, self.file)
        except PolicyFaults as error:
            fail(error.shown)

    def load_again(self) -> "tuple[Sources, GuardrailSet]":
        """Return ``sources`` and ``rules`` as they are in the files now. Raise ConfigError."""
        from gemini_proxy.server.sources import compile_sources, load_sources

        sources = load_sources(self.file)
        return sources, compile_sources(sources)


def config_option(**attributes: Any) -> click.Option:
    """Return ``--config``, which the program and each of its commands take."""
    return click.Option(
        ["--config"],
        type=click.Path(path_type=Path),
        callback=_choose,
        expose_value=False,
        help="The configuration file (TOML). Default: $GEMINI_PROXY_CONFIG; without it, every setting has its default.",
        **attributes,
    )


def _choose(context: click.Context, parameter: click.Parameter, file: Path | None) -> None:
    """Make ``context.obj`` the settings of the file. The command line wins over the environment variable."""
    given = context.get_parameter_source("config") is ParameterSource.COMMANDLINE
    if context.obj is None:
        context.obj = Settings(file, given=given)
    elif file is not None:
        context.obj = context.obj.chosen(file)


def fail(message: str) -> NoReturn:
    """Report what is wrong with the configuration and end with exit code 78."""
    click.echo(message, err=True)
    sys.exit(EX_CONFIG)
