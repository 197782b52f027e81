"""The Dockerfile and compose.yaml, as far as they can be read without a builder."""

import asyncio
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest
import yaml

from gemini_proxy.config import load_config
from gemini_proxy.guardrails.rules import HEADER_NAME
from gemini_proxy.sections import Server
from tests.cli.process import environment, write_config
from tests.support.proxy import MODEL, prompt
from tests.test_docs import refuse_unknown
from tests.test_wheel import SOURCES

ROOT = Path(__file__).parents[2]
INSTRUCTIONS = {
    "ARG", "FROM", "WORKDIR", "COPY", "RUN", "ENV", "USER", "VOLUME", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK",
    "ENTRYPOINT", "CMD",
}  # fmt: skip
PATIENCE = 30
REFUSING = r'raise "no zebras" if:\n    (m: Message)\n    "zebra" in m.content\n'
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
# Of the compose specification, what a service here may have.
SERVICE_KEYS = {
    "build", "image", "command", "environment", "volumes", "depends_on", "networks", "ports", "read_only", "tmpfs",
    "init", "cap_drop", "security_opt", "stop_grace_period", "mem_limit", "pids_limit", "ulimits", "restart",
    "healthcheck",
}  # fmt: skip


class Instruction(NamedTuple):
    name: str
    value: str


