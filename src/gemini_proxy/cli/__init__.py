"""The command line. Exit codes: 2 for usage, 78 for a configuration that cannot be used (sysexits.h)."""

from gemini_proxy.cli.main import main

__all__ = ["main"]
