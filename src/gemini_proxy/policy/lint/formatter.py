"""Write a policy in the standard form: what it means and every comment stay, and so do the author's lines.

- Four spaces a block; a line that continues another one stands four further, a closing bracket under its opening line.
- One space around operators and after commas, none inside brackets, two before a comment at the end of a line.
- At most one blank line, none where a block begins, and one around every rule and predicate.
- LF at the end of each line. Literals are as they were written.
"""

from dataclasses import fields
from typing import Final

from gemini_proxy.policy.errors import PolicyError
from gemini_proxy.policy.parse import syntax
from gemini_proxy.policy.parse.lexer import WANTS_MORE, Token, tokenize, unify_lines
from gemini_proxy.policy.parse.parser import CONSTANTS, KEYWORDS, parse

_INDENT: Final = "    "
_OPENING: Final = frozenset("([{")
_CLOSING: Final = frozenset(")]}")
_BLANKS: Final = " \t\f\xa0\ufeff"
_PLACES: Final = frozenset(("line", "column", "text"))
"""Fields of a node that say where it stands, or how it is laid out."""


def format_policy(text: str, source: str) -> str:
    """Return ``text`` in the standard form; formatting that again changes nothing.

    Raise PolicyError for a policy that does not parse, and for one whose meaning would change: a fault in here damages
    none.
    """
    before = parse(text, source)
    text = unify_lines(text)
    formatted = _Formatter(text).run()
    after = parse(formatted, source)
    if not _same(before.statements, after.statements) or comments(text) != comments(formatted):
        raise PolicyError(
            source, 1, 1, "the formatter would change what this policy means: please report it", text=text
        )
    return formatted


def comments(text: str) -> list[str]:
    """Return the comments of a text that has LF line ends, without the blanks at their ends."""
    found: list[str] = []
    at = 0
    for token in tokenize(text):
        found += [line.rstrip() for line in map(_comment, text[at : token.start].split("\n")) if line]
        at = max(at, token.end)
    return found


def _comment(line: str) -> str:
    line = line.lstrip(_BLANKS)
    return line if line.startswith("#") else ""


def _same(one: object, other: object) -> bool:
    """Return whether two parts of syntax trees are the same but for their places."""
    if type(one) is not type(other):
        return False
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, syntax.Node):
        names = (field.name for field in fields(one) if field.name not in _PLACES)
        return all(_same(getattr(one, name), getattr(other, name)) for name in names)
    return one == other


