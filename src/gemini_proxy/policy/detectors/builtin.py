"""The detectors that come with the proxy."""

from gemini_proxy.policy.detectors import DetectorRegistry

BUILTIN = DetectorRegistry.of()
