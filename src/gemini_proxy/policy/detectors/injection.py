"""Find phrases that try to take over an assistant, and characters that hide text: ``prompt_injection``, a heuristic.

It finds plainly written attacks; a determined author can find words that avoid it. The result is True or False, as in
the stock language, whose ``threshold`` and ``model`` are accepted and have no effect.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gemini_proxy.policy.detectors import Parsed
from gemini_proxy.policy.detectors.disguises import Disguises
from gemini_proxy.policy.detectors.forms import Form, Forms
from gemini_proxy.policy.detectors.unicode import UnicodeDetector
from gemini_proxy.policy.run.budget import Meter

_GAP = r"[ \n\t]+(?:[^ \n\t]+[ \n\t]+)"
# The names by which attacks refer to an assistant's instructions.
_ORDERS = (
    r"(?:(?:system |initial |hidden |secret |original |internal |core )*(?:instructions?|prompts?|guidelines?"
    r"|directives?)"
    r"|rules|training|programming|safeguards|safety (?:rules|measures|filters?|protocols?)|content polic(?:y"
    r"|ies)|restrictions|directions)"
)
_OWN = rf"(?:your|system|initial|hidden|secret) (?:[a-z]+ )?(?:{_ORDERS}|configuration|config|setup|settings)"
_RULES = (
    Form(
        "OVERRIDE",
        r"(?i)\b(?:ignore|disregard|forget|override)" + _GAP + r"{0,4}?"
        r"(?:instructions?|messages?|prompts?|rules|guidelines|directions)",
    ),
    Form("OVERRIDE", r"(?i)\b(?:ignore|disregard|forget|override|bypass|circumvent|evade) (?:all |any |of |the )*"
         rf"(?:your|its|previous|prior|earlier|all|any|safety|content|system) (?:[a-z]+ )?{_ORDERS}\b"),
    Form("OVERRIDE", r"(?i)\b(?:ignore|disregard|forget) (?:all|everything|anything|whatever)"
         r" (?:of )?(?:the |that |you )?(?:above|before|prior|previous|came before|were told|was said|have been"
         r" told|know)\b"),
    Form("OVERRIDE", r"(?i)\b(?:set aside|abandon|discard|drop|skip|neglect|suspend|disable|turn off|break free"
             r" (?:of|from)) "
         rf"(?:all |any |of )*(?:your|the system|these|those|previous|prior) (?:[a-z]+ )?{_ORDERS}\b"),
    Form("OVERRIDE", r"(?i)\b(?:supersedes?|overrides?|replaces?|cancels?) (?:all |any )?(?:of )?(?:your |the )?"
         r"(?:prior|previous|earlier|existing|other) (?:ones|instructions?|rules|directives?|orders|guidelines)\b"),
    Form(
        "OVERRIDE",
        r"(?i)\b(?:do not|don't)[ \n\t]+(?:follow|obey)" + _GAP + r"{0,3}?"
        r"(?:instructions?|rules|guidelines)",
    ),
    # In French, Spanish, Italian, Portuguese, German.
    Form("OVERRIDE", r"(?i)\b(?:ignor(?:ez|a|e|ar|ieren?|ier)|oublie[zr]?|olvid[ae]r?|dimentica|esque[çc]a"
             r"|vergiss|missachte)" + _GAP
         + r"{0,4}?(?:instructions|consignes|instruc(?:ciones|ções|coes)|istruzioni|anweisungen|regeln|reglas"
         r"|regras|règles)\b"),
    Form("ORDERS", r"(?i)\b(?:your (?:new|real|true|actual) (?:instructions?|tasks?|directives?|objective|goal"
             r"|mission|role)\b"
         r"|(?:new|updated|revised) (?:system )?(?:instructions?|directives?|prompt):|(?:note|message"
         r"|instructions?) (?:to|for) (?:the |any )?"
         r"(?:ai|bot|assistant|llm|language model|agent)\b(?: (?:agent|assistant|model))?[ ]?[:,])"),
    Form("ORDERS", r"(?i)\bi have been pw ?ned\b|\b(?:say|print|write|output|respond with|reply with)[:"
             r" '\"]{1,3}(?:i have been )?pwned\b"),
    Form("ORDERS", r"(?i)(?:^|[\[(<{\n])[ ]?(?:system|admin|developer|assistant)(?: (?:override|message|note"
             r"|instruction|prompt|notice|update|alert))"
         r"[ ]?(?:[\])>}:]|[-=]{2,})|\[(?:hidden|system|admin)\][: ]"),
    Form("ROLE", r"(?i)\byou are (?:now|no longer)[ \n\t]|\bfrom now on,? you\b"
         r"|\bpretend (?:that )?you (?:have no|are not|do not have|can|are (?:an? )?(?:evil|unrestricted|hacker"
         r"|dan))\b"),
    Form("ROLE", r"(?i)\b(?:developer|debug|god|dan|jailbreak) mode\b|\bact as (?:an? )?(?:unrestricted"
             r"|unfiltered)\b"),
    Form("ROLE", r"(?i)\b(?:unrestricted|unfiltered|uncensored|unlimited|unconstrained|jailbroken) (?:ai"
             r"|assistant|mode|model|version|chatbot)\b"
         r"|\bwithout (?:any )?(?:restrictions|content filters|safety filters|ethical (?:guidelines|constraints))\b"
         r"|\bno (?:longer )?(?:have|bound by) (?:any )?(?:restrictions|rules|guidelines)\b|\bdo anything now\b"),
    Form(
        "DISCLOSE",
        r"(?i)\b(?:reveal|print|show|repeat|output|display|disclose|share|dump|leak|expose|recite|encode"
        r"|translate|summarize"
        r"|give me|tell me|send me)" + _GAP + r"{0,3}?(?:system|initial|hidden|secret|internal) (?:prompt"
        r"|instructions?|guidelines|rules|configuration|config|directives)\b",
    ),
    Form("DISCLOSE", r"(?i)\b(?:reveal|print|show|repeat|output|display|disclose|share|dump|leak|expose|recite"
             r"|encode|give me|tell me)"
         rf" (?:me |us )?(?:all |exactly |of |the |full |contents of )*{_OWN}\b"),
    Form("DISCLOSE", r"(?i)\b(?:what (?:is|are|were|does)|whats) (?:in )?your (?:exact |full |original )*"
         r"(?:system |initial |hidden |secret |internal )(?:prompt|instructions|rules|guidelines|configuration)\b"
         r"|\b(?:print|repeat|output|copy) (?:everything|all (?:of )?(?:the )?(?:text|words|content)|the"
         r" (?:text|words)) (?:above|before)\b"),
    Form("MARKUP", r"(?i)<\|?(?:im_start|im_end|system|endoftext)\|?>|\[/?INST\]|<</?SYS>>"),
    Form("SECRECY", r"(?i)\b(?:do not|don't|never|without) (?:tell(?:ing)?|inform(?:ing)?|alert(?:ing)?"
             r"|notify(?:ing)?|mention(?:ing)? (?:this|it) to)[ \n\t]+the user\b"),
    Form("COMMAND", r"(?i)\b(?:execute|run|eval):? ?[`'\"]{0,3}(?:import os|os[.]system|bash -c|sh -c|python3?"
             r" -c|rm -rf|curl [^ ]+ ?[|])"
         r"|\batob\(['\"][A-Za-z0-9+/=]{8,}['\"]\)|\bexec\(['\"]import os"),
)  # fmt: skip
_PHRASES = Forms(_RULES)
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
