"""``python -m bench.memory``: what a server holds of large request bodies while they are under way, and afterwards.

Resident memory of the server and of all its processes: at the start, at most, and some seconds after the last answer.
``--source`` measures the proxy of another checkout.

    python -m bench.memory [--bodies 3] [--megabytes 99] [--source OTHER_CHECKOUT/src]
"""

import argparse
import base64
import json
import os
import tempfile
import threading
import time
import urllib.request
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from bench.processes import ServerProcess, module, serving

_PATH: Final = "/v1beta/models/bench-unary:generateContent"
_POLICY: Final = 'raise "no" if:\n    (m: Message)\n    "nobody says this" in m.content\n'
_SETTLED: Final = 10.0
"""Seconds after the last answer: the trace is written, and what is to be given back has been."""


def bodies(megabytes: int) -> Mapping[str, bytes]:
    """A large request of each kind: an attachment, and a text."""
    size = megabytes * 1_000_000
    media = {"inlineData": {"mimeType": "application/pdf", "data": base64.b64encode(bytes(size * 3 // 4)).decode()}}
    text = {"text": "The ferry leaves at seven. " * (size // 27)}
    parts = {"attachment": media, "text": text}
    return {kind: json.dumps({"contents": [{"parts": [part]}]}).encode() for kind, part in parts.items()}


class _Peaks(threading.Thread):
    """Looks at the memory of a server again and again until told to stop."""

    def __init__(self, server: ServerProcess) -> None:
        super().__init__(daemon=True)
        self.own = self.all = 0.0
        self._server = server
        self._done = threading.Event()

    def run(self) -> None:
        while not self._done.wait(0.02):
            self.own = max(self.own, self._server.own_rss_kib)
            self.all = max(self.all, self._server.rss_kib)

    def end(self) -> None:
        self._done.set()
        self.join()


def measure(kind: str, body: bytes, count: int, source: Path | None) -> str:
    """Send ``body`` one time after the other; a line of figures."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        upstream = stack.enter_context(serving(module("bench.upstream"), Path(folder, "upstream.log")))
        Path(folder, "policy.gr").write_text(_POLICY)
        config = Path(folder, "config.toml")
        config.write_text(
            f'[server]\nlisten = ["127.0.0.1:0"]\n[upstream]\nbase_url = "http://127.0.0.1:{upstream.port}"\n'
            f'[guardrails]\npolicies = ["policy.gr"]\ntimeout = 60.0\n'
            f'[traces]\ndatabase = "sqlite:///{folder}/traces.db"\n'
        )
        argv = module("gemini_proxy", "--config", os.fspath(config), "serve")
        server = stack.enter_context(serving(argv, Path(folder, "server.log"), source=source))
        address = f"http://127.0.0.1:{server.port}{_PATH}"
        send(address, b'{"contents":[{"parts":[{"text":"hi"}]}]}')
        start_own, start_all = server.own_rss_kib, server.rss_kib
        peaks = _Peaks(server)
        peaks.start()
        seconds = [send(address, body) for _ in range(count)]
        time.sleep(_SETTLED)
        peaks.end()
        figures = (start_own, peaks.own, server.own_rss_kib, start_all, peaks.all, server.rss_kib)
        own_start, own_peak, own_end, all_start, all_peak, all_end = (round(kib / 1024) for kib in figures)
    return (
        f"{kind:10}  server {own_start:4} MiB, at most {own_peak:5}, afterwards {own_end:4}   "
        f"with its processes {all_start:4} MiB, at most {all_peak:5}, afterwards {all_end:4}   "
        f"{max(seconds):4.1f} s at worst"
    )


def send(address: str, body: bytes) -> float:
    """The seconds to an answer; fails where it is another than 200."""
    headers = {"content-type": "application/json", "x-goog-api-key": "AIzaBench"}
    started = time.perf_counter()
    with urllib.request.urlopen(urllib.request.Request(address, body, headers), timeout=120) as response:
        response.read()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the memory of large bodies.")
    parser.add_argument("--bodies", type=int, default=3)
    parser.add_argument("--megabytes", type=int, default=99)
    parser.add_argument("--source", type=Path)
    options = parser.parse_args()
    for kind, body in bodies(options.megabytes).items():
        print(measure(kind, body, options.bodies, options.source), flush=True)


if __name__ == "__main__":
    main()
