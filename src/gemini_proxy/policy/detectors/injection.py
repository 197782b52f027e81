"""``prompt_injection``: a heuristic. Phrases that try to take over an assistant, and characters that hide text.

It finds what is written plainly; a determined author can word around it. True or false, as in the stock language, whose
``threshold`` and ``model`` are read and change nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gemini_proxy.policy.budget import Meter
from gemini_proxy.policy.detectors import Parsed
from gemini_proxy.policy.detectors.disguises import Disguises
from gemini_proxy.policy.detectors.patterned import Rule, RuleSet
from gemini_proxy.policy.detectors.unicode import UnicodeDetector

_RULES = (
    Rule(
        "OVERRIDE",
        r"(?i)\b(?:ignore|disregard|forget|override|bypass)[ \n\t]+(?:[^ \n\t]+[ \n\t]+){0,4}?"
        r"(?:instructions?|messages?|prompts?|rules|guidelines|directions)",
    ),
    Rule(
        "OVERRIDE",
        r"(?i)\b(?:do not|don't)[ \n\t]+(?:follow|obey)[ \n\t]+(?:[^ \n\t]+[ \n\t]+){0,3}?"
        r"(?:instructions?|rules|guidelines)",
    ),
    Rule("ROLE", r"(?i)\byou are (?:now|no longer)[ \n\t]|\bfrom now on,? you\b|\bpretend (?:to be|you are)\b"),
    Rule("ROLE", r"(?i)\b(?:developer|debug|god|dan|jailbreak) mode\b|\bact as (?:an? )?(?:unrestricted|unfiltered)\b"),
    Rule(
        "DISCLOSE",
        r"(?i)\b(?:reveal|print|show|repeat|output)[ \n\t]+(?:[^ \n\t]+[ \n\t]+){0,3}?"
        r"(?:system|initial|hidden) prompt\b",
    ),
    Rule("MARKUP", r"(?i)<\|?(?:im_start|im_end|system|endoftext)\|?>|\[/?INST\]|<</?SYS>>"),
    Rule("SECRECY", r"(?i)\b(?:do not|without) (?:tell(?:ing)?|inform(?:ing)?|alert(?:ing)?)[ \n\t]+the user\b"),
)  # fmt: skip
_PHRASES = RuleSet(_RULES)
_HIDDEN = UnicodeDetector()
_DISGUISES = Disguises(("ignore", "disregard", "previous", "instructions", "system prompt"))


@dataclass(frozen=True, slots=True)
class InjectionHeuristic:
    """Joiners and marks of ordinary writing (``Cf`` in small number) do not count; tag characters and bidi do."""

    name: str = "prompt_injection"
    options: frozenset[str] = frozenset(("threshold", "model", "raw"))

    def parse(self, texts: Sequence[str], args: Sequence[Any], options: Mapping[str, Any], meter: Meter) -> Parsed:
        raw = options.get("raw")
        findings = list(_PHRASES.find(texts, meter) if raw else _DISGUISES.find(_PHRASES.find, texts, meter))
        for finding in _HIDDEN.detect(texts, {}, meter):
            hidden = texts[finding.text][finding.start : finding.end]
            if len(hidden) > 3 or any(_is_suspicious(char) for char in hidden):
                findings.append(finding)
        return Parsed(bool(findings), findings)


def _is_suspicious(char: str) -> bool:
    """Tag characters, overrides and isolates of writing direction, private use."""
    code = ord(char)
    return 0xE0000 <= code <= 0xE007F or 0x202A <= code <= 0x202E or 0x2066 <= code <= 0x2069 or code >= 0xF0000
