"""What is built from the repository is whole, and works in an environment of its own."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import urllib.error
import urllib.request
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "config.example.toml")
"""The files that a wheel is made from, beside ``src`` and ``policies``."""
PATIENCE = 60
"""Seconds for one step on a loaded machine."""


def run(*command: str | Path, folder: Path, exit_code: int = 0) -> str:
    """Run a command in ``folder``; what it printed on either stream."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("GEMINI_PROXY_", "PYTHON"))
    }
    done = subprocess.run(
        list(map(str, command)), cwd=folder, env=environment, timeout=PATIENCE,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert done.returncode == exit_code, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that is built from the source distribution of this tree."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    # Links stay links, as in a checkout.
    shutil.copytree(
        ROOT / "src", source / "src", symlinks=True, ignore=shutil.ignore_patterns("*.egg-info", "__pycache__")
    )
    shutil.copytree(ROOT / "policies", source / "policies")
    for name in SOURCES:
        shutil.copy(ROOT / name, source)
    run(sys.executable, "-c", f"import setuptools.build_meta as b; b.build_sdist({str(folder)!r})", folder=source)
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "sdist", filter="data")
    (unpacked,) = (folder / "sdist").iterdir()
    options = ("--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check")
    run(sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", folder, unpacked, folder=folder)
    # The systemd unit says how to install it, by the name that it has.
    (installed,) = re.findall(r"pip install dist/(\S+\.whl)", (ROOT / "deploy" / "gemini-proxy.service").read_text())
    (built,) = folder.glob(installed)
    return built


@pytest.fixture(scope="module")
def program(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``gemini-proxy`` as the wheel installs it into a fresh environment; what it needs is taken from this one."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder / "venv", symlinks=True)
    python = folder / "venv" / "bin" / "python"
    options = ("--quiet", "--no-deps", "--no-index", "--disable-pip-version-check")
    run(sys.executable, "-m", "pip", "--python", python, "install", *options, wheel, folder=folder)
    (packages,) = (folder / "venv" / "lib").glob("python*/site-packages")
    # A plain path: the .pth files of this environment, which lead to the checkout, are not read.
    (packages / "needed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python.with_name("gemini-proxy")


def test_the_wheel_is_complete(wheel: Path) -> None:
    """It holds every module, the migrations among them, the marker of type hints, the license, the command, and the
    ready policies and the example configuration as they are.
    """
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        modules = {str(file.relative_to(ROOT / "src")) for file in (ROOT / "src" / "gemini_proxy").rglob("*.py")}
        assert modules - names == set()
        assert "gemini_proxy/traces/migrations/versions/v0001_traces.py" in names
        assert "gemini_proxy/py.typed" in names
        assert "gemini_proxy/guardrails/semgrep.yml" in names
        assert any(name.endswith("LICENSE") for name in names)
        (entry_points,) = (name for name in names if name.endswith("entry_points.txt"))
        assert b"gemini-proxy = gemini_proxy.cli:main" in archive.read(entry_points)
        shipped = {name: archive.read(name) for name in names if name.startswith("gemini_proxy/shipped/")}
    assert shipped == {
        "gemini_proxy/shipped/config.toml": (ROOT / "config.example.toml").read_bytes(),
        **{f"gemini_proxy/shipped/policies/{file.name}": file.read_bytes() for file in (ROOT / "policies").iterdir()},
    }


def test_what_the_wheel_installs_works(program: Path, tmp_path: Path) -> None:
    """From a fresh folder to a refused request: init, the ready policies, check-config, serve."""
    config = tmp_path / "config.toml"
    run(program, "init", folder=tmp_path)
    assert config.read_bytes() == (ROOT / "config.example.toml").read_bytes()
    run(program, "policy", "copy", "secrets", folder=tmp_path)
    ready = ("policies/secrets.gr", "policies/secrets.cases.yaml")
    assert [(tmp_path / name).read_bytes() for name in ready] == [(ROOT / name).read_bytes() for name in ready]
    text = config.read_text().replace("policies = []", 'policies = ["policies/secrets.gr"]', 1)
    config.write_text(text.replace("127.0.0.1:8005", "127.0.0.1:0"))
    assert "1 blocking" in run(program, "--config", config, "check-config", folder=tmp_path)
    for url in served(program, config):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request(url, "Is ghp_" + "a1B2c3D4" * 4 + "e5F6 still valid?"), timeout=PATIENCE)
        assert refused.value.code == 400
        assert "a secret on its way to the model" in refused.value.read().decode()


def served(program: Path, config: Path) -> Iterator[str]:
    """The address of a server with that configuration, while it runs."""
    command = [str(program), "--config", str(config), "serve"]
    with subprocess.Popen(command, cwd=config.parent, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            yield server.stdout.readline().removeprefix("gemini-proxy listens on ").strip()
        finally:
            server.terminate()
    assert server.returncode == 0


def request(url: str, text: str) -> urllib.request.Request:
    """A call of the model, with ``text`` as its prompt. No upstream is needed: it is refused before."""
    body = f'{{"contents": [{{"parts": [{{"text": "{text}"}}]}}]}}'.encode()
    headers = {"content-type": "application/json", "x-goog-api-key": "none"}
    return urllib.request.Request(f"{url}/v1beta/models/gemini-2.5-flash:generateContent", body, headers)
