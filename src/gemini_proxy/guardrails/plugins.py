"""Load the detectors of other packages, by the entry point group ``gemini_proxy.detectors``, and policies with them.

An entry point names a callable without arguments, such as a class, that returns a ``policy.Detector``. Policies import
the detector by its name from ``invariant.detectors``. It runs in the server's processes with the server's rights, and
blocks them while it runs: a detector that waits for a network should give up within ``guardrails.timeout``.
"""

import threading
from collections import OrderedDict
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Final

from gemini_proxy.policy import (
    BUILTIN,
    MAX_PROGRAM,
    OUTSIDE,
    Detector,
    DetectorRegistry,
    Parser,
    Policy,
    compile_policy,
)

GROUP: Final = "gemini_proxy.detectors"

_POLICIES_KEPT: Final = 64
"""Compiled policies that are kept: more than applications share a server, and few enough for the garbage collector,
which now and then walks through them all."""


class PluginError(Exception):
    """Raised for an installed detector that cannot be used. The text names the entry point."""


@lru_cache(maxsize=1)
def installed_detectors() -> DetectorRegistry:
    """Return the detectors that are built in or installed. Raises PluginError."""
    return BUILTIN.with_detectors(*(_load(entry) for entry in entry_points(group=GROUP)))


@lru_cache(maxsize=1)
def _with_outside() -> DetectorRegistry:
    """Add the detectors that are asked, unless a plug-in has one of that name. Raises PluginError."""
    installed = installed_detectors()
    return installed.with_detectors(*(detector for detector in OUTSIDE if detector.name not in installed.names))


def load_policy(text: str, source: str, max_program: int = MAX_PROGRAM, *, asks: bool = False) -> Policy:
    """Compile a policy with all installed detectors, or return it if it was compiled before. Raises PolicyError.

    With ``asks`` it may use detectors that are asked outside the engine. They cost money or send texts away, so only
    the operator's own policies may use them.
    """
    policy = loaded_policy(text, source, max_program, asks=asks)
    if policy is None:
        detectors = _with_outside() if asks else installed_detectors()
        policy = compile_policy(text, source, detectors=detectors, max_program=max_program)
        with _kept_lock:
            _kept[text, source, max_program, asks] = policy
            if len(_kept) > _POLICIES_KEPT:
                _kept.popitem(last=False)
    return policy


def loaded_policy(text: str, source: str, max_program: int = MAX_PROGRAM, *, asks: bool = False) -> Policy | None:
    """Return the compiled policy if there is one, without compiling."""
    with _kept_lock:
        policy = _kept.get((text, source, max_program, asks))
        if policy is not None:
            _kept.move_to_end((text, source, max_program, asks))
        return policy


# The key is the text itself, and a policy is immutable: users who share one learn nothing about each other.
_kept: OrderedDict[tuple[str, str, int, bool], Policy] = OrderedDict()
_kept_lock = threading.Lock()


def _load(entry: EntryPoint) -> Detector | Parser:
    where = f"detector plug-in {entry.name} ({entry.value})"
    try:
        detector = entry.load()()
    except Exception as error:
        raise PluginError(f"{where} cannot be loaded: {type(error).__name__}: {error}") from error
    if not isinstance(detector, Detector | Parser):
        raise PluginError(f"{where} is not a detector: it needs name, options and detect")
    return detector
