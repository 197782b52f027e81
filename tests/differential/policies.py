"""Policies of our own that use the whole language, and for each what the stock engine must read to mean the same.

``stock`` is there only where a text means something else there on purpose; ``why`` then names the differences of
``differences.py`` that the rewriting undoes. ``why`` without ``stock``: no rewriting can undo it, any verdict goes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class Case:
    """A policy of the differential test."""

    name: str
    text: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    stock: str | None = None
    why: tuple[str, ...] = ()


def _rule(*lines: str, head: str = "", raised: str = '"found"') -> str:
    body = "\n".join(f"    {line}" for line in lines)
    return f"{head}\nraise {raised} if:\n{body}\n"


_DETECT = "from invariant.detectors import "
_MESSAGE = "(m: Message)"
_CALL = "(c: ToolCall)"
_OUTPUT = "(o: ToolOutput)"

_LINES = ("a line is a line",)

_EVENTS: Final = (
    Case("contains", _rule(_MESSAGE, '"SECRET" in m.content')),
    Case("role and text", _rule(_MESSAGE, 'm.role == "user"', '"a.b" in m.content')),
    Case("roles in a list", _rule(_MESSAGE, '(m.role in ["system", "assistant"]) and ("ok" in m.content)')),
    Case("find in text", _rule(_MESSAGE, "(t: str) in text(m)", 'any(find("[a-z]+@[a-z]+[.](com|io)", t))')),
    Case("match a text", _rule(_MESSAGE, "(t: str) in text(m)", 'match("[a-z]+ the", t)')),
    Case(
        "text chunks",
        _rule("(t: TextChunk)", '"secret" in t.text'),
        stock=_rule(_MESSAGE, '"secret" in m.content') + _rule(_OUTPUT, '"secret" in o.content'),
        why=("a plain text is one TextChunk",),
    ),
    Case("images by event", _rule("(i: Image)", '"img.example" in i.image_url.url')),
    Case("images by function", _rule(_OUTPUT, "len(image(o)) > 0")),
    Case("images of messages", _rule(_MESSAGE, "(u: str) in image(m)", 'match("data:image", u)')),
    Case("tools", _rule("(t: Tool)", '(t.name == "send_email") or ("SECRET" in t.description)')),
    Case("tool parameters", _rule("(p: ToolParameter)", '(p.name == "path") and (p.type == "string")', "p.required")),
    Case("schemas", _rule("(t: Tool)", "len(t.inputSchema) > 1")),
    Case("any call", _rule(_CALL, "c.function.name == c.function.name")),
    Case("calls of a message", _rule(_MESSAGE, "len(m.tool_calls) > 1")),
    Case("whole input", _rule("(i: Input)", "(m: Message)", '"CANARY" in m.content')),
)

_FORMS: Final = (
    Case(
        "indented as a whole",
        '\n        raise "found" if:\n            (m: Message)\n            "SECRET" in m.content\n        ',
    ),
    Case("a line that goes on", _rule(_MESSAGE, '("SECRET" in m.content) or', '("CANARY" in m.content)')),
    Case("look-ahead in an argument", _rule(_CALL, 'c is tool:send_email({to: "^(?!.*@corp[.]com$).*$"})')),
    Case("look-aheads in match", _rule(_MESSAGE, "(t: str) in text(m)", 'match("(?s)^(?!.*SECRET)(?=.*the).*", t)')),
    Case("look-ahead in find", _rule(_MESSAGE, "(t: str) in text(m)", 'any(find("^(?![A-Z])[a-z]+", t))')),
    Case(
        "categories by position",
        _rule(_MESSAGE, "(t: str) in text(m)", 'any(unicode(t, ["Lu"]))', head=_DETECT + "unicode"),
    ),
    Case(
        "a body of uneven indentation",
        'raise "found" if:\n        (m: Message)\n    "SECRET" in m.content\n',
        stock=_rule(_MESSAGE, '"SECRET" in m.content'),
        why=("a body is what is indented more than its head",),
    ),
    Case(
        "a wildcard behind a pattern",
        _rule(_CALL, 'c is tool:send_email({to: ".*corp.*"}, *)'),
        stock=_rule(_CALL, 'c is tool:send_email({to: ".*corp.*"})'),
        why=("a wildcard asks nothing",),
    ),
    Case("a module alone", _rule(_MESSAGE, 'm.role == "user"', head="import invariant")),
    Case(
        "access control",
        _rule(
            _MESSAGE,
            "should_allow_rbac(m, m.role, 'ada', ROLES, GRANTS)",
            head="from invariant.access_control import should_allow_rbac\n"
            'ROLES := {"ada": ["staff", "guest"]}\nGRANTS := {"guest": {"user": True}}',
        ),
    ),
)

_ARGUMENTS: Final = (
    Case("tool name", _rule(_CALL, "c is tool:send_email")),
    Case("tool pattern", _rule(_CALL, 'c is tool:send_email({to: "[a-z]+@corp[.]com"})')),
    Case(
        "not a tool pattern",
        _rule(_CALL, "c is tool:send_email", 'not (c is tool:send_email({to: "[^@]+@ourcompany[.]com"}))'),
    ),
    Case(
        "wildcards",
        _rule(_CALL, 'c is tool:send_email({to: "*", cc: *})'),
        stock=_rule(_CALL, "c is tool:send_email({to: *, cc: *})"),
        why=("a quoted star is a wildcard",),
    ),
    Case("list pattern", _rule(_CALL, 'c is tool:send_email({cc: ["[^@]+@corp[.]com", *]})')),
    Case("nested pattern", _rule(_CALL, 'c is tool:read_file({options: {mode: "r", limit: 5}})')),
    Case("number pattern", _rule(_CALL, "c is tool:search({limit: 5})")),
    Case("pattern on output", _rule(_OUTPUT, "o is tool:get_inbox", '"evil" in o.content')),
    Case("pattern on a message", _rule(_MESSAGE, "m is tool:search")),
    Case(
        "alternatives in a pattern",
        _rule(_CALL, 'c is tool:send_email({to: "alice@corp.com|bob@ourcompany.com"})'),
        stock=_rule(_CALL, 'c is tool:send_email({to: "(alice@corp.com|bob@ourcompany.com)"})'),
        why=("a tool pattern matches the whole argument",),
    ),
    Case("argument by get", _rule(_CALL, 'c.function.arguments.get("path", "") == "/etc/passwd"')),
    Case(
        "argument by name",
        _rule(_CALL, 'c.function.arguments.path == "/etc/passwd"'),
        stock=_rule(_CALL, 'c.function.arguments.get("path") == "/etc/passwd"'),
        why=("what is missing is None",),
    ),
    Case(
        "argument by key",
        _rule(_CALL, '"/workspace" in c.function.arguments["path"]'),
        stock=_rule(_CALL, '"/workspace" in c.function.arguments.get("path")'),
        why=("what is missing is None",),
    ),
    Case(
        "match a missing argument",
        _rule(_CALL, 'not match("^/workspace/[^.].*$", c.function.arguments.path)'),
        stock=_rule(_CALL, 'not match("(?s)^/workspace/[^.].*$", c.function.arguments.get("path", ""))'),
        why=("what is missing is None", "match takes line ends with a dot"),
    ),
    Case(
        "nested argument",
        _rule(_CALL, "c is tool:read_file", "c.function.arguments.options.limit > 4"),
        stock=_rule(_CALL, "c is tool:read_file", 'c.function.arguments.get("options", {}).get("limit", 0) > 4'),
        why=("what is missing is None",),
    ),
    Case(
        "allow-list of tools",
        _rule(_CALL, "not (c.function.name in input.allowed)"),
        {"allowed": ["search", "get_inbox", "read_file"]},
    ),
    Case(
        "path allow-list",
        _rule(
            _CALL,
            'c.function.name in ["read_file", "delete_file"]',
            '(not match("^/workspace/[^.].*$", c.function.arguments.get("path", ""))) or '
            '(".." in c.function.arguments.get("path", ""))',
        ),
        stock=_rule(
            _CALL,
            'c.function.name in ["read_file", "delete_file"]',
            'True and ((not match("^/workspace/[^.].*$", c.function.arguments.get("path", ""))) or '
            '(".." in c.function.arguments.get("path", "")))',
        ),
        why=_LINES,
    ),
    Case("missing parameter", _rule(_CALL, "c.function.name == input.nobody_gives_it")),
    Case(
        "items of arguments",
        _rule(_CALL, '"code" in c.function.arguments.keys()', "len(c.function.arguments.items()) > 1"),
    ),
    Case("values of arguments", _rule(_CALL, "(v: str) in c.function.arguments.values()", '"evil" in v')),
    Case(
        "arguments as lists",
        _rule(_CALL, '(a: str) in c.function.arguments.get("cc", [])', 'match(".*@corp", a)'),
        stock=_rule(_CALL, '(a: str) in c.function.arguments.get("cc", [])', 'match("(?s).*@corp", a)'),
        why=("match takes line ends with a dot",),
    ),
    Case(
        "integers in arguments",
        _rule(_CALL, '(n: int) in [c.function.arguments.get("limit", 0)]', "n >= 5"),
        stock=_rule(_CALL, '(n: int) in tuple([c.function.arguments.get("limit", 0)])', "n >= 5"),
        why=("a written list can hold an event's values",),
    ),
    Case(
        "python code",
        _rule(
            _CALL,
            "c is tool:run_python",
            'p := python_code(c.function.arguments.get("code", ""))',
            '("os" in p.imports) or ("eval" in p.function_calls)',
            head=_DETECT + "python_code",
        ),
        stock=_rule(
            _CALL,
            "c is tool:run_python",
            'p := python_code(c.function.arguments.get("code", ""))',
            'True and (("os" in p.imports) or ("eval" in p.function_calls))',
            head=_DETECT + "python_code",
        ),
        why=_LINES,
    ),
)

_FLOWS: Final = (
    Case("output then call", _rule("(o: ToolOutput) -> (c: ToolCall)", "o is tool:get_inbox", "c is tool:send_email")),
    Case("message then call", _rule("(m: Message) -> (c: ToolCall)", '"SECRET" in m.content', "c is tool:send_email")),
    Case(
        "three calls",
        _rule(
            "(a: ToolCall) -> (b: ToolCall)",
            "b -> (c: ToolCall)",
            "a.function.name == b.function.name",
            "b.function.name == c.function.name",
        ),
    ),
    Case(
        "three calls on one line",
        _rule(
            "(a: ToolCall) -> (b: ToolCall)",
            "b -> (c: ToolCall)",
            "(a.function.name == b.function.name) and (b.function.name == c.function.name)",
        ),
        stock=_rule(
            "(a: ToolCall) -> (b: ToolCall)",
            "b -> (c: ToolCall)",
            "True and ((a.function.name == b.function.name) and (b.function.name == c.function.name))",
        ),
        why=_LINES,
    ),
    Case("call then output", _rule("(c: ToolCall) -> (o: ToolOutput)", "c is tool:search", '"secret" in o.content')),
    Case("immediately before", _rule("(a: ToolCall) ~> (b: ToolCall)", "a.function.name == b.function.name")),
    Case("immediately before, mixed", _rule("(m: Message) ~> (o: ToolOutput)", 'm.role == "user"')),
    Case("message and its call", _rule("(m: Message) ~> (c: ToolCall)", 'm.role == "assistant"')),
    Case(
        "two loose variables", _rule("(a: Message)", "(b: Message)", '"SECRET" in a.content', '"CANARY" in b.content')
    ),
    Case(
        "call of an output",
        _rule(_OUTPUT, 'tool_call(o).function.name == "search"'),
        stock=_rule(_OUTPUT, "o is tool:search"),
        why=("what is missing is None",),
    ),
    Case(
        "flow declared before", _rule("(a: Message)", "(c: ToolCall)", "a -> c", 'a.role == "user"', "c is tool:search")
    ),
)

_QUANTIFIERS: Final = (
    Case(
        "count calls",
        _rule("count(min=3):", "    (c: ToolCall)", "    c is tool:search", head="from invariant import count"),
    ),
    Case(
        "count between",
        _rule("count(min=1, max=2):", "    (m: Message)", '    m.role == "user"', head="from invariant import count"),
    ),
    Case(
        "count none",
        _rule(
            _CALL,
            "c is tool:send_email",
            "count(max=0):",
            "    (m: Message)",
            '    "please" in m.content',
            head="from invariant import count",
            raised='PolicyViolation("x", c)',
        ),
    ),
    Case(
        "count after",
        _rule(
            _CALL,
            "c is tool:search",
            "count(min=1):",
            "    (d: ToolCall)",
            "    c -> d",
            "    d is tool:search",
            head="from invariant import count",
        ),
    ),
    Case(
        "forall",
        _rule(
            _MESSAGE,
            'm.role == "system"',
            "forall:",
            "    (c: ToolCall)",
            "    c is tool:search",
            head="from invariant import forall",
            raised='PolicyViolation("x", m)',
        ),
    ),
    Case(
        "not forall",
        _rule(
            _MESSAGE,
            'm.role == "user"',
            "not forall:",
            "    (c: ToolCall)",
            "    c is tool:search",
            head="from invariant import forall",
            raised='PolicyViolation("x", m)',
        ),
    ),
)

_EXPRESSIONS: Final = (
    Case(
        "constants",
        _rule(
            _MESSAGE,
            "m.role == ROLE",
            "any(find(PATTERN, m.content))",
            head='ROLE := "user"\nPATTERN := "[0-9]{3}-[0-9]{2}-[0-9]{4}"\n',
        ),
    ),
    Case(
        "predicates",
        _rule(
            _MESSAGE,
            '(u: str) in find("https?://[^ )]+", m.content)',
            "untrusted(u)",
            head='untrusted(url: str) :=\n    not match("^https?://ok[.]example[.]com/", url)\n',
        ),
    ),
    Case(
        "predicate of two lines",
        _rule(_MESSAGE, "loud(m)", head='loud(m: Message) :=\n    m.role == "user"\n    "OK" in m.content\n'),
    ),
    Case(
        "predicate that binds",
        _rule(
            _MESSAGE,
            "called(m.role)",
            head='called(role: str) :=\n    (c: ToolCall)\n    c is tool:delete_file\n    role == "user"\n',
        ),
    ),
    Case("assignment", _rule(_MESSAGE, "n := len(m.content)", "n > 20")),
    Case("comprehension", _rule(_CALL, 'len([k for k in c.function.arguments.keys() if k == "to"]) > 0')),
    Case("comprehension over texts", _rule(_MESSAGE, 'any([("a.b" in t) for t in text(m)])')),
    Case("conditional", _rule(_MESSAGE, '("SECRET" if (m.role == "user") else "CANARY") in m.content')),
    Case("arithmetic", _rule(_MESSAGE, "((len(m.content) % 7) == 3) and ((len(m.content) * 2) > 10)")),
    Case("power and minus", _rule(_MESSAGE, "(len(m.content) - 5) == (2 ** 3)")),
    Case("sum of finds", _rule(_MESSAGE, "(t: str) in text(m)", 'len(find("@", t)) + len(find("https?:", t)) > 1')),
    Case(
        "sum in parentheses",
        _rule(_MESSAGE, "(t: str) in text(m)", '(len(find("@", t)) + len(find("https?:", t))) > 1'),
        stock=_rule(_MESSAGE, "(t: str) in text(m)", 'len(find("@", t)) + len(find("https?:", t)) > 1'),
        why=_LINES,
    ),
    Case("min and max", _rule(_MESSAGE, "(max([len(m.content), 3]) == 3) and (min([1, 2]) == 1)")),
    Case("sum", _rule(_MESSAGE, "sum([len(t) for t in text(m)]) > 30")),
    Case("empty", _rule(_MESSAGE, "empty(m.tool_calls)", 'm.role == "assistant"')),
    Case(
        "is None",
        _rule(_MESSAGE, "m.content is None"),
        stock=_rule(_MESSAGE, "m.content == None", raised='PolicyViolation("x", m)'),
        why=("no content is empty text",),
    ),
    Case("is not None", _rule(_CALL, 'c.function.arguments.get("to") is not None')),
    Case(
        "dictionaries",
        _rule(_MESSAGE, '{"user": 1, "assistant": 2}[m.role] == 2'),
        stock=_rule(_MESSAGE, '{"user": 1, "assistant": 2}.get(m.role) == 2'),
        why=("what is missing is None",),
    ),
    Case("tuples", _rule(_MESSAGE, "len(tuple(text(m))) > 1")),
    Case(
        "indexes",
        _rule(_MESSAGE, "(t: str) in text(m)", 't[0:1] == "h"'),
        stock=_rule(_MESSAGE, "(t: str) in text(m)", 'match("h", t)'),
        why=("not in, slices",),
    ),
    Case("print", _rule(_MESSAGE, 'print("seen", m.role)', '"SECRET" in m.content')),
    Case(
        "exception with values", _rule(_MESSAGE, '"SECRET" in m.content', raised='PolicyViolation("x", m, role=m.role)')
    ),
    Case("metadata", _rule(_MESSAGE, 'm.metadata.get("turn", 0) == 3')),
    Case(
        "precedence",
        _rule(_MESSAGE, 'm.role == "user" and "SECRET" in m.content or "CANARY" in m.content'),
        stock=_rule(_MESSAGE, '((m.role == "user") and ("SECRET" in m.content)) or ("CANARY" in m.content)'),
        why=("precedence is Python's",),
    ),
    Case(
        "not binds less",
        _rule(_MESSAGE, 'not m.role == "user"', '"SECRET" in m.content'),
        stock=_rule(_MESSAGE, 'not (m.role == "user")', '"SECRET" in m.content'),
        why=("precedence is Python's",),
    ),
    Case(
        "not in",
        _rule(_MESSAGE, '"SECRET" not in m.content', 'm.role == "user"'),
        stock=_rule(_MESSAGE, 'not ("SECRET" in m.content)', 'm.role == "user"'),
        why=("not in, slices",),
    ),
    Case(
        "chained comparison",
        _rule(_MESSAGE, "5 < len(m.content) < 12"),
        stock=_rule(_MESSAGE, "(5 < len(m.content)) and (len(m.content) < 12)"),
        why=("precedence is Python's",),
    ),
    Case(
        "truth of a list",
        _rule(_MESSAGE, 'find("[a-z]+@[a-z]+", m.content)'),
        stock=_rule(_MESSAGE, 'any(find("[a-z]+@[a-z]+", m.content))'),
        why=("truth is Python's",),
    ),
    Case(
        "truth of a number",
        _rule(_MESSAGE, "len(m.content) - 5"),
        stock=_rule(_MESSAGE, "(len(m.content) - 5) != 0"),
        why=("truth is Python's",),
    ),
    Case(
        "a bare variable",
        _rule(_CALL),
        stock=_rule(_CALL, raised='PolicyViolation("x", c)'),
        why=("a variable needs its event",),
    ),
    Case(
        "a bare list variable",
        _rule(_MESSAGE, "(t: str) in text(m)", 'm.role == "user"'),
        stock=_rule(_MESSAGE, "(t: str) in text(m)", 'm.role == "user"', raised='PolicyViolation("x", t)'),
        why=("a variable needs its event",),
    ),
    Case(
        "in is literal",
        _rule(_MESSAGE, '"(" in m.content'),
        stock=_rule(_MESSAGE, 'any(find("[(]", m.content))'),
        why=("in is literal",),
    ),
    Case(
        "in of two texts",
        _rule(_MESSAGE, "(t: str) in text(m)", "m.role in t"),
    ),
    Case(
        "a regular expression over lines",
        _rule(_MESSAGE, "(t: str) in text(m)", 'match(".*secret", t)'),
        stock=_rule(_MESSAGE, "(t: str) in text(m)", 'match("(?s).*secret", t)'),
        why=("match takes line ends with a dot",),
    ),
    Case(
        "escapes in a literal",
        _rule(_MESSAGE, '"\\n" in m.content'),
        stock=_rule(_MESSAGE, 'any(find("\\n", m.content))'),
        why=("literals have escapes",),
    ),
    Case("escapes in a pattern", _rule(_MESSAGE, 'any(find("\\s\\S+\\n", m.content))')),
    Case("digits beyond ASCII", _rule(_MESSAGE, 'any(find("\\d", m.content))')),
    Case("words beyond ASCII", _rule(_MESSAGE, 'any(find("\\w{5}", m.content))')),
    Case(
        "word boundaries",
        _rule(_MESSAGE, 'any(find("\\bok\\b", m.content))'),
        stock=_rule(_MESSAGE, 'any(find("(?a:\\bok\\b)", m.content))'),
        why=("words are ASCII",),
    ),
    Case(
        "case-blind",
        _rule(_MESSAGE, 'any(find("(?i)secret|i", m.content))'),
        stock=_rule(_MESSAGE, 'any(find("(?i:secret)|[iI]", m.content))'),
        why=("case is RE2's",),
    ),
    Case("anchors", _rule(_MESSAGE, 'any(find("^secret$", m.content))')),
    Case("anchors of lines", _rule(_MESSAGE, 'any(find("(?m)^secret$", m.content))')),
    Case("classes", _rule(_MESSAGE, 'any(find("[^\\x00-\\x7f][\\u0300-\\u036f]?", m.content))')),
    Case("lazy and counted", _rule(_MESSAGE, 'any(find("h.{1,9}?o (?:the|report){1,2}", m.content))')),
)

_TEXTS: Final = (
    Case("lower", _rule(_MESSAGE, "(t: str) in text(m)", '"secret" in t.lower()')),
    Case("upper", _rule(_MESSAGE, "(t: str) in text(m)", 't.upper() == "OK"')),
    Case("strip", _rule(_MESSAGE, "(t: str) in text(m)", 't.strip() == "hello"')),
    Case("split", _rule(_MESSAGE, "(t: str) in text(m)", '(w: str) in t.split(" ")', 'w == "please"')),
    Case("split on spaces", _rule(_MESSAGE, "(t: str) in text(m)", "len(t.split()) > 3")),
    Case("splitlines", _rule(_MESSAGE, "(t: str) in text(m)", "len(t.splitlines()) > 1")),
    Case("join", _rule(_MESSAGE, '"secret" in "".join(text(m))')),
    Case("format", _rule(_MESSAGE, '"{}: {}".format(m.role, "x") == "user: x"')),
    Case("lower of content", _rule(_MESSAGE, '"secret" in m.content.lower()')),
    Case("json", _rule(_OUTPUT, "(t: str) in text(o)", 'match("[{]", t)', 'json_loads(t).get("status") == "failed"')),
    Case("fields of data", _rule(_OUTPUT, 'o.content.status == "failed"')),
    Case("output text", _rule(_OUTPUT, "(t: str) in text(o)", '"SECRET" in t')),
    Case("output content", _rule(_OUTPUT, '"SECRET" in o.content')),
    Case("secrets", _rule(_MESSAGE, "any(secrets(m))", head=_DETECT + "secrets")),
    Case("secrets of outputs", _rule(_OUTPUT, "any(secrets(o))", head=_DETECT + "secrets")),
    Case("secrets of texts", _rule(_MESSAGE, "(t: str) in text(m)", "len(secrets(t)) > 1", head=_DETECT + "secrets")),
    Case(
        "truth of secrets",
        _rule(_MESSAGE, "secrets(m)", head=_DETECT + "secrets"),
        stock=_rule(_MESSAGE, "any(secrets(m))", head=_DETECT + "secrets"),
        why=("truth is Python's",),
    ),
    Case(
        "unicode",
        _rule(_MESSAGE, "(t: str) in text(m)", 'any(unicode(t, categories=["Cf", "Co"]))', head=_DETECT + "unicode"),
    ),
    Case(
        "copyright",
        _rule(_MESSAGE, "any(copyright(m.content))", head=_DETECT + "copyright"),
        why=("detectors know other patterns",),
    ),
    Case("links", _rule(_MESSAGE, "any(links(m))", head="from invariant.parsers import links")),
    Case("html", _rule(_MESSAGE, "len(html_code(m).alt_texts) > 0", head="from invariant.parsers import html_code")),
    Case(
        "links in html",
        _rule(_MESSAGE, "len(html_code(m).links) > 1", head="from invariant.parsers import html_code"),
        why=("detectors know other patterns",),
    ),
)

CASES: Final = (*_EVENTS, *_FORMS, *_ARGUMENTS, *_FLOWS, *_QUANTIFIERS, *_EXPRESSIONS, *_TEXTS)
