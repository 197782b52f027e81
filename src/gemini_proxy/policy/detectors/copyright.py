"""Find copyright notices and license texts: ``copyright``. ``threshold`` is accepted and changes nothing."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gemini_proxy.policy.detectors import Finding
from gemini_proxy.policy.detectors.forms import Form, Forms
from gemini_proxy.policy.run.budget import Meter

_NOTICES = Forms(
    (
        Form("COPYRIGHT", r"(?i)(?:\bcopyright\b|©|\(c\))\s*(?:\(c\)|©)?\s*(?:[0-9]{4}|by\b)"),
        Form("COPYRIGHT", r"(?i)\bcopyright\s*(?:\(c\)|©)"),
        Form("COPYRIGHT", r"(?i)\ball rights reserved\b"),
        Form("GNU_AGPL_V3", r"(?i)\bGNU AFFERO GENERAL PUBLIC LICENSE\b"),
        Form("GNU_LGPL", r"(?i)\bGNU (?:LESSER|LIBRARY) GENERAL PUBLIC LICENSE\b"),
        Form("GNU_GPL", r"(?i)\bGNU GENERAL PUBLIC LICENSE\b"),
        Form("MOZILLA_PUBLIC_LICENSE", r"(?i)\bMozilla Public License\b"),
        Form("APACHE_LICENSE", r"(?i)\bApache License,?\s+Version\b"),
        Form("MIT_LICENSE", r"(?i)\bPermission is hereby granted, free of charge, to any person\b|\bMIT License\b"),
        Form("BSD_LICENSE", r"(?i)\bRedistribution and use in source and binary forms\b"),
        Form("EUPL", r"(?i)\bEuropean Union Public Licen[cs]e\b"),
        Form("CREATIVE_COMMONS", r"(?i)\bCreative Commons (?:Attribution|Zero|Public)"),
    )
)


@dataclass(frozen=True, slots=True)
class CopyrightDetector:
    """The label of a notice is COPYRIGHT, that of a license text the name of the license."""

    name: str = "copyright"
    options: frozenset[str] = frozenset(("threshold",))
    labels: frozenset[str] = _NOTICES.labels

    def detect(self, texts: Sequence[str], options: Mapping[str, Any], meter: Meter) -> Iterable[Finding]:
        return _NOTICES.find(texts, meter)
