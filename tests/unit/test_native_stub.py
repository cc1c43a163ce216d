"""The stub says exactly what the extension has: names, signatures, documentation, constants."""

import ast
import inspect
from pathlib import Path

from holdfast import _native as native
from holdfast import types

STUB = Path(types.__file__).with_name("_native.pyi")


def parameters(function: ast.FunctionDef) -> list[tuple[str, str, object]]:
    """Name, kind and default of each parameter."""
    given = function.args
    defaults = [inspect.Parameter.empty] * (len(given.args) - len(given.defaults)) + [
        ast.literal_eval(default) for default in given.defaults
    ]
    positional = [
        (arg.arg, "POSITIONAL_OR_KEYWORD", default) for arg, default in zip(given.args, defaults, strict=True)
    ]
    keyword = [
        (arg.arg, "KEYWORD_ONLY", inspect.Parameter.empty if default is None else ast.literal_eval(default))
        for arg, default in zip(given.kwonlyargs, given.kw_defaults, strict=True)
    ]
    return positional + keyword


def actual_parameters(function: object) -> list[tuple[str, str, object]]:
    assert callable(function)
    signature = inspect.signature(function)
    return [
        (
            name,
            "POSITIONAL_OR_KEYWORD" if parameter.kind.name == "POSITIONAL_ONLY" else parameter.kind.name,
            parameter.default,
        )
        for name, parameter in signature.parameters.items()
    ]


def public(thing: object) -> set[str]:
    return {name for name in vars(thing) if not name.startswith("_")}


def is_property(node: ast.FunctionDef) -> bool:
    return any(
        isinstance(decorator, ast.Name) and decorator.id == "property" for decorator in node.decorator_list
    )


def test_the_stub_and_the_extension_agree() -> None:
    tree = ast.parse(STUB.read_text())
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    constants = {
        node.target.id: ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None
    }
    assert public(native) == functions.keys() | classes.keys() | constants.keys()
    for name, value in constants.items():
        assert getattr(native, name) == value
    for name, function in functions.items():
        assert actual_parameters(getattr(native, name)) == parameters(function), name
        assert ast.get_docstring(function), name
        assert getattr(native, name).__doc__, name
    for name, node in classes.items():
        kind = getattr(native, name)
        members = {member.name: member for member in node.body if isinstance(member, ast.FunctionDef)}
        assert public(kind) == members.keys() - {"__init__"}, name
        assert actual_parameters(kind) == parameters(members["__init__"])[1:], name
        for member, function in members.items():
            if not is_property(function) and member != "__init__":
                assert actual_parameters(getattr(kind, member)) == parameters(function), (name, member)
