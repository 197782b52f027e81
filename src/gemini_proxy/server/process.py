"""What this process has of the machine: descriptors and memory."""

import logging
import os
import resource
from collections.abc import Callable
from dataclasses import dataclass

log = logging.getLogger(__name__)

_PAGE = os.sysconf("SC_PAGE_SIZE")


def raise_descriptor_limit() -> None:
    """Take as many descriptors as the service manager or the shell allows; the soft limit is often 1024.

    It is low for the sake of select(), which neither we nor our event loops use.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (ValueError, OSError) as error:
        fields = {"limit": soft, "error": type(error).__name__}
        log.warning("the limit of open descriptors cannot be raised", extra=fields)


@dataclass(frozen=True, slots=True)
class Usage:
    """Open descriptors and their limit, and resident memory in bytes; None where the system does not say."""

    descriptors: int | None
    descriptor_limit: int
    resident_bytes: int | None


def usage() -> Usage:
    """What this process uses now."""
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
