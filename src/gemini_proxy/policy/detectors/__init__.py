"""Detectors find secrets, personal data and the like in texts, without a network or a model.

A detector has a name, options, and ``detect``. ``compile_policy`` takes the registry of detectors, to which plug-ins
can be added.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

from gemini_proxy.policy.detectors.outside import OutsideDetector
from gemini_proxy.policy.run.budget import Meter


@dataclass(frozen=True, slots=True)
class Finding:
    """``texts[text][start:end]`` is a ``label``, offsets in characters."""

    text: int
    start: int
    end: int
    label: str


@runtime_checkable
class Detector(Protocol):
    """Find labeled spans. ``detect`` pays with ``meter.charge`` before long work and keeps no state between calls;
    any exception it raises makes the check unavailable. The result of a call in a rule is the list of labels.
    Optional attributes: ``positional`` names the options that may also be given by position, in order; ``labels`` all
    labels of a call without options; ``not_found`` names that are known but never found; ``models`` other detectors
    that answer a call with their name as its option ``model``.
    """

    @property
    def name(self) -> str: ...

    @property
    def options(self) -> frozenset[str]: ...

    def detect(self, texts: Sequence[str], options: Mapping[str, Any], meter: Meter) -> Iterable[Finding]: ...


@runtime_checkable
class Parser(Protocol):
    """Turn a text into a value of its own shape instead of labels, as ``python_code`` does."""

    @property
    def name(self) -> str: ...

    @property
    def options(self) -> frozenset[str]: ...

    def parse(
        self, texts: Sequence[str], args: Sequence[Any], options: Mapping[str, Any], meter: Meter
    ) -> "Parsed": ...


@dataclass(frozen=True, slots=True)
class Parsed:
    """The value of a call, and what it rests on."""

    value: Any
    findings: Sequence[Finding] = ()


def positional(detector: Detector | Parser | OutsideDetector) -> tuple[str, ...]:
    """Return the options of a detector that may follow its text by position."""
    names: tuple[str, ...] = getattr(detector, "positional", ())
    return names


@dataclass(frozen=True, slots=True)
class DetectorRegistry:
    """The detectors a policy can import, by name."""

    detectors: Mapping[str, Detector | Parser | OutsideDetector]

    @classmethod
    def of(cls, *detectors: Detector | Parser | OutsideDetector) -> "DetectorRegistry":
        return cls(MappingProxyType({detector.name: detector for detector in detectors}))

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self.detectors)

    def with_detectors(self, *detectors: Detector | Parser | OutsideDetector) -> "DetectorRegistry":
        """Return a registry with more detectors, which replace those of the same name."""
        added = {detector.name: detector for detector in detectors}
        return DetectorRegistry(MappingProxyType({**self.detectors, **added}))
