"""Group the commands, and give each the common options ``--config`` and ``-h``.

Commands are imported when they are called: ``--version`` and ``--help`` import neither server nor store.
"""

import gc
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import click

from gemini_proxy.cli.settings import config_option


@dataclass(frozen=True, slots=True)
class LazyCommand:
    """A command that is imported when it is called: its ``module:name``, and the line that the group's help shows."""

    target: str
    summary: str

    def load(self) -> click.Command:
        """Import the command."""
        module, _, name = self.target.partition(":")
        command: click.Command = getattr(import_module(module), name)
        return command


class LazyGroup(click.Group):
    """A group of commands that are imported when they are called, and listed in alphabetical order without that."""

    def __init__(self, *arguments: Any, entries: Mapping[str, LazyCommand], **attributes: Any) -> None:
        super().__init__(*arguments, **attributes)
        self.entries = entries

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(self.entries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in self.entries and cmd_name not in self.commands:
            self.add_command(self.load(cmd_name), cmd_name)
        return super().get_command(ctx, cmd_name)

    def load(self, name: str) -> click.Command:
        """Import the command ``name``. Raise KeyError if there is none."""
        return self.entries[name].load()

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in sorted(self.entries.items())])


_COMMANDS = {
    "alerts": LazyCommand("gemini_proxy.cli.alerts:alerts", "Send a sample message of each alert."),
    "approvals": LazyCommand(
        "gemini_proxy.cli.approvals:approvals", "List, allow and deny what guardrails ask a person to approve."
    ),
    "audit": LazyCommand(
        "gemini_proxy.cli.audit:audit",
        "Show who changed rules, keys, approvals and settings, and verify that the log is unaltered.",
    ),
    "backup": LazyCommand(
        "gemini_proxy.cli.traces:backup", "Copy the SQLite database into the new file FILE, while the server runs."
    ),
    "check-config": LazyCommand(
        "gemini_proxy.cli.check_config:check_config",
        "Load the configuration and every policy, open the database, and report every problem found.",
    ),
    "demo": LazyCommand(
        "gemini_proxy.cli.demo:demo",
        "Run the proxy in front of a built-in sample model, then keep serving for your own client.",
    ),
    "healthcheck": LazyCommand(
        "gemini_proxy.cli.healthcheck:healthcheck",
        "Ask the configured server whether it is ready; exit code 1 if it is not.",
    ),
    "init": LazyCommand(
        "gemini_proxy.cli.shipped:init",
        "Write a configuration with every setting at its default into DIR, as config.toml.",
    ),
    "keys": LazyCommand("gemini_proxy.cli.keys:keys", "Add, list and revoke keys of the server's users."),
    "policy": LazyCommand(
        "gemini_proxy.cli.policy:policy", "Check, format, test and backtest policies, and copy ready-made ones."
    ),
    "serve": LazyCommand(
        "gemini_proxy.cli.serve:serve", "Serve until SIGTERM. SIGHUP reloads the configuration and policies."
    ),
    "tail": LazyCommand("gemini_proxy.cli.tail:tail", "Print exchanges as they happen, one per line, until Ctrl-C."),
    "traces": LazyCommand("gemini_proxy.cli.traces:traces", "List, show, export and delete recorded exchanges."),
}


def collect_seldom() -> None:
    """Let the garbage collector run seldom: what imports make stays, and to look through it is a tenth of a start."""
    gc.set_threshold(50_000, 20, 50)


class _Program(LazyGroup):
    def load(self, name: str) -> click.Command:
        collect_seldom()
        command = super().load(name)
        _take_config(command)
        return command


def _take_config(command: click.Command) -> None:
    """Let ``command`` and those below it take ``--config``, after their own options."""
    command.params.append(config_option())
    if isinstance(command, click.Group):
        for below in command.commands.values():
            _take_config(below)


@click.group(cls=_Program, entries=_COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(None, "-V", "--version", package_name="gemini-proxy", prog_name="gemini-proxy")
def main() -> None:
    """A guardrail proxy for the Gemini API."""


main.params.insert(0, config_option(envvar="GEMINI_PROXY_CONFIG"))
