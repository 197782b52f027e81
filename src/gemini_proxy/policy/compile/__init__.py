"""Compile a syntax tree to code: names are resolved, and what can be checked at load is checked."""
