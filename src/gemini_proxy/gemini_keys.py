"""Define the form of a Gemini API key, for detectors and for redaction of stored data."""

from typing import Final

GEMINI_KEY: Final = r"AIza[0-9A-Za-z_-]{35}|AQ[.][A-Za-z0-9_-]{20,}"
"""A pattern for ``re`` and RE2: keys of before 2026, and those that AI Studio has issued since."""
