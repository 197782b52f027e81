"""``secrets``: keys and tokens with a recognisable form, and on request anything that looks random.

``secrets(x, generic=True)`` also reports assignments such as ``password = "..."`` whose value has high entropy.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import log2
from typing import Any

from gemini_proxy.gemini_keys import GEMINI_KEY
from gemini_proxy.policy.budget import Meter
from gemini_proxy.policy.detectors import Finding
from gemini_proxy.policy.detectors.patterned import Rule, RuleSet

# Bits a character: English words stay under 3.5, random base 64 of 20 characters is over 3.8.
_ENTROPY = 3.6
_LONGEST_VALUE = 200

_RULES = (
    Rule("GITHUB_TOKEN", r"(?:ghp|gho|ghu|ghs|ghr)_[A-Za-z0-9_]{36}"),
    Rule("GITHUB_TOKEN", r"github_pat_[A-Za-z0-9]{22}_[A-Za-z0-9]{59}"),
    Rule("AWS_ACCESS_KEY", r"(?:A3T[A-Z0-9]|ABIA|ACCA|AKIA|ASIA)[0-9A-Z]{16}"),
    Rule("AWS_ACCESS_KEY", r"(?i)aws.{0,20}?(?:key|pwd|pw|password|pass|token).{0,20}?['\"][0-9a-z/+]{40}['\"]"),
    Rule("AZURE_STORAGE_KEY", r"AccountKey=[a-zA-Z0-9+/=]{88}"),
    Rule("SLACK_TOKEN", r"(?i)xox[abposr]-(?:[0-9]+-)+[a-z0-9]+"),
    Rule("SLACK_TOKEN", r"(?i)https://hooks[.]slack[.]com/services/T[a-z0-9_]+/B[a-z0-9_]+/[a-z0-9_]+"),
    Rule("SLACK_TOKEN", r"xapp-[0-9]-[A-Z0-9]+-[0-9]+-[a-f0-9]+"),
    Rule("GOOGLE_API_KEY", GEMINI_KEY),
    Rule("GOOGLE_OAUTH", r"ya29[.][0-9A-Za-z_-]{20,}"),
    Rule("GOOGLE_OAUTH", r"GOCSPX-[0-9A-Za-z_-]{28}"),
    Rule("PRIVATE_KEY", r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----"),
    Rule("JWT", r"eyJ[A-Za-z0-9_-]{8,}[.]eyJ[A-Za-z0-9_-]{8,}[.][A-Za-z0-9_-]{8,}"),
    Rule("GITLAB_TOKEN", r"gl(?:pat|ptt|dt|rt|cbt|soat|ft|imt)-[0-9A-Za-z_-]{20,}"),
    Rule("STRIPE_KEY", r"(?:sk|rk)_(?:live|test)_[0-9A-Za-z]{16,}"),
    Rule("STRIPE_KEY", r"whsec_[0-9A-Za-z]{24,}"),
    Rule("NPM_TOKEN", r"npm_[0-9A-Za-z]{36}"),
    Rule("NPM_TOKEN", r"_authToken=[0-9A-Za-z+/=_-]{20,}"),
    Rule("PYPI_TOKEN", r"pypi-AgE[0-9A-Za-z_-]{50,}"),
    Rule("OPENAI_KEY", r"sk-(?:proj-|svcacct-)?[0-9A-Za-z_-]{20,}T3BlbkFJ[0-9A-Za-z_-]{20,}"),
    Rule("ANTHROPIC_KEY", r"sk-ant-[a-z0-9]+-[0-9A-Za-z_-]{80,}"),
)


def _looks_random(found: str) -> bool:
    value = found[max(found.rfind("="), found.rfind(":")) + 1 :].strip(" \t'\"")[:_LONGEST_VALUE]
    counts = Counter(value)
    entropy = -sum(count / len(value) * log2(count / len(value)) for count in counts.values()) if value else 0.0
    return entropy >= _ENTROPY and any(char.isdigit() for char in value)


_GENERIC = (
    Rule(
        "GENERIC_SECRET",
        r"(?i)(?:password|passwd|pwd|secret|token|api[_-]?key|access[_-]?key|credential)s?['\"]?[ \t]*[:=][ \t]*"
        r"['\"]?[0-9a-z+/_~.!@#$%^&*-]{16,200}",
        _looks_random,
    ),
)

_KNOWN = RuleSet(_RULES)
_WITH_GENERIC = RuleSet((*_RULES, *_GENERIC))


@dataclass(frozen=True, slots=True)
class SecretsDetector:
    """Labels are the kinds of secret, as in ``GITHUB_TOKEN``."""

    name: str = "secrets"
    options: frozenset[str] = frozenset(("generic",))
    labels: frozenset[str] = _KNOWN.labels

    def detect(self, texts: Sequence[str], options: Mapping[str, Any], meter: Meter) -> Iterable[Finding]:
        return (_WITH_GENERIC if options.get("generic") else _KNOWN).find(texts, meter)
