"""Read this process's use of the machine: descriptors, memory, processors."""

import asyncio
import contextlib
import ctypes
import logging
import os
import resource
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)

_PAGE = os.sysconf("SC_PAGE_SIZE")
_LARGE = 4_194_304
"""Bytes of a body that are worth it."""
_REGULARLY = 60.0
"""Seconds between two times that memory is given back however little was freed at once: holes between what is in use
add up, some megabytes a minute under load, and nothing else ends them."""
_SOON = 1.0
"""Seconds, in which the trace is written and several bodies are done with."""


def raise_descriptor_limit() -> None:
    """Raise the limit of descriptors to what the service manager or the shell allows; the soft limit is often 1024.

    The soft limit is low because of select(), which neither we nor our event loops use.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (ValueError, OSError) as error:
        fields = {"limit": soft, "error": type(error).__name__}
        log.warning("the limit of open descriptors cannot be raised", extra=fields)


def usable_processors() -> int:
    """Return how many processors this process may use: those it is bound to, up to its container's quota."""
    bound = len(os.sched_getaffinity(0))
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return max(1, min(bound, round(int(quota) / int(period))))
    return bound


@dataclass(frozen=True, slots=True)
class Usage:
    """Open descriptors and their limit, and resident memory in bytes; None where the system does not say."""

    descriptors: int | None
    descriptor_limit: int
    resident_bytes: int | None


def usage() -> Usage:
    """Return what this process uses now."""
    return Usage(
        descriptors=_known(lambda: len(os.listdir("/proc/self/fd")) - 1),
        descriptor_limit=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        resident_bytes=_known(_resident_bytes),
    )


def _resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * _PAGE


def _known(read: Callable[[], int]) -> int | None:
    try:
        return read()
    except OSError:
        return None


class Memory:
    """Return the memory of large bodies to the system, a moment after they are done.

    glibc keeps freed memory for the next allocation, up to hundreds of megabytes; other C libraries lack the function.
    """

    def __init__(self) -> None:
        self._due = False

    def freed(self, size: int) -> None:
        """Note that a body of ``size`` bytes is done with, or is about to be."""
        if size >= _LARGE and not self._due and _TRIM is not None:
            self._due = True
            asyncio.get_running_loop().call_later(_SOON, self._give_back, _TRIM)

    async def give_back_regularly(self) -> None:
        """Return free memory to the system again and again, until cancelled."""
        while True:
            await asyncio.sleep(_REGULARLY)
            if _TRIM is not None:
                self._give_back(_TRIM)

    def _give_back(self, trim: Callable[[int], int]) -> None:
        self._due = False
        # Some milliseconds a gigabyte, without the interpreter's lock.
        asyncio.get_running_loop().run_in_executor(None, trim, 0)


def _malloc_trim() -> Callable[[int], int] | None:
    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return None
    return trim


_TRIM = _malloc_trim()
