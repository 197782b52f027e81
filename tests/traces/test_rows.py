"""Traces as rows: what serializing one costs."""

import subprocess
import sys

import orjson
import pytest

from gemini_proxy.traces.rows import dump_messages

_MANY = """
import resource
from gemini_proxy.traces.rows import dump_messages
many = [{"role": "user", "content": str(number)} for number in range(200_000)]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
dump_messages(many)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("count", [0, 1, 2, 100])
def test_messages_are_a_list_of_them(count: int) -> None:
    messages = [{"role": "user", "content": f"{number}"} for number in range(count)]
    assert orjson.loads(dump_messages(messages)) == messages


def test_many_short_messages_take_the_memory_of_their_text() -> None:
    """Seven megabytes of JSON take tens, not hundreds."""
    grown = subprocess.run([sys.executable, "-c", _MANY], capture_output=True, text=True, check=True).stdout
    assert int(grown) < 100_000
