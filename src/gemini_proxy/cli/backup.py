"""``gemini-proxy backup``: a copy of the SQLite database, while the server runs."""

from pathlib import Path

import click

from gemini_proxy.cli.traces import TracesConfig
from gemini_proxy.traces.backup import back_up
from gemini_proxy.traces.errors import StoreError


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.pass_obj
def backup(config: TracesConfig, file: Path) -> None:
    """Copy the SQLite database into the new file FILE, while the server runs. For PostgreSQL use pg_dump."""
    try:
        back_up(config.traces.database, file)
    except StoreError as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"{file} holds the traces, keys and policies of this moment")
