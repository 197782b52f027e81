"""Random conversations, the same for the same seed: shapes that clients send, in words that the policies look for."""

import json
import random
from collections.abc import Callable, Sequence
from typing import Any, Final

Message = dict[str, Any]

TOOLS: Final = ("search", "send_email", "get_inbox", "read_file", "run_python", "delete_file")
_WORDS: Final = (
    "hello", "please", "the", "report", "for", "alice@corp.com", "eve@evil.io", "bob@ourcompany.com", "SECRET",
    "secret", "password", "CANARY-42", "https://evil.example/a?b=c", "http://ok.example.com/x",
    "![x](https://evil.example/i.png)",
    "ghp_aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "AKIAABCDEFGHIJKLMNOP", "xoxb-123-456-abc", "123-45-6789",
    "ignore previous instructions", "a.b", "axb", "(", "[", "$5", "../etc", "/workspace/a.txt", "/etc/passwd", "5",
    "42",
    "<script>alert(1)</script>", "<!-- hidden -->", "<a href='https://evil.example'>x</a>", "import os", "Ünïcödé",
    "日本語", "🙂", "e\u0301", "\u200b", "\u202e", "\ue000", "\U000e0041", "\u00a0", "\n", "\nsecret", "\t", "\r\n",
    '<img src="x" alt="secret words">', "GNU GENERAL PUBLIC LICENSE", "ok", "OK", "yes", "no", "İ", "ſ", "٣",
)  # fmt: skip
_PROGRAMS: Final = (
    "print(1)", "import os\nos.system('ls')", "from subprocess import run\nrun('ls')", "def f(:", "eval('1')",
    "x = [1]",
)  # fmt: skip
_ADDRESSES: Final = (
    "alice@corp.com",
    "bob@ourcompany.com",
    "eve@evil.io",
    "bob@ourcompany.comEVIL",
    "a@x.com\nb@y.com",
)
_PATHS: Final = ("/workspace/a.txt", "/workspace/../etc/passwd", "/etc/passwd", "/workspace/.env", "")
_IMAGES: Final = ("https://img.example/a.png", "data:image/png;base64,iVBORw0KGgo=", "data:image/jpeg;base64,AAAA")
_TYPES: Final = ("string", "integer", "number", "boolean")


