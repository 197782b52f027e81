"""List the detectors that come with the proxy. None needs a network or a model."""

from typing import Any, Final

from gemini_proxy.policy.detectors import Detector, DetectorRegistry
from gemini_proxy.policy.detectors.copyright import CopyrightDetector
from gemini_proxy.policy.detectors.fuzzy import FuzzyContains
from gemini_proxy.policy.detectors.injection import InjectionHeuristic
from gemini_proxy.policy.detectors.markup import HtmlCode, Images, Links
from gemini_proxy.policy.detectors.pii import ENTITIES, PiiDetector
from gemini_proxy.policy.detectors.python_code import PythonCode
from gemini_proxy.policy.detectors.secrets import SecretsDetector
from gemini_proxy.policy.detectors.similarity import Similarity
from gemini_proxy.policy.detectors.unicode import UnicodeDetector
from gemini_proxy.policy.run.budget import Budget, Meter

BUILTIN = DetectorRegistry.of(
    SecretsDetector(),
    PiiDetector(),
    UnicodeDetector(),
    PythonCode(),
    HtmlCode(),
    Links(),
    Images(),
    CopyrightDetector(),
    InjectionHeuristic(),
    FuzzyContains(),
    Similarity(),
)

_KINDS: Final[tuple[tuple[Detector, dict[str, Any]], ...]] = (
    (SecretsDetector(), {}),
    (PiiDetector(), {}),
    (PiiDetector(), {"entities": ENTITIES}),
)
_OTHER_KIND: Final = "MASKED"
_LONGEST_KIND: Final = 500
"""Characters of a text that is looked at: what secrets and personal data are has a kind, and longer texts do not."""


def kind_of_value(value: str) -> str:
    """Return the label that ``secrets`` or ``pii`` gives to all of ``value``; ``MASKED`` where they give none."""
    if len(value) <= _LONGEST_KIND:
        for detector, options in _KINDS:
            for finding in detector.detect([value], options, Meter(Budget())):
                if finding.end - finding.start == len(value):
                    return finding.label
    return _OTHER_KIND
