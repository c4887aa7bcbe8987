"""Signatures and class attributes read from source by `ast`.

Nothing is imported, so a check costs milliseconds where importing torch and Lightning costs seconds. Modules
are found through `sys.path` as Python finds them; re-exports (`from .x import Y`, `from .x import *`),
aliases (`Y = X`), inherited `__init__` and, where an `__init__` hands its `**kwargs` to `super().__init__`,
the parent's parameters are followed. What cannot be read (compiled modules, `**kwargs` that go elsewhere) is
*open*: nothing is said about it.

Ranges stand in the annotation, as a comparison of `x` in a string, so that they live in one place:

    mask_rate: Annotated[float, "0 < x <= 1"] = 0.15
    betas: list[Annotated[float, "0 <= x < 1"]]
    devices: Annotated[int, "x == -1 or x >= 1"] | None = None

Comparisons (also chained), `and`, `or`, numbers and `x` are understood, nothing else.
"""

from __future__ import annotations

import ast
import difflib
import functools
import importlib.util
import math
import operator
import re
from collections.abc import Iterable, Iterator
from importlib.machinery import PathFinder
from typing import NamedTuple

Function = (ast.FunctionDef, ast.AsyncFunctionDef)


class TargetError(Exception):
    """A dotted name that leads nowhere; the message says where it ends."""


class Found(NamedTuple):
    """A definition (class, function, or the expression of an alias) and the module that holds it."""

    module: str
    node: ast.AST


class Parameter(NamedTuple):
    """One parameter of a constructor or function; `module` is where its annotation's names are to be looked
    up."""

    name: str
    module: str
    annotation: ast.expr | None
    required: bool
    keyword_only: bool


class Signature(NamedTuple):
    """Parameters by name, in their order; `open`: further names may be accepted."""

    parameters: dict[str, Parameter]
    open: bool


# ------------------------------------------------------------------------------------------ modules and names


@functools.cache
def _spec(module: str):
    """The module's spec without importing its parents, or None."""
    parent, _, _ = module.rpartition(".")
    if parent:
        parent_spec = _spec(parent)
        if parent_spec is None or parent_spec.submodule_search_locations is None:
            return None
        return PathFinder.find_spec(module, parent_spec.submodule_search_locations)
    try:
        return PathFinder.find_spec(module) or importlib.util.find_spec(module)
    except (ValueError, ImportError):  # a module without a spec, such as __main__
        return None


@functools.cache
def _statements(module: str) -> tuple[ast.stmt, ...] | None:
    """The module's top-level statements, those below `if` and `try` included; None where there is no
    source."""
    spec = _spec(module)
    if spec is None or not str(spec.origin).endswith(".py"):
        return None
    with open(spec.origin, encoding="utf-8") as file:
        return tuple(_flat(ast.parse(file.read()).body))


