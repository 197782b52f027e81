"""Names, numbers, strings and everything in brackets."""

from gemini_proxy.policy.parse import syntax
from gemini_proxy.policy.parse.cursor import KEYWORDS, Cursor, describe
from gemini_proxy.policy.parse.lexer import LexError, Token, tokenize
from gemini_proxy.policy.parse.literals import StringLiteral, cook, read_string, split_template

_WORDS: dict[str, object] = {"None": None, "True": True, "False": False}


class AtomParser(Cursor):
    """Parses what operators stand between; ``expression`` and ``disjunction`` come with the operators."""

    def expression(self) -> syntax.Expr:
        raise NotImplementedError

    def disjunction(self) -> syntax.Expr:
        raise NotImplementedError

    def _atom(self) -> syntax.Expr:
        token = self._token
        if token.kind == "number":
            self._advance()
            return syntax.Constant(token.line, token.column, self._number(token))
        if token.kind == "string":
            return self._string()
        if token.kind == "name" and token.text in _WORDS:
            self._advance()
            return syntax.Constant(token.line, token.column, _WORDS[token.text])
        if token.kind == "name":
            name = self._identifier("an expression")
            return syntax.Name(name.line, name.column, name.text)
        if token.kind == "op" and token.text in "([{":
            return self._bracketed()
        self._fail(f"expected an expression, found {describe(token)}")

    def _number(self, token: Token) -> int | float:
        if len(token.text) > 40:
            self._fail("a number of more than 40 characters", token, fault="excess")
        plain = token.text.replace("_", "")
        return int(plain) if plain.isdigit() else float(plain)

    def _bracketed(self) -> syntax.Expr:
        token = self._token
        if token.text == "(" and self._ahead().kind == "name" and self._ahead(2).text == ":":
            self._fail("a declaration stands on a line of its own", suggestion="put the condition on the next line")
        if token.text == "{":
            return self._braces()
        self._advance()
        closing = ")" if token.text == "(" else "]"
        if self._take(closing):
            return syntax.Sequence(token.line, token.column, (), closing == "]")
        first = self.expression()
        if self._at("for"):
            node = self._comprehension(first)
            self._expect(closing, "after a comprehension")
            return node
        if closing == ")" and not self._at(","):
            self._expect(")", "to close the bracket")
            return first
        items = self._items(first, closing)
        return self._grown(syntax.Sequence(token.line, token.column, items, closing == "]"), *items)

    def _items(self, first: syntax.Expr, closing: str) -> tuple[syntax.Expr, ...]:
        items = [first]
        while self._take(",") and not self._at(closing):
            items.append(self.expression())
        self._expect(closing, "to close the list")
        return tuple(items)

    def _braces(self) -> syntax.Expr:
        token = self._advance()
        entries: list[tuple[syntax.Expr, syntax.Expr]] = []
        while not self._at("}"):
            key = self._key()
            if not entries and not self._at(":"):
                items = self._items(key, "}")
                return self._grown(syntax.Sequence(token.line, token.column, items, False), *items)
            self._expect(":", "after a key")
            entries.append((key, self.expression()))
            if not self._take(","):
                break
        self._expect("}", "to close the dictionary")
        children = [node for entry in entries for node in entry]
        return self._grown(syntax.Mapping(token.line, token.column, tuple(entries)), *children)

    def _key(self) -> syntax.Expr:
        """As in the stock language, a bare word before a colon is the key itself, not a variable."""
        if self._token.kind == "name" and self._token.text not in KEYWORDS and self._ahead().text == ":":
            token = self._advance()
            return syntax.Constant(token.line, token.column, token.text)
        return self.expression()

    def _comprehension(self, element: syntax.Expr) -> syntax.Expr:
        self._expect("for", "in a comprehension")
        names = [self._identifier("a variable").text]
        while self._take(","):
            names.append(self._identifier("a variable").text)
        self._expect("in", "in a comprehension")
        source = self.disjunction()
        conditions = []
        while self._take("if"):
            conditions.append(self.disjunction())
        if self._at("for"):
            self._fail("only one for in a comprehension")
        node = syntax.Comprehension(element.line, element.column, element, tuple(names), source, tuple(conditions))
        return self._grown(node, element, source, *conditions)

    def _string(self) -> syntax.Expr:
        parts: list[syntax.Expr] = []
        while self._token.kind == "string":
            token = self._advance()
            literal = read_string(token.text)
            if literal.is_template:
                parts.extend(self._template_parts(token, literal))
            else:
                parts.append(syntax.Constant(token.line, token.column, literal.value, literal.body))
        if all(isinstance(part, syntax.Constant) for part in parts):
            return _joined(parts)
        return self._grown(syntax.Template(parts[0].line, parts[0].column, tuple(parts)), *parts)

    def _template_parts(self, token: Token, literal: StringLiteral) -> list[syntax.Expr]:
        parts: list[syntax.Expr] = []
        try:
            for is_expression, text, offset in split_template(literal.body):
                if is_expression:
                    parts.append(self._embedded(token, text, literal.offset + offset))
                else:
                    value = text if literal.is_raw else cook(text)
                    parts.append(syntax.Constant(token.line, token.column, value, text))
        except ValueError as error:
            self._fail(str(error), token)
        return parts

    def _embedded(self, token: Token, text: str, offset: int) -> syntax.Expr:
        """An expression inside an f-string, parsed with the depth reached so far."""
        try:
            tokens = tokenize(f"({text})")
        except LexError as error:
            self._fail(f"in an f-string: {error.reason}", token)
        inner = type(self)(self._text, self._source, tuple(_moved(each, token, offset) for each in tokens))
        inner._depth = self._depth
        inner._heights = self._heights
        inner._advance()
        value = inner.expression()
        inner._expect(")", "after the expression in an f-string (conversions and formats are not available)")
        if inner._token.kind not in ("newline", "end"):
            inner._fail(f"unexpected {describe(inner._token)} in an f-string")
        return value


def _joined(parts: list[syntax.Expr]) -> syntax.Constant:
    """Adjacent literals are one literal, as in Python."""
    constants = [part for part in parts if isinstance(part, syntax.Constant)]
    first = constants[0]
    value = "".join(str(part.value) for part in constants)
    return syntax.Constant(first.line, first.column, value, "".join(part.raw or "" for part in constants))


def _moved(token: Token, outer: Token, offset: int) -> Token:
    column = outer.column + offset + token.column - 2 if token.line == 1 else token.column
    return Token(token.kind, token.text, outer.line + token.line - 1, column, token.start, token.end)
