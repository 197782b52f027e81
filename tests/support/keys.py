"""Gemini keys of both kinds, which open nothing."""

import pytest

GEMINI_KEYS = ("AIza" + "SyCanary" * 4 + "000", "AQ." + "Ab8Canary" * 4)
"""One as they were until 2026, and one as AI Studio has issued them since."""

each_kind = pytest.mark.parametrize("key", GEMINI_KEYS, ids=["AIza", "AQ"])
