"""Calls: built-in functions, detectors, predicates and methods. Arity and keywords are checked at load."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import orjson

from gemini_proxy.policy.compile.expression_code import ExpressionCompiler, Term
from gemini_proxy.policy.compile.imports import PYTHON_MODULES, UNAVAILABLE
from gemini_proxy.policy.compile.predicates import CompiledPredicate
from gemini_proxy.policy.compile.scope import Scope, nearest
from gemini_proxy.policy.detectors import Detector, Parsed, Parser, positional
from gemini_proxy.policy.detectors.outside import Answer, Found, OutsideDetector, Question, Whole, whole_texts
from gemini_proxy.policy.errors import EvaluationError
from gemini_proxy.policy.parse import syntax
from gemini_proxy.policy.run.builtins import FUNCTIONS, Function, find_all, matches
from gemini_proxy.policy.run.events import FIELDS
from gemini_proxy.policy.run.methods import ARITY, call_method
from gemini_proxy.policy.run.regex import Mode, compile_at_run_time
from gemini_proxy.policy.run.run import Code, Frame, Run
from gemini_proxy.policy.run.search import by_detector
from gemini_proxy.policy.run.texts import images_of, searched_texts
from gemini_proxy.policy.run.values import Joined, plain, word_for

_NOTHING = Parsed(())


class CallCompiler(ExpressionCompiler):
    """Adds calls to expressions."""

    def call(self, node: syntax.Call, scope: Scope) -> Term:
        if isinstance(node.function, syntax.Attribute):
            module = self._module(node.function.value, scope)
            if module is not None:
                return self._of_module(node, node.function, module, scope)
            return self._method(node, node.function, scope)
        if not isinstance(node.function, syntax.Name):
            self.context.fail(node, "only functions and methods can be called")
        name = node.function.name
        if name in scope.slots or name in self.context.constants:
            self.context.fail(node, f'"{name}" is not a function')
        predicate = self.context.predicates.get(name)
        if predicate is not None:
            return self._predicate(node, predicate, scope)
        return self._named(node, name, scope)

    def _named(self, node: syntax.Call, name: str, scope: Scope) -> Term:
        imported = self.context.imported.get(name)
        role, name = (imported.role, imported.name) if imported is not None else ("function", name)
        if role == "detector":
            return self._detector(node, name, scope)
        if role == "function" and name in ("find", "match"):
            return self._regex_call(node, name, scope)
        if role == "function" and name in FUNCTIONS:
            return self._function(node, name, FUNCTIONS[name], scope)
        if role == "quantifier":
            self.context.fail(node, f"{name} begins a block", f"{name}(...): and an indented block")
        if name in ("PolicyViolation", "Violation"):
            self.context.fail(node, "a violation is raised, not computed")
        if name in UNAVAILABLE:
            self.context.fail(node, f"{name} is not available: it needs {UNAVAILABLE[name]}")
        self.context.unknown(node, name, scope.slots)

    def _module(self, node: syntax.Expr, scope: Scope) -> str | None:
        """The Python module that a name stands for."""
        if not isinstance(node, syntax.Name) or node.name in scope.slots:
            return None
        imported = self.context.imported.get(node.name)
        return imported.name if imported is not None and imported.role == "module" else None

    def _of_module(self, node: syntax.Call, function: syntax.Attribute, module: str, scope: Scope) -> Term:
        functions = PYTHON_MODULES[module]
        name = functions.get(function.name)
        if name is None:
            known = " and ".join(f"{module}.{known}(...)" for known in functions)
            self.context.fail(
                function, f"{module}.{function.name} is not available", f"there is {known}", fault="unknown"
            )
        return self._function(node, name, FUNCTIONS[name], scope)

    def _arguments(self, node: syntax.Call, scope: Scope) -> tuple[list[Code], dict[str, Code]]:
        args = [self.code(arg, scope) for arg in node.args]
        return args, {name: self.code(value, scope) for name, value in node.kwargs}

    def _check(self, node: syntax.Call, name: str, least: int, most: int, keywords: frozenset[str]) -> None:
        if not least <= len(node.args) <= most:
            wanted = str(least) if least == most else f"{least} to {most}"
            self.context.fail(node, f"{name}(...) takes {wanted} arguments, not {len(node.args)}")
        for keyword, value in node.kwargs:
            if keyword not in keywords:
                self.context.fail(
                    value, f'{name}(...) has no option "{keyword}"', nearest(keyword, keywords), fault="unknown"
                )

    def _function(self, node: syntax.Call, name: str, function: Function, scope: Scope) -> Term:
        self._check(node, name, function.least, function.most, function.keywords)
        self.context.called.add(name)
        args, kwargs = self._arguments(node, scope)
        call = function.call
        if len(args) == 1 and not kwargs:
            only = args[0]
            return Term(lambda frame: call(frame[0], only(frame)))

        def apply(frame: Frame) -> Any:
            named = {key: code(frame) for key, code in kwargs.items()}
            return call(frame[0], *[arg(frame) for arg in args], **named)

        return Term(apply)

    def _regex_call(self, node: syntax.Call, name: str, scope: Scope) -> Term:
        self._check(node, name, 2, 2, frozenset())
        pattern, value = self.compile(node.args[0], scope), self.code(node.args[1], scope)
        mode: Mode = "find" if name == "find" else "match"
        use = find_all if name == "find" else matches
        if pattern.known is None:
            return Term(_computed(pattern.code, value, mode, self.context.max_program))
        if not isinstance(pattern.known.value, str):
            self.context.fail(node.args[0], f"a pattern is a text, not a {word_for(pattern.known.value)}")
        written = pattern.known.raw if pattern.known.raw is not None else pattern.known.value
        regex = self.context.regex(node.args[0], written, mode)
        return Term(lambda frame: use(frame[0], regex, value(frame)))

    def _detector(self, node: syntax.Call, name: str, scope: Scope) -> Term:
        detector = self.context.detectors.detectors[name]
        if isinstance(detector, OutsideDetector):
            return self._asked(node, detector, scope)
        models: frozenset[str] = getattr(detector, "models", frozenset())
        if models and "model" in dict(node.kwargs):
            return self._by_model(node, name, models, scope)
        by_position = positional(detector)
        most = 1 + len(by_position) if by_position or isinstance(detector, Detector) else 3
        self._check(node, name, 1, most, detector.options)
        self._warn_of_not_found(node, name, by_position)
        args, kwargs = self._arguments(node, scope)
        value, rest = args[0], args[1:]
        named = dict(zip(by_position, rest, strict=False))
        for option in named.keys() & kwargs.keys():
            self.context.fail(node, f'{name}(...) is given "{option}" twice')
        kwargs, rest = kwargs | named, rest[len(named) :]
        apply = _apply_detector(detector)

        def detect(frame: Frame) -> Any:
            run: Run = frame[0]
            texts = list(searched_texts(value(frame)))
            options = {key: code(frame) for key, code in kwargs.items()}
            given = [arg(frame) for arg in rest]
            parsed = apply(texts, given, options, run)
            if parsed.findings:
                run.items(len(parsed.findings))
                run.marks.extend((texts[found.text], found.start, found.end) for found in parsed.findings)
            if not any(type(text) is Joined for text in texts):
                return parsed.value
            key = (name, repr(given), repr(options))
            return by_detector(run, key, lambda reading: apply([reading], given, options, run), texts, parsed)

        return Term(detect)

    def _by_model(self, node: syntax.Call, name: str, models: frozenset[str], scope: Scope) -> Term:
        """A call of a detector that the detector named by its option ``model`` answers instead."""
        model = dict(node.kwargs)["model"]
        if not isinstance(model, syntax.Constant) or model.value not in models:
            known = " or ".join(f'"{each}"' for each in sorted(models))
            self.context.fail(
                model, f"the model of {name}(...) is written in the call, and is {known}", fault="unknown"
            )
        if model.value not in self.context.detectors.names:
            needed = UNAVAILABLE[model.value]
            self.context.fail(node, f'{name}(..., model="{model.value}") is not available: it needs {needed}')
        rest = tuple(option for option in node.kwargs if option[0] != "model")
        return self._detector(replace(node, kwargs=rest), model.value, scope)

    def _asked(self, node: syntax.Call, detector: OutsideDetector, scope: Scope) -> Term:
        """A call that needs an answer from outside: while there is none, its value is that of no text."""
        name = detector.name
        if not self.context.allow_input:
            self.context.fail(node, f"a constant cannot ask: {name}(...) belongs in a rule")
        self._check(node, name, 0, len(detector.positional), detector.options | set(detector.positional))
        args, kwargs = self._arguments(node, scope)
        for option in detector.positional[: len(args)]:
            if option in kwargs:
                self.context.fail(node, f'{name}(...) is given "{option}" twice')
        kwargs |= dict(zip(detector.positional, args, strict=False))
        for needed in detector.positional[: detector.positional.index(detector.subject) + 1]:
            if needed not in kwargs:
                self.context.fail(node, f'{name}(...) needs "{needed}"')
        subject = kwargs.pop(detector.subject)
        self.context.asks.add(name)

        def ask(frame: Frame) -> Any:
            run: Run = frame[0]
            value = subject(frame)
            texts = images_of(value) if detector.images else list(searched_texts(value))
            options = plain({key: code(frame) for key, code in kwargs.items()}, run)
            written = orjson.dumps(options, option=orjson.OPT_SORT_KEYS).decode()
            wholes = whole_texts(texts)
            given = [run.answer(Question(name, text, written)) for text in wholes]
            answers = [
                detector.nothing if answer is None else _marked(run, answer, standing)
                for answer, standing in zip(given, wholes.values(), strict=True)
            ]
            if not detector.placed and any(answers):
                run.marks.extend((text, -1, -1) for text in texts)
            return detector.joined(answers)

        return Term(ask)

    def _warn_of_not_found(self, node: syntax.Call, name: str, by_position: tuple[str, ...]) -> None:
        """Warn of entities that the call asks for and that nothing finds."""
        options = dict(node.kwargs) | dict(zip(by_position, node.args[1:], strict=False))
        wanted = options.get("entities")
        items = wanted.items if isinstance(wanted, syntax.Sequence) else [wanted]
        for item in items:
            if isinstance(item, syntax.Constant) and isinstance(item.value, str):
                self.context.warn_if_not_found(item, name, item.value)

    def _predicate(self, node: syntax.Call, predicate: CompiledPredicate, scope: Scope) -> Term:
        if node.kwargs or len(node.args) != len(predicate.parameters):
            self.context.fail(node, f"{predicate.name}(...) takes {len(predicate.parameters)} arguments")
        args = [self.compile(arg, scope) for arg in node.args]
        for arg, written, (name, kind) in zip(args, node.args, predicate.parameters, strict=True):
            if arg.kind in FIELDS and kind in FIELDS and arg.kind != kind:
                self.context.fail(written, f'"{name}" is a {kind}, not a {arg.kind}')
        predicate.compile(self.context, node)
        codes = [arg.code for arg in args]

        def apply(frame: Frame) -> Any:
            run = frame[0]
            run.left -= 1
            if run.left < 0:
                run.refill()
            return predicate.apply(run, [code(frame) for code in codes])

        return Term(apply)

    def _method(self, node: syntax.Call, function: syntax.Attribute, scope: Scope) -> Term:
        name = function.name
        if name not in ARITY:
            self.context.fail(function, f'unknown method "{name}"', nearest(name, ARITY), fault="unknown")
        least, most = ARITY[name]
        if name != "format":
            self._check(node, name, least, most, frozenset())
        inner = self.compile(function.value, scope)
        if inner.kind is not None and inner.kind != "function":
            self.context.fail(
                function, f"a {inner.kind} has no methods", "read a field first, as in .content", fault="unknown"
            )
        args, kwargs = self._arguments(node, scope)
        return Term(_method_call(inner.code, name, args, kwargs))


def _apply_detector(detector: Detector | Parser) -> Callable[[list[str], list[Any], dict[str, Any], Run], Parsed]:
    """One way to call both: a detector's value is the list of its labels."""
    if not isinstance(detector, Detector):
        return detector.parse
    find = detector.detect

    def detect(texts: list[str], args: list[Any], options: dict[str, Any], run: Run) -> Parsed:
        found = find(texts, options, run)
        if found == ():
            return _NOTHING
        findings = run.take(found)
        return Parsed([found.label for found in findings], findings)

    return detect


