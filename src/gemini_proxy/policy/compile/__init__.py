"""From a syntax tree to code: names are resolved, and everything is checked that can be before a check runs."""
