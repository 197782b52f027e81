"""The bench of leaks finds a key that passes, and none passes the proxy."""

import asyncio
from pathlib import Path

from bench.leaks import PLACES, crossings, run, table
from bench.peers import Peer
from bench.processes import module, serving


def test_what_no_proxy_stands_before_passes_and_nothing_passes_the_proxy(tmp_path: Path) -> None:
    with serving(module("bench.leaks", "upstream"), tmp_path / "log") as upstream:
        assert asyncio.run(crossings(upstream.port)) == [True] * len(PLACES)
    assert run(None) == {Peer.PROXY: [False] * len(PLACES)}


def test_the_table_has_a_row_for_each_place() -> None:
    rows = table({Peer.PROXY: [False] * len(PLACES), Peer.LITELLM: [True] * len(PLACES)}).splitlines()
    assert rows[2] == "| a prompt | stopped | **passes** |"
    assert len(rows) == 2 + len(PLACES)
