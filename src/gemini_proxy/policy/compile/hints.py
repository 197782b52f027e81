"""Suggest what an author may mean who writes the words of another language or another field."""

from collections.abc import Mapping
from typing import Final

METHODS_ELSEWHERE: Final[Mapping[str, str]] = {
    "contains": 'write "..." in text',
    "includes": 'write "..." in text',
    "find": "write any(find(pattern, text))",
    "search": "write any(find(pattern, text))",
    "test": "write any(find(pattern, text))",
    "matches": "write match(pattern, text)",
    "match": "write match(pattern, text)",
    "length": "write len(text)",
    "size": "write len(text)",
    "count": "write len(find(pattern, text))",
    "title": "write .lower()",
    "casefold": "write .lower()",
    "toLowerCase": "write .lower()",
    "toUpperCase": "write .upper()",
    "trim": "write .strip()",
}
"""Methods that texts have elsewhere, and what is written here."""

FIELDS_ELSEWHERE: Final[Mapping[tuple[str, str], str]] = {
    ("ToolCall", "name"): "write {0}.function.name, or {0} is tool:the_name",
    ("ToolCall", "arguments"): "write {0}.function.arguments",
    ("ToolCall", "args"): "write {0}.function.arguments",
    ("ToolCall", "content"): "write {0}.function.arguments",
    ("ToolCall", "tool"): "write {0}.function.name, or {0} is tool:the_name",
    ("ToolOutput", "name"): "write {0}.tool_name, or {0} is tool:the_name",
    ("ToolOutput", "function"): "write {0}.tool_name, or {0} is tool:the_name",
    ("ToolOutput", "text"): "write {0}.content",
    ("ToolOutput", "output"): "write {0}.content",
    ("ToolOutput", "response"): "write {0}.content",
    ("Message", "text"): "write {0}.content",
    ("Message", "parts"): "write {0}.content",
    ("Message", "author"): "write {0}.role",
    ("Tool", "parameters"): "write {0}.inputSchema",
}
"""Fields that events have elsewhere, by kind and name, and what is written here of the event {0}."""

MODULES_ELSEWHERE: Final[Mapping[str, str]] = {
    "re": "find(pattern, text) and match(pattern, text) need no import",
}
"""Modules that are looked for, and what does their work here."""

NAMES_ELSEWHERE: Final[Mapping[str, str]] = {
    "null": "write None",
    "nil": "write None",
    "undefined": "write None",
    "true": "write True",
    "false": "write False",
    "re": MODULES_ELSEWHERE["re"],
}
"""Names that mean something elsewhere, and what is written here."""
