"""The command group, and what every command takes: ``--config``, ``-h``."""

from importlib.metadata import version

import click

from gemini_proxy.cli.demo import demo
from gemini_proxy.cli.keys import keys
from gemini_proxy.cli.policy import policy
from gemini_proxy.cli.serve import check_config, healthcheck, serve
from gemini_proxy.cli.settings import config_option
from gemini_proxy.cli.tail import tail
from gemini_proxy.cli.traces import traces


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("gemini-proxy"), "-V", "--version", prog_name="gemini-proxy")
def main() -> None:
    """A guardrail proxy for the Gemini API."""


def _take_config(command: click.Command) -> None:
    """Let ``command`` and those below it take ``--config``, behind their own options."""
    command.params.append(config_option())
    if isinstance(command, click.Group):
        for below in command.commands.values():
            _take_config(below)


main.params.insert(0, config_option(envvar="GEMINI_PROXY_CONFIG"))
for command in (serve, check_config, demo, healthcheck, policy, traces, tail, keys):
    main.add_command(command)
    _take_config(command)
