"""The ways to the scripted upstream: directly, through the bare pass-through, through gemini-proxy and its variants."""

import contextlib
import itertools
import json
import socket
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from bench.audience import Audience, watching
from bench.dataset import make_dataset
from bench.processes import ProcessError, ServerProcess, module, piped, serving
from bench.workload import DATASET, LoadResult, Workload, dump, load_result

TWO_RULES: Final = Path(__file__).with_name("policy.gr")
TEN_RULES: Final = Path(__file__).with_name("ten_rules.gr")
_CONFIG: Final = """\
[server]
listen = ["127.0.0.1:0"]

[upstream]
base_url = "http://127.0.0.1:{port}"

[guardrails]
policies = {policies}
stream_check = "{stream_check}"

[traces]
database = "sqlite:///{database}"
"""
# Its guard that looks for patterns, on what goes in and on what comes out: the rule that gemini-proxy's two begin with.
_LITELLM_CONFIG: Final = """\
model_list:
  - model_name: "*"
    litellm_params:
      model: "gemini/*"
      api_base: "http://127.0.0.1:{port}"
      api_key: "bench"
guardrails:
  - guardrail_name: "keys"
    litellm_params:
      guardrail: litellm_content_filter
      mode: ["pre_call", "post_call"]
      default_on: true
      patterns:
        - pattern_type: regex
          pattern: "AIza[0-9A-Za-z_-]{{35}}"
          name: google_key
          action: BLOCK
litellm_settings:
  telemetry: false
general_settings:
  dangerously_permit_weak_or_unset_master_key: true
"""
_STARTS: Final = 90.0
"""Seconds that a server may take to start: LiteLLM is slow, and so is what runs under another program."""
_LOOPBACK: Final = "127.0.0.1"


class Peer(StrEnum):
    """What a request goes through, in the order in which every repeat measures them.

    ``before`` is the gemini-proxy of another checkout. ``watched`` has its rules in a dataset of its store, and its
    feed is watched. ``LiteLLM`` is that project's proxy, on the route that it has for Gemini's own requests.
    """

    DIRECT = "direct"
    PASS_THROUGH = "pass-through"
    BEFORE = "before"
    PROXY = "gemini-proxy"
    WATCHED = "watched"
    LITELLM = "LiteLLM"


@dataclass(frozen=True, slots=True)
class Setting:
    """What is measured. ``before`` is another checkout's folder, ``litellm`` that of an environment with LiteLLM.

    ``policies`` are gemini-proxy's where they are not the bench's own. ``under`` is a command, and its arguments, that
    runs each server as its last ones.
    """

    stream_check: str = "final"
    watched: bool = False
    before: Path | None = None
    litellm: Path | None = None
    policies: tuple[Path, ...] = ()
    under: tuple[str, ...] = ()

    @property
    def extra(self) -> Sequence[Peer]:
        """The peers that are measured beside those of every run."""
        wanted = {
            Peer.BEFORE: self.before is not None,
            Peer.WATCHED: self.watched,
            Peer.LITELLM: self.litellm is not None,
        }
        return [peer for peer, is_wanted in wanted.items() if is_wanted]

    @property
    def chosen_policies(self) -> Sequence[Path]:
        """Those given; by default ten rules for windows and else two."""
        return self.policies or (TEN_RULES if self.stream_check == "window" else TWO_RULES,)


@dataclass(frozen=True, slots=True)
class Server:
    """A server under measurement, the dataset whose path the load takes, and who watches."""

    process: ServerProcess
    dataset: str = ""
    audience: Audience | None = None


class Stage:
    """A scripted upstream with one standing server of each peer before it, and fresh ones on demand."""

    def __init__(self, folder: Path, upstream: ServerProcess, setting: Setting) -> None:
        self._folder = folder
        self._setting = setting
        self._numbers = itertools.count()
        self.servers: dict[Peer, Server] = {Peer.DIRECT: Server(upstream)}

    @contextlib.contextmanager
    def fresh(self, peer: Peer) -> Iterator[Server]:
        """A server of ``peer`` that no load has been put on yet. Raises ProcessError."""
        upstream = self.servers[Peer.DIRECT]
        number = next(self._numbers)
        log = self._folder / f"{peer}-{number}.log"
        match peer:
            case Peer.DIRECT:
                yield upstream
            case Peer.PASS_THROUGH:
                argv = module("bench.passthrough", f"http://127.0.0.1:{upstream.process.port}")
                with serving([*self._setting.under, *argv], log, timeout=_STARTS) as process:
                    yield Server(process)
            case Peer.BEFORE:
                with serving(
                    self._proxy(number, *self._setting.chosen_policies), log, source=self._source, timeout=_STARTS
                ) as process:
                    yield Server(process)
            case Peer.PROXY:
                argv = self._proxy(number, *self._setting.chosen_policies)
                with serving(argv, log, timeout=_STARTS) as process:
                    yield Server(process)
            case Peer.WATCHED:
                with serving(self._proxy(number), log) as process:
                    make_dataset(process.port, self._setting.chosen_policies[0])
                    with watching(process.port) as audience:
                        yield Server(process, DATASET, audience)
            case Peer.LITELLM:
                with serving(self._litellm(number), log, timeout=_STARTS) as process:
                    yield Server(process)

    @property
    def _source(self) -> Path:
        """The modules of the other checkout. Raises ProcessError where there are none: ours would be measured."""
        source = (self._setting.before or Path()).resolve() / "src"
        if not (source / "gemini_proxy").is_dir():
            raise ProcessError(f"{source} has no gemini_proxy")
        return source

    def _proxy(self, number: int, *policies: Path) -> list[str]:
        """The command line of a gemini-proxy that has a trace database of its own."""
        file = self._folder / f"config-{number}.toml"
        text = _CONFIG.format(
            port=self.servers[Peer.DIRECT].process.port,
            policies=json.dumps([str(policy) for policy in policies]),
            database=self._folder / f"traces-{number}.db",
            stream_check=self._setting.stream_check,
        )
        file.write_text(text)
        return [*self._setting.under, *module("gemini_proxy", "--config", str(file), "serve")]

    def _litellm(self, number: int) -> list[str]:
        """The command line of LiteLLM's proxy, which cannot choose a port by itself."""
        assert self._setting.litellm is not None
        file = self._folder / f"litellm-{number}.yaml"
        file.write_text(_LITELLM_CONFIG.format(port=self.servers[Peer.DIRECT].process.port))
        with socket.create_server((_LOOPBACK, 0)) as free:
            port = free.getsockname()[1]
        command = self._setting.litellm.resolve() / "bin" / "litellm"
        return [str(command), "--config", str(file), "--host", _LOOPBACK, "--port", str(port)]


@contextlib.contextmanager
def staged(folder: Path, setting: Setting) -> Iterator[Stage]:
    """Start the upstream and the standing peers; all end with the context. Raises ProcessError."""
    with contextlib.ExitStack() as stack:
        upstream = stack.enter_context(serving(module("bench.upstream"), folder / "upstream.log"))
        stage = Stage(folder, upstream, setting)
        for peer in (Peer.PASS_THROUGH, Peer.PROXY, *setting.extra):
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
