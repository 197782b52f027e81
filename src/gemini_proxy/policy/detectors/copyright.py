"""``copyright``: notices and licence texts. ``threshold`` is read and changes nothing: a text is found or it is not."""

from gemini_proxy.policy.detectors.patterned import PatternDetector, Rule, RuleSet

COPYRIGHT = PatternDetector(
    "copyright",
    RuleSet(
        (
            Rule("COPYRIGHT", r"(?i)(?:\bcopyright\b|©|\(c\))\s*(?:\(c\)|©)?\s*(?:[0-9]{4}|by\b)"),
            Rule("COPYRIGHT", r"(?i)\bcopyright\s*(?:\(c\)|©)"),
            Rule("COPYRIGHT", r"(?i)\ball rights reserved\b"),
            Rule("GNU_AGPL_V3", r"(?i)\bGNU AFFERO GENERAL PUBLIC LICENSE\b"),
            Rule("GNU_LGPL", r"(?i)\bGNU (?:LESSER|LIBRARY) GENERAL PUBLIC LICENSE\b"),
            Rule("GNU_GPL", r"(?i)\bGNU GENERAL PUBLIC LICENSE\b"),
            Rule("MOZILLA_PUBLIC_LICENSE", r"(?i)\bMozilla Public License\b"),
            Rule("APACHE_LICENSE", r"(?i)\bApache License,?\s+Version\b"),
            Rule("MIT_LICENSE", r"(?i)\bPermission is hereby granted, free of charge, to any person\b|\bMIT License\b"),
            Rule("BSD_LICENSE", r"(?i)\bRedistribution and use in source and binary forms\b"),
            Rule("EUPL", r"(?i)\bEuropean Union Public Licen[cs]e\b"),
            Rule("CREATIVE_COMMONS", r"(?i)\bCreative Commons (?:Attribution|Zero|Public)"),
        )
    ),
    frozenset(("threshold",)),
)
