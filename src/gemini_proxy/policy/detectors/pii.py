"""``pii``: personal data with a form that can be checked.

``pii(x, entities=["EMAIL_ADDRESS"])`` asks for some kinds only. Names and places need a model: a policy may ask for
them, nothing is found, and it is warned of when the policy loads.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Any

from gemini_proxy.policy.budget import Meter
from gemini_proxy.policy.detectors import Finding
from gemini_proxy.policy.detectors.patterned import Rule, RuleSet
from gemini_proxy.policy.errors import EvaluationError

_IBAN_LENGTHS = (15, 34)


def passes_luhn(found: str) -> bool:
    """The check digit of payment cards (ISO/IEC 7812-1 annex B)."""
    digits = [int(char) for char in found if char.isdigit()]
    if not 13 <= len(digits) <= 19 or len(set(digits)) == 1:
        return False
    doubled = [digit * 2 - 9 * (digit > 4) for digit in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def is_iban(found: str) -> bool:
    """The check digits of an IBAN (ISO 13616: the rearranged number is 1 modulo 97)."""
    plain = re.sub(r"[ -]", "", found)
    if not _IBAN_LENGTHS[0] <= len(plain) <= _IBAN_LENGTHS[1]:
        return False
    return int("".join(str(int(char, 36)) for char in plain[4:] + plain[:4])) % 97 == 1


def _is_ssn(found: str) -> bool:
    area, group, serial = found.split("-")
    return area not in ("000", "666") and area < "900" and group != "00" and serial != "0000"


def _is_phone(found: str) -> bool:
    return 8 <= sum(char.isdigit() for char in found) <= 15


def _is_ip4(found: str) -> bool:
    try:
        IPv4Address(found)
    except AddressValueError:
        return False
    return True


def _is_ip6(found: str) -> bool:
    try:
        IPv6Address(found)
    except AddressValueError:
        return False
    return len(found) > 4


_RULES = (
    Rule("EMAIL_ADDRESS", r"[\w.!#$%&'*+/=?^`{|}~-]+@(?:[\w-]+[.])+\pL\pL+"),
    Rule("PHONE_NUMBER", r"[+][1-9][0-9 ().-]{6,20}[0-9]", accept=_is_phone),
    Rule("PHONE_NUMBER", r"[(]?\b[2-9][0-9]{2}[)]?[ .-][2-9][0-9]{2}[ .-][0-9]{4}\b", accept=_is_phone),
    Rule("CREDIT_CARD", r"\b[3-6][0-9]{3}(?:[ -]?[0-9]){9,15}\b", accept=passes_luhn),
    Rule("IBAN_CODE", r"\b[A-Z]{2}[0-9]{2}(?:[ -]?[A-Z0-9]{1,4}){3,8}\b", accept=is_iban),
    Rule("US_SSN", r"\b[0-9]{3}-[0-9]{2}-[0-9]{4}\b", accept=_is_ssn),
    Rule("IP_ADDRESS", r"\b[0-9]{1,3}(?:[.][0-9]{1,3}){3}\b", accept=_is_ip4),
    Rule("IP_ADDRESS", r"(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{1,4}\b", accept=_is_ip6),
)
ENTITIES = frozenset(rule.label for rule in _RULES)
# Presidio's other names in the stock engine: a language model or a country's rules find them, and nothing here does.
NOT_FOUND = frozenset(
    (
        "PERSON", "LOCATION", "NRP", "ORGANIZATION", "DATE_TIME", "URL", "CRYPTO", "MEDICAL_LICENSE",
        "US_BANK_NUMBER", "US_DRIVER_LICENSE", "US_ITIN", "US_PASSPORT", "UK_NHS", "UK_NINO", "ES_NIF", "ES_NIE",
        "IT_FISCAL_CODE", "IT_DRIVER_LICENSE", "IT_VAT_CODE", "IT_PASSPORT", "IT_IDENTITY_CARD", "PL_PESEL",
        "SG_NRIC_FIN", "SG_UEN", "AU_ABN", "AU_ACN", "AU_TFN", "AU_MEDICARE", "IN_PAN", "IN_AADHAAR",
        "IN_VEHICLE_REGISTRATION", "IN_VOTER", "IN_PASSPORT", "FI_PERSONAL_IDENTITY_CODE",
    )
)  # fmt: skip
_ALL = RuleSet(_RULES)
_BY_ENTITY = {entity: RuleSet(rule for rule in _RULES if rule.label == entity) for entity in ENTITIES}


@dataclass(frozen=True, slots=True)
class PiiDetector:
    """Labels are entity names in the spelling of Presidio."""

    name: str = "pii"
    options: frozenset[str] = frozenset(("entities",))
    positional: tuple[str, ...] = ("entities",)
    entities: frozenset[str] = ENTITIES
    labels: frozenset[str] = ENTITIES
    not_found: frozenset[str] = NOT_FOUND

    def detect(self, texts: Sequence[str], options: Mapping[str, Any], meter: Meter) -> Iterable[Finding]:
        """Raises EvaluationError for an entity that nobody knows: a misspelt one would never be found."""
        wanted = options.get("entities")
        if wanted is None:
            return _ALL.find(texts, meter)
        names = {wanted} if isinstance(wanted, str) else set(wanted)
        if unknown := names - ENTITIES - NOT_FOUND:
            raise EvaluationError(f"pii does not know {', '.join(map(str, sorted(unknown)))}")
        return [finding for name in sorted(names & ENTITIES) for finding in _BY_ENTITY[name].find(texts, meter)]
