"""``python -m bench.windows``: what a check of 1 kB costs while an answer grows, with ten rules over its text."""

import platform
import random
import statistics
from time import perf_counter

import click

from gemini_proxy.policy import Budget, Conversation, Place, Policy, Session, compile_policy

IMPORTS = "from invariant.detectors import secrets, unicode\n"
CONDITIONS = (
    '"Project Nightingale" in m.content',
    '"BEGIN CONFIDENTIAL" in m.content',
    '"hunter2" in m.content',
    'any(find("sk_live_[0-9a-z]+", m.content))',
    'any(find("(?i)internal use only", m.content))',
    'any(find("[a-z]+@corp[.]example", m.content))',
    'any(find("-----BEGIN [A-Z ]*PRIVATE KEY-----", m.content))',
    r'any(find("\bACME-[0-9]{4}\b", m.content))',
    'any(unicode(m, categories=["Co"]))',
    "any(secrets(m))",
)
WORDS = "the quick brown fox jumps over a lazy dog, and internal mail goes to corp; sk_ live BEGIN key\n".split(" ")
OVERLAP = 256
PIECE = 1024
WINDOWS = 400


@click.command()
@click.option("--windows", default=WINDOWS, show_default=True, help="Windows timed at each size of earlier text.")
def main(windows: int) -> None:
    """Time windows after 1 kB, 100 kB and 1 MB of earlier text, beside a check of all of it."""
    policies = [_policy(number, condition) for number, condition in enumerate(CONDITIONS)]
    pieces = _pieces()
    click.echo(
        f"{len(policies)} rules, pieces of {PIECE} characters, {platform.machine()}, {platform.python_version()}"
    )
    click.echo("earlier text   window median / p99 (ms)   check of all (ms)")
    for earlier in (1, 100, 1000):
        times = _windows(policies, pieces, earlier, windows)
        whole = _whole(policies, "".join(pieces[turn % len(pieces)] for turn in range(earlier)))
        p99 = statistics.quantiles(times, n=100)[98]
        click.echo(f"{earlier:9} kB   {statistics.median(times):13.4f} / {p99:.4f}   {whole:17.3f}")


def _policy(number: int, condition: str) -> Policy:
    return compile_policy(
        f'{IMPORTS}raise "rule {number}" if:\n    (m: Message)\n    m.role == "assistant"\n    {condition}\n'
    )


def _pieces() -> list[str]:
    chosen = random.Random(7)
    return [" ".join(chosen.choices(WORDS, k=PIECE))[:PIECE] for _ in range(64)]


def _windows(policies: list[Policy], pieces: list[str], earlier: int, count: int) -> list[float]:
    times: list[float] = []
    while len(times) < count:
        session = Session(policies, {}, OVERLAP, filtered=True)
        growing = session.turn()
        session.begin(growing, Place(1))
        for turn in range(earlier):
            session.check(growing, pieces[turn % len(pieces)], Budget())
        for turn in range(min(20, count - len(times))):
            started = perf_counter()
            session.check(growing, pieces[turn], Budget(seconds=1.0))
            times.append((perf_counter() - started) * 1000)
            assert session.clear
    return times


def _whole(policies: list[Policy], text: str) -> float:
    times = []
    for _ in range(5):
        started = perf_counter()
        conversation = Conversation.of([{"role": "user", "content": "hi"}, {"role": "assistant", "content": text}])
        assert not any(policy.check(conversation) for policy in policies)
        times.append((perf_counter() - started) * 1000)
    return statistics.median(times)


if __name__ == "__main__":
    main()
