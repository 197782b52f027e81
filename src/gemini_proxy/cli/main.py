"""The command group, and what every command takes: ``--config``, ``-h``.

Commands are imported when they are called: ``--version`` and ``--help`` import neither server nor store.
"""

import click

from gemini_proxy.cli.lazy import Entry, LazyGroup
from gemini_proxy.cli.settings import config_option

_COMMANDS = {
    "backup": Entry(
        "gemini_proxy.cli.backup:backup", "Copy the SQLite database into the new file FILE, while the server runs."
    ),
    "check-config": Entry(
        "gemini_proxy.cli.check_config:check_config",
        "Load the configuration and every policy, open the database, and say what is wrong with them.",
    ),
    "demo": Entry(
        "gemini_proxy.cli.demo:demo",
        "Show the proxy at work before a built-in sample model, then serve on for your own client.",
    ),
    "healthcheck": Entry(
        "gemini_proxy.cli.healthcheck:healthcheck",
        "Ask the configured server whether it is ready; exit code 1 if it is not.",
    ),
    "init": Entry(
        "gemini_proxy.cli.shipped:init",
        "Write a configuration with every setting at its default into DIR, as config.toml.",
    ),
    "keys": Entry("gemini_proxy.cli.keys:keys", "Add, list and revoke the keys of those who may use the server."),
    "policy": Entry("gemini_proxy.cli.policy:policy", "Check, test and backtest policies, and copy ready ones."),
    "serve": Entry(
        "gemini_proxy.cli.serve:serve", "Serve until SIGTERM. SIGHUP loads configuration and policies again."
    ),
    "tail": Entry("gemini_proxy.cli.tail:tail", "Print exchanges as they happen, one a line, until Ctrl-C."),
    "traces": Entry("gemini_proxy.cli.traces:traces", "Look at recorded exchanges."),
}


class _Program(LazyGroup):
    def load(self, name: str) -> click.Command:
        command = super().load(name)
        _take_config(command)
        return command


def _take_config(command: click.Command) -> None:
    """Let ``command`` and those below it take ``--config``, behind their own options."""
    command.params.append(config_option())
    if isinstance(command, click.Group):
        for below in command.commands.values():
            _take_config(below)


@click.group(cls=_Program, entries=_COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(None, "-V", "--version", package_name="gemini-proxy", prog_name="gemini-proxy")
def main() -> None:
    """A guardrail proxy for the Gemini API."""


main.params.insert(0, config_option(envvar="GEMINI_PROXY_CONFIG"))