class _Formatter:
    """Write the tokens of a policy that parses, and the comments between them."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._lines: list[str] = []
        self._line = ""
        self._indent = 0
        self._level = 0
        # The indentation in the source of the last line of each open block, and of the top level.
        self._widths = [0]
        # Each open bracket, and the indentation of its line.
        self._brackets: list[tuple[str, int]] = []
        self._spacing = _Spacing()
        self._in_long_statement = False

    def run(self) -> str:
        previous_end, previous_level, starts_line = 0, 0, True
        previous: Token | None = None
        tokens = tokenize(self._text)
        for index, token in enumerate(tokens):
            if token.kind in ("newline", "indent", "dedent"):
                self._level += {"newline": 0, "indent": 1, "dedent": -1}[token.kind]
                starts_line = True
                continue
            gap = self._text[previous_end : token.start]
            if starts_line:
                self._end_line(gap, previous_level, token, tokens[min(index + 1, len(tokens) - 1)])
            elif "\n" in gap and previous is not None:
                self._continue_line(gap, previous, token)
            elif previous is not None and self._spacing.wants_space(previous, token, self._innermost):
                self._line += " "
            self._write(token, previous)
            previous, previous_end, previous_level, starts_line = token, token.end, self._level, False
        return "".join(f"{line}\n" for line in self._lines)

    @property
    def _innermost(self) -> str:
        return self._brackets[-1][0] if self._brackets else ""

    def _write(self, token: Token, previous: Token | None) -> None:
        if token.kind == "op" and token.text in _OPENING:
            self._brackets.append((token.text, self._indent))
        elif token.kind == "op" and token.text in _CLOSING:
            self._brackets.pop()
        self._line += f"tool:{token.text}" if token.kind == "tool" else token.text
        self._spacing.add(token, previous)

    def _begin(self, indent: int) -> None:
        self._indent = indent
        self._line = _INDENT * indent

    def _flush(self, first: str) -> None:
        """End the line that is being written, with the comment behind it."""
        if self._line.strip():
            comment = _comment(first).rstrip()
            self._lines.append(f"{self._line}  {comment}" if comment else self._line)
            self._line = ""

    def _continue_line(self, gap: str, previous: Token, token: Token) -> None:
        first, *between, _ = gap.split("\n")
        goes_on = self._brackets or previous.text in WANTS_MORE or token.text in ("and", "or")
        if not goes_on:
            # Then a backslash continues the line.
            self._line += " \\"
        if self._brackets:
            closes = token.kind == "op" and token.text in _CLOSING
            indent = self._brackets[-1][1] + (not closes)
        else:
            indent = self._level + 1
        self._flush(first)
        beside = indent + (bool(self._brackets) and token.text in _CLOSING)
        self._lines += [f"{_INDENT * beside}{comment.rstrip()}" for comment in map(_comment, between) if comment]
        self._begin(indent)

    def _end_line(self, gap: str, previous_level: int, token: Token, following: Token) -> None:
        """End a line and begin that of ``token``, with the comments and blank lines between them."""
        first, *between = gap.split("\n")
        if not self._lines and not self._line:
            # No line ends here: a comment may stand at the very beginning.
            between.insert(0, first)
        last = between.pop() if between else ""
        self._flush(first)
        if token.kind == "end":
            between.append(last)
        level = 0 if token.kind == "end" else self._level
        shown = self._between(between, level, previous_level)
        if level > previous_level:
            while shown and not shown[0]:
                del shown[0]
        if level == 0 and token.kind != "end":
            self._set_apart(shown, token, following)
        while shown and not shown[0] and not self._lines:
            del shown[0]
        while shown and not shown[-1] and token.kind == "end":
            del shown[-1]
        self._lines += shown
        del self._widths[level:]
        self._widths += [_width(last)] * (level + 1 - len(self._widths))
        self._begin(level)

    def _between(self, between: list[str], level: int, previous_level: int) -> list[str]:
        """Return the comments with their indentation, and one empty line for each run of such."""
        shown: list[str] = []
        most = max(level, previous_level)
        for line in between:
            comment = _comment(line)
            if comment:
                # A comment that ends a block is indented as the block is.
                width = _width(line)
                fitting = (deep for deep in range(most, level, -1) if self._widths[deep] <= width)
                most = next(fitting, level)
                shown.append(f"{_INDENT * most}{comment.rstrip()}")
            elif not shown or shown[-1]:
                shown.append("")
        return shown

    def _set_apart(self, shown: list[str], token: Token, following: Token) -> None:
        """Put an empty line around a rule or predicate, before the comments that stand right above it."""
        is_long = token.text == "raise" or following.text == "("
        if (is_long or self._in_long_statement) and self._lines:
            at = len(shown)
            while at and shown[at - 1] and not shown[at - 1].startswith(" "):
                at -= 1
            if not at or shown[at - 1]:
                shown.insert(at, "")
        self._in_long_statement = is_long


def _width(line: str) -> int:
    """Return how far a line is indented, as the lexer counts it."""
    blanks = line[: len(line) - len(line.lstrip(_BLANKS))]
    return len(blanks.replace("\ufeff", "").expandtabs(8))


class _Spacing:
    """Decide whether a space stands between two tokens of a line, by what came before them."""

    def __init__(self) -> None:
        self._after_operand = False
        self._after_sign = False
        self._in_entity = False

    def add(self, token: Token, previous: Token | None) -> None:
        """Take note of a token that is written after ``previous``."""
        is_operator = token.kind == "op"
        self._after_sign = is_operator and token.text in "+-" and not self._after_operand
        if is_operator and token.text == "<" and not self._after_operand:
            self._in_entity = True
        elif is_operator and token.text == ">" and self._in_entity:
            self._in_entity = False
            self._after_operand = True
            return
        # Where an operand is expected a star is a pattern that fits anything.
        is_star = is_operator and token.text == "*" and not self._after_operand
        word = token.kind == "name" and _is_keyword(token, previous)
        self._after_operand = is_star or (not is_operator and not word) or (is_operator and token.text in _CLOSING)

    def wants_space(self, previous: Token, token: Token, innermost: str) -> bool:
        """Return whether a space stands between them; ``innermost`` is the bracket that both are in."""
        before = previous.text if previous.kind == "op" else ""
        now = token.text if token.kind == "op" else ""
        if now in (",", ".", "=", *_CLOSING) or before in (".", "=", *_OPENING):
            return False
        if now == ":" or (before == ":" and innermost == "["):
            return False
        if self._in_entity or self._after_sign:
            return False
        return not (now in ("(", "[") and self._after_operand)


def _is_keyword(token: Token, previous: Token | None) -> bool:
    is_attribute = previous is not None and previous.kind == "op" and previous.text == "."
    return token.text in KEYWORDS - CONSTANTS.keys() and not is_attribute
