"""Where clients are installed: ``.venv-clients``, a folder for each, so that none decides over another's versions."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from tests.clients.matrix.clients import Client

ROOT: Final = Path(__file__).parents[3]
"""The repository."""
ENVIRONMENTS: Final = ROOT / ".venv-clients"
DRIVERS: Final = Path(__file__).parent / "drivers"
_PACKAGE: Final = "tests.clients.matrix.drivers"
_INSTALL_SECONDS: Final = 900.0


class NotInstalled(Exception):
    """A client cannot be had; the message says why."""


def install(client: Client) -> None:
    """Install what a client needs, unless it is there already. Raises NotInstalled."""
    folder, wanted = _folder(client), "\n".join(client.packages)
    stamp = folder / ".installed"
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    try:
        if client.packages:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        for command in _commands(client, folder):
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=_INSTALL_SECONDS)
    except subprocess.CalledProcessError as error:
        raise NotInstalled((error.stderr.strip() or str(error)).splitlines()[-1]) from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotInstalled(str(error)) from None
    stamp.write_text(wanted)


def command(client: Client) -> tuple[list[str], Path]:
    """How a client's driver is started, and in which folder."""
    if client.kind == "node":
        return ["node", str(DRIVERS / f"{client.driver}.mjs")], _folder(client)
    python = str(_folder(client) / "bin" / "python") if client.kind == "python" else sys.executable
    return [python, "-m", f"{_PACKAGE}.{client.driver}"], ROOT


def environment(client: Client) -> dict[str, str]:
    """The variables that a driver gets: none that would lead its client elsewhere."""
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(_folder(client)),
        "CLIENT_FOLDER": str(_folder(client)),
        "LANG": "C.UTF-8",
        # It would ask GitHub for the prices of models.
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }


def version(client: Client) -> str:
    """The version that the client is pinned to, or says that it has."""
    if client.packages:
        return client.packages[0].replace("==", "@").rpartition("@")[2]
    said = subprocess.run([client.driver, "--version"], capture_output=True, text=True, timeout=10).stdout
    return said.split()[1]


def _commands(client: Client, folder: Path) -> list[list[str]]:
    if client.kind == "python":
        pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
        return [[sys.executable, "-m", "venv", str(folder)], [*pip, *client.packages]]
    if not client.packages:
        return [[client.driver, "--version"]]
    npm = ["npm", "install", "--prefix", str(folder), "--no-audit", "--no-fund", "--no-package-lock"]
    return [[*npm, *client.packages]]


def _folder(client: Client) -> Path:
    return ENVIRONMENTS / client.place
