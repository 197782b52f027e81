"""Three ways to the scripted upstream: directly, through the bare pass-through, through gemini-proxy."""

import contextlib
import itertools
import subprocess
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Final

from bench.processes import ProcessError, ServerProcess, module, piped, serving
from bench.workload import LoadResult, Workload, dump, load_result

TWO_RULES: Final = Path(__file__).with_name("policy.gr")
TEN_RULES: Final = Path(__file__).with_name("ten_rules.gr")
_CONFIG: Final = """\
[server]
listen = ["127.0.0.1:0"]

[upstream]
base_url = "http://127.0.0.1:{port}"

[guardrails]
policies = ["{policy}"]
stream_check = "{stream_check}"

[traces]
database = "sqlite:///{database}"
"""


class Peer(StrEnum):
    """What a request goes through, in the order in which every repeat measures them."""

    DIRECT = "direct"
    PASS_THROUGH = "pass-through"
    PROXY = "gemini-proxy"


class Stage:
    """A scripted upstream with one standing server of each peer before it, and fresh ones on demand."""

    def __init__(self, folder: Path, upstream: ServerProcess, stream_check: str) -> None:
        self._folder = folder
        self._stream_check = stream_check
        self._numbers = itertools.count()
        self.servers: dict[Peer, ServerProcess] = {Peer.DIRECT: upstream}

    @contextlib.contextmanager
    def fresh(self, peer: Peer) -> Iterator[ServerProcess]:
        """A server of ``peer`` that has served nothing yet. Raises ProcessError."""
        upstream = self.servers[Peer.DIRECT]
        number = next(self._numbers)
        log = self._folder / f"{peer}-{number}.log"
        if peer is Peer.DIRECT:
            yield upstream
            return
        if peer is Peer.PASS_THROUGH:
            argv = module("bench.passthrough", f"http://127.0.0.1:{upstream.port}")
        else:
            argv = module("gemini_proxy", "--config", str(self._configured(number, upstream.port)), "serve")
        with serving(argv, log) as server:
            yield server

    def _configured(self, number: int, port: int) -> Path:
        """A configuration file, with ten rules for windows and else two, and a trace database of its own."""
        file = self._folder / f"config-{number}.toml"
        database = self._folder / f"traces-{number}.db"
        policy = TEN_RULES if self._stream_check == "window" else TWO_RULES
        file.write_text(_CONFIG.format(port=port, policy=policy, database=database, stream_check=self._stream_check))
        return file


@contextlib.contextmanager
def staged(folder: Path, stream_check: str = "final") -> Iterator[Stage]:
    """Start the upstream and the standing peers; all end with the context. Raises ProcessError."""
    with contextlib.ExitStack() as stack:
        upstream = stack.enter_context(serving(module("bench.upstream"), folder / "upstream.log"))
        stage = Stage(folder, upstream, stream_check)
        for peer in (Peer.PASS_THROUGH, Peer.PROXY):
            stage.servers[peer] = stack.enter_context(stage.fresh(peer))
        yield stage


def load(workload: Workload) -> LoadResult:
    """Run ``workload`` to its end in a process of its own. Raises ProcessError."""
    with holding(workload) as result:
        return result


@contextlib.contextmanager
def holding(workload: Workload) -> Iterator[LoadResult]:
    """Run ``workload``; the streams of a ``hold`` stay open until the context is left. Raises ProcessError."""
    with piped(module("bench.load", dump(workload))) as generator:
        yield _answer(generator)
        assert generator.stdin
        generator.stdin.close()
        generator.wait(workload.timeout)


def _answer(generator: "subprocess.Popen[bytes]") -> LoadResult:
    """The generator bounds its own time, so the line comes or the pipe closes."""
    assert generator.stdout
    line = generator.stdout.readline()
    if not line:
        raise ProcessError(f"the load generator failed: {generator.args!r}")
    return load_result(line.decode())
