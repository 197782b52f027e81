"""The stock engine as we see it: a process that loads policies and checks conversations."""

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[2]
PYTHON: Final = ROOT / ".venv-oracle" / "bin" / "python"
MISSING: Final = "the stock engine is not installed: make oracle"

Messages = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a check said: how many violations, each with its addresses; or the class and words of the error."""

    violations: tuple[tuple[str, ...], ...] = ()
    error: str = ""
    reason: str = ""

    @property
    def word(self) -> str:
        """The part that is compared."""
        if self.error:
            return "error"
        return "fires" if self.violations else "clean"

    def __str__(self) -> str:
        return f"{self.error}: {self.reason}" if self.error else self.word


class OracleError(Exception):
    """The oracle's process ended, or a policy did not load in it."""


class Oracle:
    """One process. Not for several callers at once."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self._read()

    def load(self, name: str, text: str) -> float:
        """Load a policy under a name; the seconds it took. Raises OracleError for one it refuses."""
        answer = self._ask({"do": "load", "name": name, "text": text})
        if "error" in answer:
            raise OracleError(f"{name}: {answer['error']}: {answer['reason']}")
        return float(answer["seconds"])

    def check(self, names: Sequence[str], messages: Messages, parameters: Mapping[str, Any]) -> list[Outcome]:
        """Check a conversation against loaded policies."""
        command = {"do": "check", "names": list(names), "messages": messages, "parameters": dict(parameters)}
        return [_outcome(found) for found in self._ask(command)["outcomes"]]

    def time(self, name: str, messages: Messages, parameters: Mapping[str, Any], seconds: float) -> list[float]:
        """Seconds of each of as many checks as fit into ``seconds``. Raises OracleError where a check fails."""
        answer = self._ask(
            {"do": "time", "name": name, "messages": messages, "parameters": dict(parameters), "seconds": seconds}
        )
        if "error" in answer:
            raise OracleError(f"{name}: {answer['error']}: {answer['reason']}")
        return [float(sample) for sample in answer["samples"]]

    def _ask(self, command: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise OracleError("the oracle's process ended") from None
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise OracleError("the oracle's process ended")
        answer: dict[str, Any] = json.loads(line)
        return answer


def _outcome(found: Mapping[str, Any]) -> Outcome:
    if "error" in found:
        return Outcome(error=found["error"], reason=f"{found['reason']} [{found['place']}]")
    return Outcome(tuple(tuple(ranges) for ranges in found["ranges"]))


@contextlib.contextmanager
def running_oracle() -> Iterator[Oracle]:
    """Start the oracle, without any of our environment in it; end it at the end. Raises OracleError."""
    if not PYTHON.exists():
        raise OracleError(MISSING)
    command = [str(PYTHON), str(Path(__file__).with_name("oracle_worker.py"))]
    environment = {"PATH": os.defpath, "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"}
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        encoding="utf-8",
        env=environment,
    )
    with process:
        try:
            yield Oracle(process)
        finally:
            process.kill()
