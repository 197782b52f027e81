"""Run compiled code in a check: its values, events, functions, methods and ranges."""
