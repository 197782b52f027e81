"""``python -m bench.held_back``: the CPU that holding back a stream takes for each event, without a server."""

import platform
import statistics
from time import process_time

import click
import orjson

from gemini_proxy.gemini.framing.sse import SseFraming
from gemini_proxy.gemini.merger import Merger
from gemini_proxy.guardrails.engine import Check
from gemini_proxy.guardrails.native import NativeEngine
from gemini_proxy.guardrails.rules import guardrail
from gemini_proxy.guardrails.stream import ResponseStream, StreamCheck
from gemini_proxy.guardrails.workers import Workers

POLICY = """
from invariant.detectors import secrets
raise "a secret" if:
    (m: Message)
    m.role == "assistant"
    any(secrets(m))
raise "a project" if:
    (m: Message)
    m.role == "assistant"
    "Project Nightingale" in m.content
"""
OVERLAP = 256
MODES: tuple[StreamCheck, ...] = ("final", "window")


@click.command()
@click.option("--events", default=2_000, show_default=True, help="Events of a stream.")
@click.option("--streams", default=12, show_default=True, help="Streams timed in each mode.")
def main(events: int, streams: int) -> None:
    """Time streams of one short text an event, each event a chunk, with two rules over their text."""
    chunks = [_event(number) for number in range(events)]
    click.echo(f"{events} events, {platform.machine()}, {platform.python_version()}; microseconds an event")
    for mode in MODES:
        times = [_stream(mode, chunks) for _ in range(streams)]
        click.echo(f"{mode:8} median {statistics.median(times):6.2f}  least {min(times):6.2f}")


def _event(number: int) -> bytes:
    part = {"text": f"some words of number {number} here, "}
    payload = {
        "candidates": [{"content": {"parts": [part], "role": "model"}, "index": 0}],
        "usageMetadata": {
            "promptTokenCount": 5,
            "candidatesTokenCount": number,
            "totalTokenCount": 5 + number,
            "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 5}],
        },
        "modelVersion": "gemini-2.5-flash",
        "responseId": "abcdef",
    }
    return b"data: " + orjson.dumps(payload) + b"\r\n\r\n"


def _stream(mode: StreamCheck, chunks: list[bytes]) -> float:
    check = Check((guardrail("bench", POLICY, "block"),), ({"role": "user", "content": "hi"},))
    session = NativeEngine(Workers(), 5.0).open_session(check, OVERLAP)
    stream = ResponseStream(SseFraming(), Merger(), mode, None, 1 << 30, session=session, first_message=1)
    started = process_time()
    for chunk in chunks:
        stream.feed(chunk)
    seconds = process_time() - started
    assert stream.mode == mode and stream.events_left > len(chunks) / 2
    return seconds / len(chunks) * 1e6


if __name__ == "__main__":
    main()
