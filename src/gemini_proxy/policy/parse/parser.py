"""Parse a policy: ``parse`` turns its text into a ``Module``.

One recursive descent parser, from top to bottom: statements, the lines of their bodies, expressions by precedence
climbing with Python's precedence, the patterns that may follow ``is``, and expressions without operators. The methods
at the end move over the tokens.
"""

from typing import NoReturn, TypeVar

from gemini_proxy.policy.errors import Fault, PolicyError
from gemini_proxy.policy.parse import syntax
from gemini_proxy.policy.parse.lexer import (
    LexError,
    StringLiteral,
    Token,
    cook,
    read_string,
    split_template,
    tokenize,
    unify_lines,
)

# A tree this high is evaluated within a few hundred Python frames.
MAX_DEPTH = 60

KEYWORDS = frozenset("and or not in is if else for raise from import as def None True False".split())
CONSTANTS: dict[str, object] = {"None": None, "True": True, "False": False}
_COMPARATORS: dict[str, syntax.Comparator] = {
    "==": "==", "!=": "!=", "<": "<", "<=": "<=", ">": ">", ">=": ">=", "in": "in", "is": "is",
}  # fmt: skip
_OPERATORS: dict[str, syntax.Operator] = {"+": "+", "-": "-", "*": "*", "/": "/", "//": "//", "%": "%"}
_PRIORITIES = {"+": 1, "-": 1, "*": 2, "/": 2, "//": 2, "%": 2}
_MEANT = {
    "contains": 'write "..." in text',
    "includes": 'write "..." in text',
    "matches": "write any(find(pattern, text))",
    "like": "write any(find(pattern, text))",
}
_NodeT = TypeVar("_NodeT", bound=syntax.Node)


def parse(text: str, source: str) -> syntax.Module:
    """Return the syntax tree of a policy. Raises PolicyError, and nothing else, for any text."""
    text = unify_lines(text)
    try:
        tokens = tokenize(text)
    except LexError as error:
        fault: Fault = "excess" if error.excess else "form"
        where = error.line, error.column
        raise PolicyError(source, *where, error.reason, error.suggestion, fault=fault, text=text) from error
    return _PolicyParser(text, source, tokens).module()