def instructions() -> list[Instruction]:
    """The Dockerfile's instructions in order, continued lines joined."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n", " ", text).splitlines()
    return [Instruction(*line.split(maxsplit=1)) for line in lines if line.strip()]


def final_stage() -> dict[str, str]:
    """The last value of each instruction of the image that is run."""
    whole = instructions()
    last = max(number for number, instruction in enumerate(whole) if instruction.name == "FROM")
    return {instruction.name: instruction.value for instruction in whole[last:]}


def copied() -> Iterator[str]:
    """What is copied from the repository."""
    for instruction in instructions():
        if instruction.name == "COPY" and not instruction.value.startswith("--from="):
            yield from shlex.split(instruction.value)[:-1]


def test_the_dockerfile_builds_in_stages_and_runs_as_nobody() -> None:
    """Two stages of one base; a user by its number, which Kubernetes can see is not root; exec form throughout."""
    whole = instructions()
    assert {instruction.name for instruction in whole} == INSTRUCTIONS
    bases = [instruction.value.partition(" ")[0] for instruction in whole if instruction.name == "FROM"]
    assert len(bases) == 2 and len(set(bases)) == 1
    final = final_stage()
    user, _, group = final["USER"].partition(":")
    assert int(user) > 0 and int(group) > 0
    assert final["STOPSIGNAL"] == "SIGTERM"
    for command in (final["HEALTHCHECK"].partition("CMD ")[2], final["ENTRYPOINT"] + final["CMD"]):
        program, *words = json.loads(command.replace("][", ", "))
        assert program == "gemini-proxy"
        refuse_unknown(words)


def test_the_builder_gets_what_it_copies_and_no_more() -> None:
    """What a wheel is made from, and the configuration of the image. Nothing that is copied is ignored or missing."""
    assert {*copied()} == {*SOURCES, "policies", "src", "deploy/container.toml"}
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert {line[1:] for line in ignored if line.startswith("!")} == {*copied()}
    assert all((ROOT / name).exists() for name in copied())


def test_the_configuration_of_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """It can be used, by those alone who have a key, and keeps its data in the volume."""
    final = final_stage()
    config = load_config(ROOT / "deploy" / "container.toml")
    assert config.access.mode == "keys"
    assert config.traces.database == f"sqlite:///{final['VOLUME']}/traces.db"
    assert config.server.listen == (f"0.0.0.0:{final['EXPOSE']}",)
    # What compose changes is a configuration as well.
    for name, value in SERVICES["proxy"]["environment"].items():
        monkeypatch.setenv(name, re.sub(r"\$\{\w+:[^}]*\}", "secret", value))
    changed = load_config(ROOT / "deploy" / "container.toml")
    assert changed.traces.database == "postgresql+asyncpg://gemini_proxy:secret@postgres/gemini_proxy"
    assert changed.server.listen == ("unix:/run/gemini-proxy/gemini-proxy.sock",)


@pytest.mark.parametrize("name", SERVICES)
def test_services_name_what_there_is(name: str) -> None:
    """Volumes, networks, services and files that exist; keys of the specification; nothing privileged."""
    service = SERVICES[name]
    assert service.keys() <= SERVICE_KEYS
    assert ("image" in service or "build" in service) and service["restart"] == "unless-stopped"
    assert set(service["networks"]) <= COMPOSE["networks"].keys()
    assert set(service.get("depends_on", {})) <= SERVICES.keys()
    for other, needed in service.get("depends_on", {}).items():
        assert needed == {"condition": "service_healthy"}
        assert "healthcheck" in SERVICES[other] or "build" in SERVICES[other]
    for volume in service["volumes"]:
        source = volume.split(":")[0]
        assert (ROOT / source).is_file() if source.startswith(".") else source in COMPOSE["volumes"]
    for port in service.get("ports", []):
        assert port.startswith("127.0.0.1:")


def test_the_proxy_is_locked_in() -> None:
    """A root that cannot be written, no capabilities, time to finish, and two files for each exchange."""
    proxy = SERVICES["proxy"]
    assert proxy["read_only"] is True and proxy["cap_drop"] == ["ALL"]
    assert proxy["security_opt"] == ["no-new-privileges:true"]
    assert int(proxy["stop_grace_period"].removesuffix("s")) > Server().shutdown_grace
    assert proxy["ulimits"]["nofile"] >= 2 * Server().max_exchanges
    assert "ports" not in proxy


def test_nginx_gets_the_shipped_configuration(tmp_path: Path) -> None:
    """With its address and its logs moved to where those of a container are, and nothing else changed."""
    shell, option, script = SERVICES["nginx"]["command"]
    assert (shell, option) == ("sh", "-c")
    edit, _, start = script.partition(" && ")
    assert start == "exec nginx -g 'daemon off;'"
    source, target = ROOT / "deploy" / "nginx.conf", tmp_path / "default.conf"
    moved = edit.replace("/etc/nginx/shipped.conf", str(source)).replace("/etc/nginx/conf.d/default.conf", str(target))
    subprocess.run([shell, option, moved], check=True)
    before, after = source.read_text().splitlines(), target.read_text().splitlines()
    changed = [new.split()[:2] for old, new in zip(before, after, strict=True) if old != new]
    assert changed == [["listen", "8080;"], ["access_log", "/dev/stdout"], ["error_log", "/dev/stderr"]]


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="takes root and unshare")
async def test_as_process_one_it_checks_and_stops_at_sigterm(tmp_path: Path) -> None:
    """The first process of a container gets no default action for signals. It has one that read a large body."""
    config = write_config(tmp_path, server={"listen": ["127.0.0.1:0"]})
    alone = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
    serve = (sys.executable, "-m", "gemini_proxy", "--config", str(config), "serve")
    outer = await asyncio.create_subprocess_exec(
        *alone, *serve, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL, env=environment()
    )
    headers = {HEADER_NAME: REFUSING, "x-goog-api-key": "none", "content-type": "application/json"}
    large = io.BytesIO(json.dumps(prompt("a zebra" + " " * 3_000_000)).encode())
    try:
        assert outer.stdout is not None
        async with asyncio.timeout(PATIENCE):
            listening = (await outer.stdout.readline()).decode()
            url = listening.removeprefix("gemini-proxy listens on ").strip()
            async with (
                aiohttp.ClientSession(headers=headers) as client,
                client.post(f"{url}/v1beta/models/{MODEL}:generateContent", data=large) as response,
            ):
                assert response.status == 400 and "no zebras" in await response.text()
            (first,) = children(outer.pid)
            assert children(first)
            os.kill(first, signal.SIGTERM)
            assert await outer.wait() == 0
    finally:
        if outer.returncode is None:
            outer.kill()
            await outer.wait()


def children(pid: int) -> list[int]:
    """The processes that any thread of ``pid`` has started."""
    listings = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(word) for listing in listings for word in listing.read_text().split()]
