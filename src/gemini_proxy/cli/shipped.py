"""Copy files that come with the program: ``policy list`` and ``policy copy`` for ready-made policies, and ``init``.

In the repository these files are at its root, where ``shipped`` links to them; a wheel holds them itself.
"""

import os
from collections.abc import Iterable
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

import click

_SHIPPED = files("gemini_proxy") / "shipped"
_FOLDER = click.Path(file_okay=False, path_type=Path)


@click.command("list")
def list_() -> None:
    """List the ready policies, and what each is about."""
    names = _names()
    width = max(map(len, names))
    for name in names:
        click.echo(f"{name:{width}}  {_title(_policy(name))}")


@click.command()
@click.argument("names", metavar="NAME...", nargs=-1)
@click.option("--all", "every", is_flag=True, help="Copy all ready-made policies.")
@click.option("--to", "folder", type=_FOLDER, default="policies", show_default=True, help="The folder to copy to.")
def copy(names: tuple[str, ...], every: bool, folder: Path) -> None:
    """Copy ready policies and their cases into a folder, to be edited. Nothing is overwritten."""
    known = _names()
    if bool(names) == every:
        raise click.UsageError("name policies, or use --all")
    for name in names:
        if name not in known:
            raise click.BadParameter(f'there is no ready-made policy "{name}": {", ".join(known)}', param_hint="NAME")
    chosen = known if every else names
    sources = [source for name in dict.fromkeys(chosen) for source in (_policy(name), _cases(name))]
    for written in _copied([(source, folder / source.name) for source in sources]):
        click.echo(written)


@click.command()
@click.argument("folder", metavar="[DIR]", type=_FOLDER, default=".")
def init(folder: Path) -> None:
    """Write a configuration with every setting at its default into DIR, as config.toml. Nothing is overwritten."""
    file = folder / "config.toml"
    # A key may be written into it.
    _copied([(_SHIPPED / "config.toml", file)], mode=0o600)
    click.echo(
        f"""{file}: every setting with its default; a file with just the lines that you change is enough. Next:
    gemini-proxy policy copy secrets --to {folder / "policies"}
and name it there, guardrails.policies = ["policies/secrets.gr"]; then
    gemini-proxy --config {file} check-config
    gemini-proxy --config {file} serve"""
    )


def _names() -> list[str]:
    names = (entry.name for entry in (_SHIPPED / "policies").iterdir())
    return sorted(name.removesuffix(".gr") for name in names if name.endswith(".gr"))


def _policy(name: str) -> Traversable:
    return _SHIPPED / "policies" / f"{name}.gr"


def _cases(name: str) -> Traversable:
    return _SHIPPED / "policies" / f"{name}.cases.yaml"


def _title(policy: Traversable) -> str:
    """Return the comment in its first line."""
    return policy.read_text("utf-8").partition("\n")[0].removeprefix("#").strip()


def _copied(pairs: Iterable[tuple[Traversable, Path]], mode: int = 0o666) -> list[Path]:
    """Copy each source to its target; create folders as needed. Raise ClickException before anything is overwritten."""
    pairs = list(pairs)
    if existing := [str(target) for _, target in pairs if os.path.lexists(target)]:
        raise click.ClickException(f"already exists, not overwritten: {', '.join(existing)}")
    for source, target in pairs:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(target, "xb", opener=lambda path, flags: os.open(path, flags, mode)) as file:
                file.write(source.read_bytes())
        except OSError as error:
            raise click.ClickException(f"cannot write {target}: {error.strerror}") from None
    return [target for _, target in pairs]
