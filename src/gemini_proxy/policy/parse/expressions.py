"""Operators, calls and conditionals, by precedence climbing with Python's precedence."""

from gemini_proxy.policy.parse import syntax
from gemini_proxy.policy.parse.cursor import MAX_DEPTH, describe
from gemini_proxy.policy.parse.lexer import Token
from gemini_proxy.policy.parse.pattern_syntax import PatternParser

_COMPARATORS: dict[str, syntax.Comparator] = {
    "==": "==", "!=": "!=", "<": "<", "<=": "<=", ">": ">", ">=": ">=", "in": "in", "is": "is",
}  # fmt: skip
_OPERATORS: dict[str, syntax.Operator] = {"+": "+", "-": "-", "*": "*", "/": "/", "//": "//", "%": "%"}
_BINARY = {"+": 1, "-": 1, "*": 2, "/": 2, "//": 2, "%": 2}


class ExpressionParser(PatternParser):
    """Parses one expression at a time."""

    def expression(self) -> syntax.Expr:
        """One expression, the conditional form included."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            self._too_deep()
        then = self.disjunction()
        if self._at("if"):
            self._advance()
            condition = self.disjunction()
            self._expect("else", "in a conditional expression")
            otherwise = self.expression()
            node = syntax.Conditional(then.line, then.column, condition, then, otherwise)
            then = self._grown(node, condition, then, otherwise)
        self._depth -= 1
        return then

    def disjunction(self) -> syntax.Expr:
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
            self._fail("a pattern does not go into a chain of comparisons")
        pattern = self.pattern()
        if self._comparator() is not None:
            self._fail("a pattern does not go into a chain of comparisons")
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
        return _BINARY.get(self._token.text, 0) if self._token.kind == "op" else 0

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
            self._fail(f'expected a name after ".", found {describe(token)}')
        if token.text.startswith("__"):
            self._fail(f'names that begin with two underscores are not available: "{token.text}"')
        return self._advance()

    def _subscript(self, value: syntax.Expr) -> syntax.Expr:
        token = self._advance()
        start = None if self._at(":") else self.expression()
        if not self._take(":"):
            if start is None:
                self._fail("expected an index")
            self._expect("]", "after an index")
            return self._grown(syntax.Index(token.line, token.column, value, start), value, start)
        stop = None if self._at("]") else self.expression()
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
                kwargs.append((name, self.expression()))
            elif kwargs:
                self._fail("a positional argument after a keyword one")
            else:
                args.append(self._argument(bool(args)))
            if not self._take(","):
                break
        self._expect(")", "after arguments")
        node = syntax.Call(function.line, function.column, function, tuple(args), tuple(kwargs))
        return self._grown(node, function, *args, *(value for _, value in kwargs))

    def _argument(self, has_others: bool) -> syntax.Expr:
        element = self.expression()
        if self._at("for") and not has_others:
            return self._comprehension(element)
        return element
