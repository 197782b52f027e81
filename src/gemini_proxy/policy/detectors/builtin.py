"""The detectors that come with the proxy: none needs a network or a model."""

from gemini_proxy.policy.detectors import DetectorRegistry
from gemini_proxy.policy.detectors.copyright import COPYRIGHT
from gemini_proxy.policy.detectors.fuzzy import FuzzyContains
from gemini_proxy.policy.detectors.injection import InjectionHeuristic
from gemini_proxy.policy.detectors.markup import HtmlCode, Images, Links
from gemini_proxy.policy.detectors.pii import PiiDetector
from gemini_proxy.policy.detectors.python_code import PythonCode
from gemini_proxy.policy.detectors.secrets import SecretsDetector
from gemini_proxy.policy.detectors.similarity import Similarity
from gemini_proxy.policy.detectors.unicode import UnicodeDetector

BUILTIN = DetectorRegistry.of(
    SecretsDetector(),
    PiiDetector(),
    UnicodeDetector(),
    PythonCode(),
    HtmlCode(),
    Links(),
    Images(),
    COPYRIGHT,
    InjectionHeuristic(),
    FuzzyContains(),
    Similarity(),
)