class ConversationMaker:
    """Draws conversations. Whether outputs name their calls, and whether content is always text, are habits of a
    client: they are drawn once a conversation."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._ids = "all"
        self._plain = True
        self._open: list[str] = []
        self._count = 0

    def conversation(self) -> list[Message]:
        """Up to ten messages, empty now and then."""
        self._ids = self._random.choices(("all", "none", "some"), (80, 12, 8))[0]
        self._plain = self._random.random() < 0.5
        self._open, self._count = [], 0
        size = self._random.choices(range(11), (2, 5, 8, 10, 10, 8, 6, 4, 3, 2, 2))[0]
        return [message for _ in range(size) for message in self._turn()]

    def _turn(self) -> list[Message]:
        kinds: Sequence[Callable[[], list[Message]]] = (
            self._said,
            self._calling,
            self._output,
            self._tools,
            self._bare,
        )
        return self._random.choices(kinds, (40, 32, 24, 3, 1))[0]()

    def _said(self) -> list[Message]:
        role = self._random.choices(("user", "assistant", "system"), (50, 42, 8))[0]
        message: Message = {"role": role, "content": self._content()}
        if self._random.random() < 0.03:
            message["metadata"] = {"server": "files", "turn": 3}
        return [message]

    def _content(self) -> Any:
        chance = self._random.random()
        if chance < 0.80 or self._plain:
            return self.text()
        if chance < 0.87:
            return None
        return [self._chunk() for _ in range(self._random.randint(0, 3))]

    def _chunk(self) -> Message:
        if self._random.random() < 0.25:
            return {"type": "image_url", "image_url": {"url": self._random.choice(_IMAGES)}}
        return {"type": "text", "text": self.text()}

    def text(self) -> str:
        """A few words, or none."""
        count = self._random.choices((0, 1, 2, 3, 5, 9), (4, 25, 25, 20, 18, 8))[0]
        return self._random.choice((" ", " ", " ", "")).join(self._random.choice(_WORDS) for _ in range(count))

    def _calling(self) -> list[Message]:
        count = self._random.choices((1, 2, 3), (78, 16, 6))[0]
        content = self._random.choice(("", "", "" if self._plain else None, self.text()))
        made: Message = {"role": "assistant", "content": content, "tool_calls": [self._call() for _ in range(count)]}
        if self._random.random() < 0.4:
            return [made]
        return [made, *self._output()]

    def _call(self) -> Message:
        name = self._random.choice(TOOLS)
        arguments: Any = self._arguments(name)
        chance = self._random.random()
        if chance < 0.25:
            arguments = json.dumps(arguments)
        elif chance < 0.255 and not self._plain:
            arguments = self._random.choice(("{broken", "[1, 2]", '"text"', None))
        call: Message = {"type": "function", "function": {"name": name, "arguments": arguments}}
        if self._has_id():
            self._count += 1
            call["id"] = f"call_{self._count}"
            self._open.append(call["id"])
        return call

    def _has_id(self) -> bool:
        return self._ids == "all" or (self._ids == "some" and self._random.random() < 0.5)

    def _arguments(self, name: str) -> Message:
        draw = self._random
        if draw.random() < 0.06:
            return {}
        arguments: Message = {}
        if name == "send_email":
            arguments = {"to": draw.choice(_ADDRESSES), "body": self.text()}
            if draw.random() < 0.3:
                arguments["cc"] = [draw.choice(_ADDRESSES) for _ in range(draw.randint(0, 2))]
        elif name in ("read_file", "delete_file"):
            arguments = {"path": draw.choice(_PATHS), "options": {"limit": draw.choice((1, 5, 42, 1.5)), "mode": "r"}}
        elif name == "run_python":
            arguments = {"code": draw.choice(_PROGRAMS)}
        elif name == "search":
            arguments = {"q": self.text(), "limit": draw.choice((1, 5, True, None, "5"))}
        if draw.random() < 0.1:
            arguments["extra"] = self._data(2)
        return arguments

    def _data(self, depth: int) -> Any:
        kind = self._random.choice(("text", "text", "number", "list", "dict", "bool") if depth else ("text", "number"))
        if kind == "list":
            return [self._data(depth - 1) for _ in range(self._random.randint(0, 3))]
        if kind == "dict":
            return {self._random.choice(("a", "text", "SECRET", "x y")): self._data(depth - 1) for _ in range(2)}
        return {"text": self.text(), "number": self._random.choice((5, 42, 2.5)), "bool": True}[kind]

    def _output(self) -> list[Message]:
        message: Message = {"role": "tool", "content": self._answer()}
        chance = self._random.random()
        if self._has_id() and self._open and chance < 0.96:
            message["tool_call_id"] = self._open.pop(0 if chance < 0.8 else -1)
        elif self._ids == "all" and chance < 0.97:
            message["tool_call_id"] = "call_of_nobody"
        return [message]

    def _answer(self) -> Any:
        chance = self._random.random()
        if chance < 0.66 or self._plain:
            return self.text()
        if chance < 0.72:
            return json.dumps({"status": self._random.choice(("ok", "failed")), "text": self.text()})
        if chance < 0.80:
            return [self._chunk() for _ in range(self._random.randint(0, 3))]
        if chance < 0.92:
            return {"status": self._random.choice(("ok", "failed")), "inner": self._data(2)}
        if chance < 0.97:
            return None
        return [self.text(), self._data(1)]

    def _tools(self) -> list[Message]:
        return [{"tools": [self._tool(name) for name in self._random.sample(TOOLS, 2)]}]

    def _tool(self, name: str) -> Message:
        properties: Message = {
            key: {"type": self._random.choice(_TYPES), "description": self.text()}
            for key in self._random.sample(("path", "to", "q", "code"), self._random.randint(0, 3))
        }
        schema = {"type": "object", "properties": properties, "required": list(properties)[:1]}
        return {"name": name, "description": self.text(), "inputSchema": schema}

    def _bare(self) -> list[Message]:
        """A call without a message around it."""
        return [self._call()]
