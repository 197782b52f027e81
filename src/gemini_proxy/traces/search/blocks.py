"""Runs of traces' numbers that the index of words knows by words of their own. No I/O.

What finds nothing goes through its lists to their end, however far above that end a range of numbers stops it: so a
search also asks for the blocks of the range, each a short list, and the others are looked into only where that one is.
"""

from typing import Final

# Numbers in a block, as powers of two, smallest first. A trace is in one of each.
SIZES: Final = (12, 16, 20)
# Blocks that one search asks for, rather than for larger ones.
MOST: Final = 32


def blocks_of(number: int) -> tuple[str, ...]:
    """The words for the blocks that a number is in."""
    return tuple(_word(size, number >> size) for size in SIZES)


def covering(after: int, to: int) -> tuple[str, ...]:
    """The words for the smallest blocks, MOST of them at most, that together hold all numbers after one up to another.

    Only of the largest there may be more.
    """
    size = next((size for size in SIZES if (to >> size) - ((after + 1) >> size) < MOST), SIZES[-1])
    return tuple(_word(size, block) for block in range((after + 1) >> size, (to >> size) + 1))


def _word(size: int, block: int) -> str:
    return f"b{size}n{block}"
