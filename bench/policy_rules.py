"""The rules, conversations and texts that the policy engine is measured with. None of the rules fires."""

from typing import Any, Final

_WORDS: Final = (
    "the quarterly report shows a steady growth in all regions and we expect that to continue over the next months "
    "because customers renew their contracts early while new ones arrive from partners who heard about the service "
).split()


def _rule(*lines: str, head: str = "") -> str:
    body = "\n".join(f"    {line}" for line in lines)
    return f'{head}\nraise "found" if:\n{body}\n'


RULES: Final = {
    "contains": _rule("(m: Message)", '"voldemort" in m.content'),
    "regex": _rule("(m: Message)", 'any(find("[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+[.][A-Za-z]{2,}", m.content))'),
    "secrets": _rule("(m: Message)", "any(secrets(m))", head="from invariant.detectors import secrets"),
    "tool argument": _rule("(c: ToolCall)", 'c is tool:send_email({to: "[^@]+@evil[.]io"})'),
    "flow": _rule(
        "(o: ToolOutput) -> (c: ToolCall)", "o is tool:get_inbox", 'c is tool:send_email({to: "[^@]+@evil[.]io"})'
    ),
}

_PATTERNS: Final = (
    "[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+[.][A-Za-z]{2,}", "[0-9]{3}-[0-9]{2}-[0-9]{4}", "AKIA[0-9A-Z]{16}",
    "AIza[0-9A-Za-z_-]{35}", "-----BEGIN [A-Z ]*PRIVATE KEY-----", "(?i)ignore (all |any )?previous instructions",
    "https?://[a-z0-9.-]*evil[a-z0-9.-]*/", "[!][[][^]]*[]][(]https?://", "xox[abp]-[0-9]+-[0-9a-z]+",
    "(?i)password *[:=] *[^ ]{8,}",
)  # fmt: skip

TEN_REGEX_RULES: Final = "".join(_rule("(m: Message)", f'any(find("{pattern}", m.content))') for pattern in _PATTERNS)
TEN_WINDOW_RULES: Final = "".join(
    _rule("(m: Message)", 'm.role == "assistant"', f'any(find("{pattern}", m.content))') for pattern in _PATTERNS
)


def prose(size: int, at: int = 0) -> str:
    """About ``size`` characters of plain text, ``at`` says where in it."""
    words = [_WORDS[(at * 7 + number * 5 + number // len(_WORDS)) % len(_WORDS)] for number in range(size // 5 + 8)]
    return " ".join(words)[:size]


def conversation(count: int) -> list[dict[str, Any]]:
    """``count`` messages of about sixty characters: question, call, output, answer, and again."""
    return [_message(number) for number in range(count)]


def _message(number: int) -> dict[str, Any]:
    turn, kind = divmod(number, 4)
    if kind == 1:
        arguments = {"to": f"colleague{turn}@corp.com", "body": prose(40, turn)}
        name = "send_email" if turn % 2 else "get_inbox"
        call = {"id": f"c{turn}", "type": "function", "function": {"name": name, "arguments": arguments}}
        return {"role": "assistant", "content": "", "tool_calls": [call]}
    if kind == 2:
        return {"role": "tool", "tool_call_id": f"c{turn}", "content": prose(60, turn)}
    return {"role": "user" if kind == 0 else "assistant", "content": prose(60, turn)}