def _flat(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    for statement in body:
        yield statement
        if isinstance(statement, (ast.If, ast.Try, ast.With)):
            for field in ("body", "orelse", "finalbody"):
                yield from _flat(getattr(statement, field, []))
            for handler in getattr(statement, "handlers", []):
                yield from _flat(handler.body)


def _is_package(module: str) -> bool:
    spec = _spec(module)
    return spec is not None and spec.submodule_search_locations is not None


def _source(module: str, statement: ast.ImportFrom) -> str:
    """The absolute name of the module that a `from ... import` of `module` reads."""
    if not statement.level:
        return statement.module or ""
    package = module.split(".") if _is_package(module) else module.split(".")[:-1]
    package = package[: len(package) - statement.level + 1]
    return ".".join(package + ([statement.module] if statement.module else []))


def find(module: str, name: str, depth: int = 0) -> Found | None:
    """The definition that `name` stands for in `module`, through re-exports and aliases; None if it cannot be
    read. A submodule is returned as a `Found` whose node is an `ast.Module`."""
    statements = _statements(module)
    if depth > 16:
        return None
    for statement in statements or ():
        if isinstance(statement, (ast.ClassDef, *Function)) and statement.name == name:
            return Found(module, statement)
        if isinstance(statement, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == name for target in statement.targets
        ):
            return resolve(module, statement.value, depth + 1) or Found(module, statement.value)  # an alias
        if isinstance(statement, ast.Import):
            for alias in statement.names:
                if (alias.asname or alias.name.partition(".")[0]) == name:
                    target = alias.name if alias.asname else name
                    return Found(target, ast.Module([], [])) if _spec(target) else None
        if isinstance(statement, ast.ImportFrom):
            source = _source(module, statement)
            for alias in statement.names:
                if (alias.asname or alias.name) == name and (found := find(source, alias.name, depth + 1)):
                    return found
                if (
                    alias.name == "*"
                    and not name.startswith("_")
                    and (found := find(source, name, depth + 1))
                ):
                    return found
    submodule = f"{module}.{name}"
    return Found(submodule, ast.Module([], [])) if _is_package(module) and _spec(submodule) else None


def resolve(module: str, expression: ast.expr, depth: int = 0) -> Found | None:
    """What a (dotted) name in `module` stands for; None for other expressions and for what cannot be read."""
    if isinstance(expression, ast.Name):
        return find(module, expression.id, depth)
    if isinstance(expression, ast.Attribute):
        owner = resolve(module, expression.value, depth)
        if owner is not None and isinstance(owner.node, ast.Module):
            return find(owner.module, expression.attr, depth + 1)
    return None


def locate(target: str) -> Found | None:
    """The definition of a `_target_` such as `pytorch_lightning.Trainer`; None where its source cannot be
    read.

    Raises:
        TargetError: there is no such module, or no such name in it.
    """
    parts = target.split(".")
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise TargetError("must be a dotted name: package.module.Class")
    if _spec(parts[0]) is None:
        raise TargetError(
            f"there is no module {parts[0]} (code outside of this repository: "
            "PYTHONPATH=/the/folder/that/holds/it python train.py ...)"
        )
    found, module = Found(parts[0], ast.Module([], [])), parts[0]
    for part in parts[1:]:
        if isinstance(found.node, ast.ClassDef):
            methods = {m.name: m for m in found.node.body if isinstance(m, Function)}
            if part not in methods:
                return None
            found = Found(found.module, methods[part])
            continue
        module = found.module
        following = find(module, part)
        if following is None:
            if _statements(module) is None and not _is_package(module):
                return None
            raise TargetError(_no_such_name(module, part))
        found = following
    if isinstance(found.node, ast.Module):
        raise TargetError("is a module, not a class")
    return found


def _no_such_name(module: str, name: str) -> str:
    names = [s.name for s in _statements(module) or () if isinstance(s, (ast.ClassDef, *Function))]
    message = f"there is no {name} in {module}"
    return message + did_you_mean(name, [n for n in names if not n.startswith("_")])


def did_you_mean(name: str, names: Iterable[str], otherwise: str = "") -> str:
    """`; did you mean <close match>?`, or `otherwise` where nothing is close."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else otherwise


# ---------------------------------------------------------------------------------- signatures and attributes


def signature(found: Found) -> Signature:
    """The signature of a function or of a class's constructor (without `self`)."""
    if isinstance(found.node, ast.ClassDef):
        init = _method(found.node, "__init__")
        if init is not None:
            return _of_function(found.module, init, bound=True, owner=found)
        if found.node.decorator_list:  # such as @dataclass: the decorator writes the constructor
            return Signature({}, True)
        return _of_parents(found)
    if isinstance(found.node, Function):
        return _of_function(found.module, found.node, bound=_is_method(found.node))
    return Signature({}, True)


def _method(cls: ast.ClassDef, name: str) -> ast.FunctionDef | None:
    return next((m for m in cls.body if isinstance(m, Function) and m.name == name), None)


def _is_method(function: ast.FunctionDef) -> bool:
    names = [argument.arg for argument in function.args.posonlyargs + function.args.args]
    return names[:1] in (["self"], ["cls"])


def parents(found: Found) -> list[Found | None]:
    """The base classes, in their order; None for one that cannot be read."""
    bases = [
        b.value if isinstance(b, ast.Subscript) else b for b in found.node.bases
    ]  # Generic[...], Dataset[...]
    return [
        resolve(found.module, base) for base in bases if _last_name(base) not in ("object", "ABC", "Protocol")
    ]


def _of_parents(found: Found) -> Signature:
    for parent in parents(found):
        if parent is None or not isinstance(parent.node, ast.ClassDef):
            return Signature({}, True)
        inherited = signature(parent)
        if inherited.parameters or inherited.open:
            return inherited
    return Signature({}, False)


def _of_function(
    module: str, function: ast.FunctionDef, bound: bool, owner: Found | None = None
) -> Signature:
    arguments = function.args
    positional = arguments.posonlyargs + arguments.args
    optional = len(arguments.defaults)
    parameters = {
        a.arg: Parameter(a.arg, module, a.annotation, i < len(positional) - optional, False)
        for i, a in enumerate(positional)
    }
    if bound and positional:
        del parameters[positional[0].arg]
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        parameters[argument.arg] = Parameter(argument.arg, module, argument.annotation, default is None, True)
    if arguments.kwarg is None:
        return Signature(parameters, False)
    inherited = _forwarded(function, arguments.kwarg.arg, owner) if owner else None
    if inherited is None:
        return Signature(parameters, True)
    return Signature({**inherited.parameters, **parameters}, inherited.open)


def _forwarded(function: ast.FunctionDef, kwargs: str, owner: Found) -> Signature | None:
    """What `**kwargs` may hold where the constructor hands it to `super().__init__`, else None."""
    for call in (node for node in ast.walk(function) if isinstance(node, ast.Call)):
        is_super = (
            isinstance(call.func, ast.Attribute)
            and call.func.attr == "__init__"
            and isinstance(call.func.value, ast.Call)
            and getattr(call.func.value.func, "id", None) == "super"
        )
        handed = any(
            k.arg is None and isinstance(k.value, ast.Name) and k.value.id == kwargs for k in call.keywords
        )
        if is_super and handed:
            inherited = _of_parents(owner)
            given = {keyword.arg for keyword in call.keywords} | set(
                list(inherited.parameters)[: len(call.args)]
            )
            rest = {name: p for name, p in inherited.parameters.items() if name not in given}
            return Signature(rest, inherited.open)
    return None


def class_attribute(found: Found, name: str) -> object:
    """The literal that a class or its nearest ancestor assigns to `name` in its body (`frozenset({...})`
    counts as one); None where there is none."""
    if not isinstance(found.node, ast.ClassDef):
        return None
    for statement in found.node.body:
        targets = (
            statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        )
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            value = statement.value
            if isinstance(value, ast.Call) and getattr(value.func, "id", None) in (
                "frozenset",
                "set",
                "tuple",
            ):
                value = value.args[0] if value.args else ast.Tuple([], ast.Load())
            try:
                return ast.literal_eval(value)
            except (ValueError, TypeError):
                return None
    for parent in parents(found):
        if parent is not None and (value := class_attribute(parent, name)) is not None:
            return value
    return None


# ------------------------------------------------------------------------------------------- values and types

_SIMPLE = {
    "int": (lambda v: isinstance(v, int) and not isinstance(v, bool), "a whole number"),
    "float": (lambda v: isinstance(v, (int, float)) and not isinstance(v, bool), "a number"),
    "bool": (lambda v: isinstance(v, bool), "true or false"),
    "str": (lambda v: isinstance(v, str), "text"),
    "Path": (lambda v: isinstance(v, str), "text"),
    "PathLike": (lambda v: isinstance(v, str), "text"),
    "None": (lambda v: v is None, "null"),
    "dict": (lambda v: isinstance(v, dict), "a mapping"),
    "list": (lambda v: isinstance(v, list), "a list"),
}
_ALIASES = {
    "Dict": "dict", "Mapping": "dict", "MutableMapping": "dict",
    "List": "list", "Sequence": "list", "Iterable": "list", "Collection": "list",
    "Set": "list", "set": "list", "frozenset": "list", "Tuple": "tuple",
}  # fmt: skip


class Misfit(NamedTuple):
    """Why a value does not fit.

    kinds: what it may be instead, in words ("a whole number").
    choices: what a `Literal` allows.
    constraint: the constraint on x, where only the range is wrong.
    of_item: the range is that of an item of a list.
    """

    kinds: tuple[str, ...] = ()
    choices: tuple = ()
    constraint: str = ""
    of_item: bool = False

    def words(self) -> str:
        """For example `one of auto, unpadded or null`."""
        choices = list(dict.fromkeys(show(choice) for choice in self.choices))
        phrases = [f"one of {', '.join(choices)}"] if choices else []
        phrases += sorted(dict.fromkeys(self.kinds), key="null".__eq__)  # null last
        if "a number" in phrases and "a whole number" in phrases:
            phrases.remove("a whole number")
        head, last = phrases[:-1], phrases[-1:]
        return " or ".join(([", ".join(head)] if head else []) + last)


def misfit(value: object, annotation: ast.expr | str | None, module: str = "builtins") -> Misfit | None:
    """None where a plain value (from yaml) fits the annotation or the annotation says nothing of it.

    A whole number fits `float`; true and false are no numbers; a list stands for any sequence, a mapping for
    any mapping and for an object that is built from it.
    """
    if isinstance(annotation, str):
        annotation = ast.parse(annotation, mode="eval").body
    if annotation is None:
        return None
    failures = []
    for alternative in _alternatives(annotation):
        failure = _mismatch(value, alternative, module)
        if failure is None:
            return None
        failures.append(failure)
    for failure in failures:
        if failure.constraint:
            return failure
    return Misfit(
        tuple(kind for failure in failures for kind in failure.kinds),
        tuple(choice for failure in failures for choice in failure.choices),
    )


def _last_name(expression: ast.expr) -> str:
    return getattr(expression, "attr", getattr(expression, "id", ""))


def _arguments(subscript: ast.Subscript) -> list[ast.expr]:
    return subscript.slice.elts if isinstance(subscript.slice, ast.Tuple) else [subscript.slice]


def _alternatives(annotation: ast.expr) -> list[ast.expr]:
    """The members of a union, `Optional[...]`, `Union[...]` and `a | b` flattened."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        return _alternatives(ast.parse(annotation.value, mode="eval").body)
    if isinstance(annotation, ast.BinOp) and isinstance(annotation.op, ast.BitOr):
        return _alternatives(annotation.left) + _alternatives(annotation.right)
    if isinstance(annotation, ast.Subscript) and _last_name(annotation.value) in ("Optional", "Union"):
        members = [member for a in _arguments(annotation) for member in _alternatives(a)]
        return members + ([ast.Constant(None)] if _last_name(annotation.value) == "Optional" else [])
    return [annotation]


def _mismatch(value: object, annotation: ast.expr, module: str) -> Misfit | None:
    if isinstance(annotation, ast.Constant) and annotation.value is None:
        return None if value is None else Misfit(("null",))
    if isinstance(annotation, ast.Subscript):
        return _mismatch_of_generic(value, annotation, module)
    name = _last_name(annotation)
    name = _ALIASES.get(name, name)
    if name == "tuple":
        name = "list"
    if name in _SIMPLE:
        fits, wanted = _SIMPLE[name]
        return None if fits(value) else Misfit((wanted,))
    if name in ("Any", "object", ""):
        return None
    found = resolve(module, annotation)
    if found is None or isinstance(found.node, (ast.Module, *Function)):
        return None
    if not isinstance(found.node, ast.ClassDef):
        return misfit(value, found.node, found.module) if isinstance(found.node, _TYPE_EXPRESSIONS) else None
    if any(
        _last_name(base).endswith(("Enum", "Protocol", "NamedTuple", "str", "int"))
        for base in found.node.bases
    ):
        return None
    return (
        None if isinstance(value, dict) else Misfit()
    )  # an object: a node with `_target_`, or given in code


_TYPE_EXPRESSIONS = (ast.Subscript, ast.BinOp, ast.Name, ast.Attribute)


def _mismatch_of_generic(value: object, annotation: ast.Subscript, module: str) -> Misfit | None:
    name, arguments = _last_name(annotation.value), _arguments(annotation)
    name = _ALIASES.get(name, name)
    if name == "Literal":
        choices = [argument.value for argument in arguments if isinstance(argument, ast.Constant)]
        if len(choices) < len(arguments) or any(type(c) is type(value) and c == value for c in choices):
            return None
        return Misfit(choices=tuple(choices))
    if name == "Annotated":
        failure = misfit(value, arguments[0], module)
        constraint = arguments[1].value if isinstance(arguments[1], ast.Constant) else None
        if failure or value is None or not isinstance(constraint, str) or holds(constraint, value):
            return failure
        return Misfit(constraint=constraint)
    if name == "list":
        return _mismatch_of_items(
            value, [arguments[0]] * len(value) if isinstance(value, list) else arguments, module
        )
    if name == "tuple":
        if len(arguments) == 2 and isinstance(arguments[1], ast.Constant) and arguments[1].value is ...:
            arguments = [arguments[0]] * (len(value) if isinstance(value, list) else 1)
        elif isinstance(value, list) and len(value) != len(arguments):
            return Misfit((f"a list of {len(arguments)} values",))
        return _mismatch_of_items(value, arguments, module)
    if name == "dict":
        return None if isinstance(value, dict) else Misfit(("a mapping",))
    return None


def _mismatch_of_items(value: object, types: list[ast.expr], module: str) -> Misfit | None:
    if not isinstance(value, list):
        return Misfit(("a list",))
    for item, annotation in zip(value, types, strict=True):
        failure = misfit(item, annotation, module)
        if failure is not None:
            if failure.constraint:
                return failure._replace(of_item=True)
            return Misfit((f"a list in which each item is {failure.words() or 'of another type'}",))
    return None


_COMPARISONS = {
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
    ast.Eq: operator.eq, ast.NotEq: operator.ne,
}  # fmt: skip


def holds(constraint: str, value: object) -> bool:
    """Whether a constraint such as `0 <= x < 1 or x == -1` holds for x = `value`.

    Raises:
        ValueError: the constraint is none (see the module's docstring for the syntax).
    """

    def of(node: ast.expr) -> object:
        match node:
            case ast.Constant(value=constant) if isinstance(constant, (int, float)):
                return constant
            case ast.Name(id="x"):
                return value
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -of(operand)
            case ast.BoolOp(op=ast.And(), values=values):
                return all(of(v) for v in values)
            case ast.BoolOp(values=values):
                return any(of(v) for v in values)
            case ast.Compare(left=left, ops=ops, comparators=comparators):
                terms = [of(left), *(of(comparator) for comparator in comparators)]
                return all(
                    _COMPARISONS[type(op)](a, b) for op, a, b in zip(ops, terms, terms[1:], strict=False)
                )
        raise ValueError(f"{constraint!r}: not a constraint on x")

    try:
        return bool(of(ast.parse(constraint, mode="eval").body))
    except (SyntaxError, KeyError):
        raise ValueError(f"{constraint!r}: not a constraint on x") from None


def describe(failure: Misfit, name: str, value: object) -> str:
    """The words after `path=value: `, for example `must be a whole number or null`."""
    if failure.constraint:
        who, name = ("each item ", "item") if failure.of_item else ("", name)
        if failure.constraint.startswith("x "):
            return f"{who}must be " + re.sub(r"\bx (== )?", "", failure.constraint)
        return f"{who}must satisfy " + re.sub(r"\bx\b", name, failure.constraint)
    wanted = failure.words()
    words = f"must be {wanted}" if wanted else "is not of a type that it takes"
    if isinstance(value, str) and failure.choices:
        return words + did_you_mean(value, [choice for choice in failure.choices if isinstance(choice, str)])
    if isinstance(value, str) and "number" in wanted and _number(value) is not None:
        return f"{words}; this is text, write it without quotes"
    if isinstance(value, float) and math.isfinite(value) and value == int(value) and "whole" in wanted:
        return f"{words}; write {int(value)}"
    return words


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def show(value: object) -> str:
    """A value as it is typed on the command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ",".join(show(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{show(item)}" for key, item in value.items()) + "}"
    return str(value)
