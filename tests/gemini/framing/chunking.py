"""Bodies in pieces, and what a framing makes of them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from hypothesis import strategies as st

from gemini_proxy.errors import DecodeError
from gemini_proxy.gemini.framing.frames import Frame, Framing


@dataclass(frozen=True)
class Reading:
    """The frames of a body, and whether a DecodeError ended it."""

    frames: list[Frame]
    failed: bool

    @property
    def raw(self) -> bytes:
        return b"".join(frame.raw for frame in self.frames)

    @property
    def payloads(self) -> list[object]:
        return [frame.payload for frame in self.frames if frame.payload is not None]

    @property
    def settled(self) -> list[tuple[bytes, object]]:
        """The frames with line ends and blanks that stand alone counted to the frame before them."""
        settled: list[tuple[bytes, object]] = [(b"", None)]
        for frame in self.frames:
            if frame.payload is None and not frame.raw.strip(b" \t\r\n"):
                settled[-1] = (settled[-1][0] + frame.raw, settled[-1][1])
            else:
                settled.append((frame.raw, frame.payload))
        return settled


def read(framing: Framing, pieces: Iterable[bytes]) -> Reading:
    """Feed a framing to its end, or to its fault."""
    frames: list[Frame] = []
    try:
        for piece in pieces:
            frames += framing.feed(piece)
        frames += framing.end()
    except DecodeError:
        return Reading(frames, True)
    return Reading(frames, False)


def pieces(body: bytes, size: int) -> Iterator[bytes]:
    """The body in pieces of one size."""
    return (body[at : at + size] for at in range(0, len(body), size))


def chunked(bodies: st.SearchStrategy[bytes]) -> st.SearchStrategy[tuple[bytes, list[bytes]]]:
    """A body and one way to cut it."""

    def cut(body: bytes) -> st.SearchStrategy[tuple[bytes, list[bytes]]]:
        cuts = st.lists(st.integers(0, len(body)), max_size=12)
        return cuts.map(lambda at: (body, [body[a:b] for a, b in pairwise([0, *sorted(at), len(body)])]))

    return bodies.flatmap(cut)
