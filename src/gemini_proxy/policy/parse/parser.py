"""Statements and lines of rules: ``parse`` turns a policy's text into a Module."""

from gemini_proxy.policy.errors import Fault, PolicyError
from gemini_proxy.policy.parse import syntax
from gemini_proxy.policy.parse.cursor import MAX_DEPTH, describe
from gemini_proxy.policy.parse.expressions import ExpressionParser
from gemini_proxy.policy.parse.lexer import LexError, tokenize, unify_lines


def parse(text: str, source: str) -> syntax.Module:
    """The syntax tree of a policy. Raises PolicyError, and nothing else, for any text."""
    text = unify_lines(text)
    try:
        tokens = tokenize(text)
    except LexError as error:
        fault: Fault = "excess" if error.excess else "form"
        where = error.line, error.column
        raise PolicyError(source, *where, error.reason, error.suggestion, fault=fault, text=text) from error
    return _StatementParser(text, source, tokens).module()


class _StatementParser(ExpressionParser):
    def module(self) -> syntax.Module:
        statements = []
        while self._token.kind != "end":
            if self._token.kind == "newline":
                self._advance()
            else:
                statements.append(self._statement())
        return syntax.Module(tuple(statements))

    def _statement(self) -> syntax.Statement:
        if self._at("from"):
            return self._import()
        if self._at("raise"):
            return self._raise()
        if self._at("import"):
            return self._import_module()
        if self._at("def"):
            self._fail("def is not part of the language", suggestion="name(a: str) := ... defines a predicate")
        name = self._identifier("a rule, an import or a definition")
        if self._at("("):
            return self._predicate()
        self._expect(":=", f'after "{name.text}"')
        value = self._block_expression()
        return syntax.Define(name.line, name.column, name.text, value)

    def _block_expression(self) -> syntax.Expr:
        indented = self._token.kind == "newline" and self._ahead().kind == "indent"
        if indented:
            self._index += 2
        value = self.expression()
        self._end_line()
        if indented:
            if self._token.kind != "dedent":
                self._fail("a constant has one value")
            self._advance()
        return value

    def _end_line(self) -> None:
        if self._token.kind not in ("newline", "end"):
            self._fail(f"expected the end of the line, found {describe(self._token)}")
        self._advance()

    def _import_module(self) -> syntax.Import:
        """``import module [as name]``."""
        token = self._advance()
        module = self._module()
        alias = self._identifier("a name").text if self._take("as") else module
        self._end_line()
        return syntax.Import(token.line, token.column, module, (), alias)

    def _module(self) -> str:
        module = [self._identifier("a module").text]
        while self._take("."):
            module.append(self._identifier("a module").text)
        return ".".join(module)

    def _import(self) -> syntax.Import:
        token = self._advance()
        module = self._module()
        self._expect("import", "after the module")
        parenthesised = self._take("(")
        names = [self._imported()]
        while self._take(",") and not self._at(")"):
            names.append(self._imported())
        if parenthesised:
            self._expect(")", "after the imported names")
        self._end_line()
        return syntax.Import(token.line, token.column, module, tuple(names))

    def _imported(self) -> tuple[syntax.Name, str]:
        if self._at("*"):
            self._fail("names are imported one by one")
        token = self._identifier("a name to import")
        alias = self._identifier("a name").text if self._take("as") else token.text
        return syntax.Name(token.line, token.column, token.text), alias

    def _predicate(self) -> syntax.Predicate:
        token = self._tokens[self._index - 1]
        self._advance()
        parameters: list[tuple[str, str]] = []
        while not self._at(")"):
            parameter = self._identifier("a parameter").text
            kind = self._identifier("a type").text if self._take(":") else ""
            if parameter in dict(parameters):
                self._fail(f'"{parameter}" is a parameter twice')
            parameters.append((parameter, kind))
            if not self._take(","):
                break
        self._expect(")", "after the parameters")
        if not self._take(":="):
            self._expect(":", "after the parameters")
        return syntax.Predicate(token.line, token.column, token.text, tuple(parameters), self._body())

    def _raise(self) -> syntax.Raise:
        token = self._advance()
        error = self.disjunction()
        self._expect("if", "after what the rule raises")
        self._expect(":", 'after "if"')
        body = self._body()
        last = self._index - 1
        while self._tokens[last].kind in ("newline", "dedent", "indent"):
            last -= 1
        return syntax.Raise(token.line, token.column, error, body, self._text[token.start : self._tokens[last].end])

    def _body(self) -> tuple[syntax.Line, ...]:
        """Lines of an indented block, or the one line that follows the colon."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            self._too_deep()
        lines = self._block() if self._token.kind == "newline" else [self._line()]
        self._depth -= 1
        return tuple(lines)

    def _block(self) -> list[syntax.Line]:
        if self._ahead().kind != "indent":
            self._fail("expected an indented block", self._ahead())
        self._index += 2
        lines = []
        while self._token.kind not in ("dedent", "end"):
            lines.append(self._line())
        self._advance()
        return lines

    def _line(self) -> syntax.Line:
        line = self._line_content()
        if not isinstance(line, syntax.Quantifier):
            self._end_line()
        return line

    def _line_content(self) -> syntax.Line:
        token = self._token
        if self._at_declaration():
            return self._flow(self._declaration())
        if token.kind == "name" and self._ahead().text == ":=":
            name = self._identifier("a variable")
            self._advance()
            return syntax.Assignment(name.line, name.column, name.text, self.expression())
        value = self.expression()
        if self._at(":"):
            return self._quantifier(value)
        if self._at("->") or self._at("~>"):
            if not isinstance(value, syntax.Name):
                self._fail("a flow goes between bound events and declarations")
            return self._flow(value)
        return syntax.Condition(value.line, value.column, value)

    def _at_declaration(self) -> bool:
        return self._at("(") and self._ahead().kind == "name" and self._ahead(2).text == ":"

    def _declaration(self) -> syntax.Declaration:
        token = self._advance()
        name = self._identifier("a variable").text
        self._expect(":", "in a declaration")
        kind = self._identifier("a type").text
        self._expect(")", "after a declaration")
        source = self.expression() if self._take("in") else None
        return syntax.Declaration(token.line, token.column, name, kind, source)

    def _flow(self, first: syntax.Declaration | syntax.Name) -> syntax.Line:
        links: list[syntax.Declaration | syntax.Name] = [first]
        arrows: list[syntax.Arrow] = []
        while self._at("->") or self._at("~>"):
            arrows.append("->" if self._advance().text == "->" else "~>")
            if self._at_declaration():
                links.append(self._declaration())
            else:
                name = self._identifier("a bound event or a declaration")
                links.append(syntax.Name(name.line, name.column, name.text))
        if not arrows and isinstance(first, syntax.Declaration):
            return first
        return syntax.Flow(first.line, first.column, tuple(links), tuple(arrows))

    def _quantifier(self, value: syntax.Expr) -> syntax.Quantifier:
        negated = isinstance(value, syntax.Unary) and value.operator == "not"
        head = value.operand if isinstance(value, syntax.Unary) and negated else value
        kwargs: tuple[tuple[str, syntax.Expr], ...] = ()
        name = head
        if isinstance(head, syntax.Call):
            if head.args:
                self._fail("bounds are given by name", head, "count(min=2, max=5):")
            kwargs, name = head.kwargs, head.function
        if not isinstance(name, syntax.Name):
            self._fail('":" ends only forall and count(...)', value)
        self._advance()
        return syntax.Quantifier(value.line, value.column, name.name, kwargs, self._body(), negated)