class _PolicyParser:
    """A parser at one token of a text. Every error is a PolicyError at the token or node that does not fit."""

    def __init__(self, text: str, source: str, tokens: tuple[Token, ...]) -> None:
        self._text = text
        self._source = source
        self._tokens = tokens
        self._index = 0
        self._depth = 0
        self._heights: dict[int, int] = {}

    # Statements

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
        value = self._expression()
        self._end_line()
        if indented:
            if self._token.kind != "dedent":
                self._fail("a constant can have only one value")
            self._advance()
        return value

    def _end_line(self) -> None:
        if self._token.kind not in ("newline", "end"):
            self._fail(f"expected the end of the line, found {_describe(self._token)}", suggestion=self._meant())
        self._advance()

    def _import_module(self) -> syntax.Import:
        """Parse ``import module [as name]``."""
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
            self._fail("names must be imported one by one")
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
                self._fail(f'"{parameter}" is declared twice')
            parameters.append((parameter, kind))
            if not self._take(","):
                break
        self._expect(")", "after the parameters")
        if not self._take(":="):
            self._expect(":", "after the parameters")
        return syntax.Predicate(token.line, token.column, token.text, tuple(parameters), self._body())

    def _raise(self) -> syntax.Raise:
        token = self._advance()
        error = self._or()
        self._expect("if", "after what the rule raises")
        self._expect(":", 'after "if"')
        body = self._body()
        last = self._index - 1
        while self._tokens[last].kind in ("newline", "dedent", "indent"):
            last -= 1
        return syntax.Raise(token.line, token.column, error, body, self._text[token.start : self._tokens[last].end])

    def _body(self) -> tuple[syntax.Line, ...]:
        """Read the lines of an indented block, or the one line that follows the colon."""
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
            return syntax.Assignment(name.line, name.column, name.text, self._expression())
        value = self._expression()
        if self._at(":"):
            return self._quantifier(value)
        if self._at("->") or self._at("~>"):
            if not isinstance(value, syntax.Name):
                self._fail("a flow connects bound events and declarations")
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
        source = self._expression() if self._take("in") else None
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
                self._fail("bounds must be given by name", head, "count(min=2, max=5):")
            kwargs, name = head.kwargs, head.function
        if not isinstance(name, syntax.Name):
            self._fail('":" ends only forall and count(...)', value)
        self._advance()
        return syntax.Quantifier(value.line, value.column, name.name, kwargs, self._body(), negated)

    # Expressions

    def _expression(self) -> syntax.Expr:
        """Parse one expression, the conditional form included."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            self._too_deep()
        then = self._or()
        if self._at("if"):
            self._advance()
            condition = self._or()
            self._expect("else", "in a conditional expression")
            otherwise = self._expression()
            node = syntax.Conditional(then.line, then.column, condition, then, otherwise)
            then = self._grown(node, condition, then, otherwise)
        self._depth -= 1
        return then

    def _or(self) -> syntax.Expr:
        operands = [self._and()]
        while self._take("or"):
            operands.append(self._and())
        first = operands[0]
        if len(operands) == 1:
            return first
        return self._grown(syntax.Logical(first.line, first.column, "or", tuple(operands)), *operands)

    def _and(self) -> syntax.Expr:
        operands = [self._not()]
        while self._take("and"):
            operands.append(self._not())
        first = operands[0]
        if len(operands) == 1:
            return first
        return self._grown(syntax.Logical(first.line, first.column, "and", tuple(operands)), *operands)

    def _not(self) -> syntax.Expr:
        signs = []
        while token := self._take("not"):
            signs.append(token)
        operand = self._comparison()
        for token in reversed(signs):
            operand = self._grown(syntax.Unary(token.line, token.column, "not", operand), operand)
        return operand

    def _comparison(self) -> syntax.Expr:
        first = self._arithmetic(1)
        rest: list[tuple[syntax.Comparator, syntax.Expr]] = []
        while (operator := self._comparator()) is not None:
            if operator in ("is", "is not") and self._starts_pattern():
                return self._is(first, rest, operator == "is not")
            rest.append((operator, self._arithmetic(1)))
        if not rest:
            return first
        node = syntax.Comparison(first.line, first.column, first, tuple(rest))
        return self._grown(node, first, *(operand for _, operand in rest))

    def _comparator(self) -> syntax.Comparator | None:
        if self._at("not") and self._ahead().text == "in":
            self._index += 2
            return "not in"
        if self._at("contains_only"):
            self._fail(
                "contains_only is not part of the language", suggestion="all([item in allowed for item in found])"
            )
        if self._token.text not in _COMPARATORS or self._token.kind not in ("op", "name"):
            return None
        operator = self._advance().text
        if operator == "is" and self._take("not"):
            return "is not"
        return _COMPARATORS[operator]

    def _starts_pattern(self) -> bool:
        return self._token.kind == "tool" or (self._at("<") and self._ahead(2).text == ">")

    def _is(
        self, value: syntax.Expr, before: list[tuple[syntax.Comparator, syntax.Expr]], negated: bool
    ) -> syntax.Expr:
        if before:
            self._fail("a pattern cannot be part of a chain of comparisons")
        pattern = self._pattern()
        if self._comparator() is not None:
            self._fail("a pattern cannot be part of a chain of comparisons")
        return self._grown(syntax.Is(value.line, value.column, value, pattern, negated), value, pattern)

    def _arithmetic(self, level: int) -> syntax.Expr:
        left = self._unary()
        while (priority := self._priority()) >= level:
            operator = _OPERATORS[self._advance().text]
            right = self._arithmetic(priority + 1)
            node = syntax.Binary(left.line, left.column, operator, left, right)
            left = self._grown(node, left, right)
        return left

    def _priority(self) -> int:
        return _PRIORITIES.get(self._token.text, 0) if self._token.kind == "op" else 0

    def _unary(self) -> syntax.Expr:
        signs = []
        while self._token.kind == "op" and self._token.text in ("-", "+"):
            signs.append(self._advance())
        operand = self._power()
        for token in reversed(signs):
            sign: syntax.Unary = syntax.Unary(token.line, token.column, "-" if token.text == "-" else "+", operand)
            operand = self._grown(sign, operand)
        return operand

    def _power(self) -> syntax.Expr:
        left = self._postfix()
        if not self._take("**"):
            return left
        self._depth += 1
        if self._depth > MAX_DEPTH:
            self._too_deep()
        right = self._unary()
        self._depth -= 1
        return self._grown(syntax.Binary(left.line, left.column, "**", left, right), left, right)

    def _postfix(self) -> syntax.Expr:
        value = self._atom()
        while True:
            if self._take("."):
                name = self._attribute_name()
                value = self._grown(syntax.Attribute(name.line, name.column, value, name.text), value)
            elif self._at("["):
                value = self._subscript(value)
            elif self._at("("):
                value = self._call(value)
            else:
                return value

    def _attribute_name(self) -> Token:
        token = self._token
        if token.kind != "name":
            self._fail(f'expected a name after ".", found {_describe(token)}')
        if token.text.startswith("__"):
            self._fail(f'names that begin with two underscores are not available: "{token.text}"')
        return self._advance()

    def _subscript(self, value: syntax.Expr) -> syntax.Expr:
        token = self._advance()
        start = None if self._at(":") else self._expression()
        if not self._take(":"):
            if start is None:
                self._fail("expected an index")
            self._expect("]", "after an index")
            return self._grown(syntax.Index(token.line, token.column, value, start), value, start)
        stop = None if self._at("]") else self._expression()
        self._expect("]", "after a slice")
        children = [child for child in (value, start, stop) if child is not None]
        return self._grown(syntax.Slice(token.line, token.column, value, start, stop), *children)

    def _call(self, function: syntax.Expr) -> syntax.Expr:
        self._advance()
        args: list[syntax.Expr] = []
        kwargs: list[tuple[str, syntax.Expr]] = []
        while not self._at(")"):
            if self._token.kind == "name" and self._ahead().text == "=" and self._ahead().kind == "op":
                name = self._identifier("a keyword").text
                self._advance()
                if name in dict(kwargs):
                    self._fail(f'"{name}" is given twice')
                kwargs.append((name, self._expression()))
            elif kwargs:
                self._fail("a positional argument cannot follow a keyword argument")
            else:
                args.append(self._argument(bool(args)))
            if not self._take(","):
                break
        self._expect(")", "after arguments")
        node = syntax.Call(function.line, function.column, function, tuple(args), tuple(kwargs))
        return self._grown(node, function, *args, *(value for _, value in kwargs))

    def _argument(self, has_others: bool) -> syntax.Expr:
        element = self._expression()
        if self._at("for") and not has_others:
            return self._comprehension(element)
        return element

    # Patterns

    def _pattern(self) -> syntax.Pattern:
        """Parse what may follow ``is`` as a pattern, and what may stand inside one."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            self._too_deep()
        node = self._pattern_form()
        self._depth -= 1
        return node

    def _pattern_form(self) -> syntax.Pattern:
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
            arguments = None if self._at(")") else self._pattern()
            while self._take(","):
                # The stock language allows further wildcards, which match anything.
                if not self._take("*"):
                    self._fail("expected one pattern for all arguments", suggestion="tool:name({key: pattern, ...})")
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
            items.append(self._pattern())
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
            entries.append((name, self._pattern()))
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

    # Names, literals and brackets

    def _atom(self) -> syntax.Expr:
        token = self._token
        if token.kind == "number":
            self._advance()
            return syntax.Constant(token.line, token.column, self._number(token))
        if token.kind == "string":
            return self._string()
        if token.kind == "name" and token.text in CONSTANTS:
            self._advance()
            return syntax.Constant(token.line, token.column, CONSTANTS[token.text])
        if token.kind == "name":
            name = self._identifier("an expression")
            return syntax.Name(name.line, name.column, name.text)
        if token.kind == "op" and token.text in "([{":
            return self._bracketed()
        self._fail(f"expected an expression, found {_describe(token)}")

    def _number(self, token: Token) -> int | float:
        if len(token.text) > 40:
            self._fail("the number has more than 40 characters", token, fault="excess")
        plain = token.text.replace("_", "")
        return int(plain) if plain.isdigit() else float(plain)

    def _bracketed(self) -> syntax.Expr:
        token = self._token
        if token.text == "(" and self._ahead().kind == "name" and self._ahead(2).text == ":":
            self._fail("a declaration must be on a line of its own", suggestion="put the condition on the next line")
        if token.text == "{":
            return self._braces()
        self._advance()
        closing = ")" if token.text == "(" else "]"
        if self._take(closing):
            return syntax.Sequence(token.line, token.column, (), closing == "]")
        first = self._expression()
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
            items.append(self._expression())
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
            entries.append((key, self._expression()))
            if not self._take(","):
                break
        self._expect("}", "to close the dictionary")
        children = [node for entry in entries for node in entry]
        return self._grown(syntax.Mapping(token.line, token.column, tuple(entries)), *children)

    def _key(self) -> syntax.Expr:
        """Parse a key. As in the stock language, a bare word before a colon is the key itself, not a variable."""
        if self._token.kind == "name" and self._token.text not in KEYWORDS and self._ahead().text == ":":
            token = self._advance()
            return syntax.Constant(token.line, token.column, token.text)
        return self._expression()

    def _comprehension(self, element: syntax.Expr) -> syntax.Expr:
        self._expect("for", "in a comprehension")
        names = [self._identifier("a variable").text]
        while self._take(","):
            names.append(self._identifier("a variable").text)
        self._expect("in", "in a comprehension")
        source = self._or()
        conditions = []
        while self._take("if"):
            conditions.append(self._or())
        if self._at("for"):
            self._fail("a comprehension can have only one for")
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
        """Parse an expression inside an f-string, with the depth reached so far."""
        try:
            tokens = tokenize(f"({text})")
        except LexError as error:
            self._fail(f"in an f-string: {error.reason}", token)
        inner = _PolicyParser(self._text, self._source, tuple(_moved(part, token, offset) for part in tokens))
        inner._depth = self._depth
        inner._heights = self._heights
        inner._advance()
        value = inner._expression()
        inner._expect(")", "after the expression in an f-string (conversions and formats are not available)")
        if inner._token.kind not in ("newline", "end"):
            inner._fail(f"unexpected {_describe(inner._token)} in an f-string")
        return value

    # Tokens

    @property
    def _token(self) -> Token:
        return self._tokens[self._index]

    def _ahead(self, count: int = 1) -> Token:
        return self._tokens[min(self._index + count, len(self._tokens) - 1)]

    def _advance(self) -> Token:
        token = self._token
        if token.kind != "end":
            self._index += 1
        return token

    def _at(self, text: str) -> bool:
        return self._token.text == text and self._token.kind in ("op", "name")

    def _take(self, text: str) -> Token | None:
        return self._advance() if self._at(text) else None

    def _expect(self, text: str, purpose: str) -> Token:
        found = self._take(text)
        if found is None:
            self._fail(f'expected "{text}" {purpose}, found {_describe(self._token)}', suggestion=self._meant(text))
        return found

    def _meant(self, expected: str = "") -> str | None:
        """Suggest the meaning of a token from another language."""
        if self._token.text == "=" and self._token.kind == "op":
            return "a definition is written :=" if expected == ":=" else "equality is written =="
        return _MEANT.get(self._token.text) if self._token.kind == "name" else None

    def _fail(
        self,
        reason: str,
        at: Token | syntax.Node | None = None,
        suggestion: str | None = None,
        *,
        fault: Fault = "form",
    ) -> NoReturn:
        where = at or self._token
        raise PolicyError(self._source, where.line, where.column, reason, suggestion, fault=fault, text=self._text)

    def _too_deep(self, at: syntax.Node | None = None) -> NoReturn:
        self._fail(f"the expression is nested more than {MAX_DEPTH} deep", at, fault="excess")

    def _identifier(self, purpose: str) -> Token:
        token = self._token
        if token.kind != "name" or token.text in KEYWORDS:
            self._fail(f"expected {purpose}, found {_describe(token)}")
        if token.text.startswith("__"):
            self._fail(f'names that begin with two underscores are not available: "{token.text}"')
        return self._advance()

    def _grown(self, node: _NodeT, *children: syntax.Node) -> _NodeT:
        height = 1 + max((self._heights.get(id(child), 1) for child in children), default=0)
        if height > MAX_DEPTH:
            self._too_deep(node)
        self._heights[id(node)] = height
        return node


def _joined(parts: list[syntax.Expr]) -> syntax.Constant:
    """Adjacent literals are one literal, as in Python."""
    constants = [part for part in parts if isinstance(part, syntax.Constant)]
    first = constants[0]
    value = "".join(str(part.value) for part in constants)
    return syntax.Constant(first.line, first.column, value, "".join(part.raw or "" for part in constants))


def _moved(token: Token, outer: Token, offset: int) -> Token:
    column = outer.column + offset + token.column - 2 if token.line == 1 else token.column
    return Token(token.kind, token.text, outer.line + token.line - 1, column, token.start, token.end)


def _describe(token: Token) -> str:
    """Describe a token as error messages do."""
    words = {"newline": "the end of the line", "indent": "an indented line", "end": "the end of the policy"}
    words["dedent"] = "the end of the indented block"
    shown = token.text if len(token.text) <= 30 else token.text[:27] + "..."
    return words.get(token.kind, f'"{shown}"' if token.kind != "string" else shown)
