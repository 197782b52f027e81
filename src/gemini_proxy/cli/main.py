"""The command group, and what every command needs: the configuration, with its errors as exit code 78."""

from importlib.metadata import version
from pathlib import Path

import click

from gemini_proxy.cli.demo import demo
from gemini_proxy.cli.keys import keys
from gemini_proxy.cli.policy import policy
from gemini_proxy.cli.serve import check_config, healthcheck, serve
from gemini_proxy.cli.settings import Settings
from gemini_proxy.cli.tail import tail
from gemini_proxy.cli.traces import traces


@click.group()
@click.option(
    "--config",
    "file",
    type=click.Path(path_type=Path),
    envvar="GEMINI_PROXY_CONFIG",
    help="The configuration file (TOML). Also $GEMINI_PROXY_CONFIG. Default: none, every setting at its default.",
)
@click.version_option(version("gemini-proxy"))
@click.pass_context
def main(context: click.Context, file: Path | None) -> None:
    """A guardrail proxy for the Gemini API."""
    context.obj = Settings(file)


for command in (serve, check_config, demo, healthcheck, policy, traces, tail, keys):
    main.add_command(command)