def _marked(run: Run, answer: Answer, wholes: Sequence[Whole]) -> Answer:
    """The answer without what stands in other pieces of its text; what it has the place of is marked there.

    Within a negation nothing is left out: what readers find in a text is missing from none of its pieces.
    """
    if not isinstance(answer, tuple):
        return answer
    kept: list[str | Found] = []
    for each in answer:
        if not isinstance(each, Found):
            kept.append(each)
            continue
        marks = [(whole.text, each.start, each.end) for whole in wholes if run.negated or whole.holds(each)]
        run.items(1 + len(marks))
        run.marks.extend(marks)
        if marks:
            kept.append(each)
    return tuple(kept)


def _method_call(value: Code, name: str, args: list[Code], kwargs: Mapping[str, Code]) -> Code:
    def apply(frame: Frame) -> Any:
        named = {key: code(frame) for key, code in kwargs.items()}
        return call_method(frame[0], value(frame), name, tuple([arg(frame) for arg in args]), named)

    return apply


def _computed(pattern: Code, value: Code, mode: Mode, max_program: int) -> Code:
    """A call of find or match whose pattern is known only when it runs; a list of patterns is not one."""

    def apply(frame: Frame) -> Any:
        run: Run = frame[0]
        written = pattern(frame)
        if not isinstance(written, str):
            raise EvaluationError(f"a pattern is a text, not a {word_for(written)}")
        regex = compile_at_run_time(written, mode, run.regexes, run, max_program)
        return (find_all if mode == "find" else matches)(run, regex, value(frame))

    return apply
