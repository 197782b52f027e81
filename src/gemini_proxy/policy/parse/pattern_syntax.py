"""Patterns, as they may follow ``is``."""

from gemini_proxy.policy.parse import syntax
from gemini_proxy.policy.parse.atoms import AtomParser
from gemini_proxy.policy.parse.cursor import MAX_DEPTH
from gemini_proxy.policy.parse.literals import read_string


class PatternParser(AtomParser):
    """Adds patterns to atoms."""

    def pattern(self) -> syntax.Pattern:
        """What may follow ``is`` as a pattern, and what may stand inside one."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            self._too_deep()
        node = self._pattern()
        self._depth -= 1
        return node

    def _pattern(self) -> syntax.Pattern:
        token = self._token
        if token.kind == "tool":
            return self._tool_pattern()
        if token.kind == "string":
            return self._text_pattern()
        if self._at("*"):
            self._advance()
            return syntax.Wildcard(token.line, token.column)
        if self._at("<"):
            return self._entity()
        if self._at("["):
            return self._list_pattern()
        if self._at("{"):
            return self._mapping_pattern()
        return self._literal_pattern()

    def _tool_pattern(self) -> syntax.ToolPattern:
        token = self._advance()
        arguments = None
        if self._take("("):
            arguments = None if self._at(")") else self.pattern()
            while self._take(","):
                # The stock language writes it so; a wildcard asks nothing.
                if not self._take("*"):
                    self._fail("one pattern for all arguments", suggestion="tool:name({key: pattern, ...})")
            self._expect(")", "after the argument pattern")
        return syntax.ToolPattern(token.line, token.column, token.text, arguments)

    def _text_pattern(self) -> syntax.Pattern:
        value = self._string()
        if not isinstance(value, syntax.Constant):
            self._fail("an f-string cannot be a pattern", value)
        if value.value == "*":
            return syntax.Wildcard(value.line, value.column)
        return syntax.TextPattern(value.line, value.column, value)

    def _entity(self) -> syntax.EntityPattern:
        token = self._advance()
        name = self._identifier("the name of an entity, as in <EMAIL_ADDRESS>")
        self._expect(">", "after the name of an entity")
        return syntax.EntityPattern(token.line, token.column, name.text)

    def _list_pattern(self) -> syntax.ListPattern:
        token = self._advance()
        items = []
        while not self._at("]"):
            items.append(self.pattern())
            if not self._take(","):
                break
        self._expect("]", "to close the list pattern")
        return syntax.ListPattern(token.line, token.column, tuple(items))

    def _mapping_pattern(self) -> syntax.MappingPattern:
        token = self._advance()
        entries = []
        while not self._at("}"):
            key = self._advance()
            if key.kind not in ("name", "string"):
                self._fail("expected a key", key)
            self._expect(":", "after a key")
            name = read_string(key.text).value if key.kind == "string" else key.text
            entries.append((name, self.pattern()))
            if not self._take(","):
                break
        self._expect("}", "to close the pattern")
        return syntax.MappingPattern(token.line, token.column, tuple(entries))

    def _literal_pattern(self) -> syntax.Pattern:
        token = self._token
        sign = -1 if self._take("-") else 1
        atom = self._atom()
        if isinstance(atom, syntax.Name) and sign == 1:
            return syntax.TextPattern(token.line, token.column, atom)
        if not isinstance(atom, syntax.Constant) or (sign == -1 and not isinstance(atom.value, int | float)):
            self._fail("expected a pattern: a string, a number, a list, {key: pattern}, * or <ENTITY>", token)
        value = -atom.value if sign == -1 and isinstance(atom.value, int | float) else atom.value
        return syntax.LiteralPattern(token.line, token.column, value)
