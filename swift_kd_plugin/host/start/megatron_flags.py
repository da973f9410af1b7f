"""The flags of `megatron rlhf` as ms-swift's source declares them: importing its argument classes takes seconds."""

import ast
import typing
from dataclasses import MISSING, fields
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from swift_kd_plugin.arguments import KDArguments
from swift_kd_plugin.errors import KDError

ARGUMENT_CLASS = "MegatronRLHFArguments"
FOLDERS = ("megatron/arguments", "arguments", "rlhf_trainers", "ray_utils")
# What annotations may name. A dtype is written as a text.
ANNOTATION_NAMES = {**vars(typing), "torch": SimpleNamespace(dtype=str)}


@cache
def megatron_flags() -> dict[str, Any]:
    """Name and type hint of every flag of `megatron rlhf`, the kd_* flags among them.

    Raises:
        KDError: ms-swift is not installed, or its source does not declare what its version should.
    """
    return {
        name: eval(ast.unparse(statement.annotation), ANNOTATION_NAMES) for name, statement in _declarations().items()
    } | typing.get_type_hints(KDArguments)


@cache
def megatron_defaults() -> dict[str, Any]:
    """Name and default of every flag; None where the source computes it."""
    plugin_defaults = {
        item.name: item.default if item.default_factory is MISSING else item.default_factory()
        for item in fields(KDArguments)
    }
    return {name: _default_of(statement.value) for name, statement in _declarations().items()} | plugin_defaults


@cache
def _declarations() -> dict[str, ast.AnnAssign]:
    """Name of every flag of ms-swift and the statement that declares it."""
    spec = find_spec("swift")
    if spec is None or spec.origin is None:
        raise KDError("ms-swift is not installed; run `pip install swift-kd-plugin`, which brings it.")
    classes = _read_classes(Path(spec.origin).parent)
    kinds = [kind.own for kind in reversed(_build(ARGUMENT_CLASS, classes, {}).__mro__) if hasattr(kind, "own")]
    return {name: statement for declarations in kinds for name, statement in declarations.items()}


def _default_of(value: ast.expr | None) -> Any:
    """Of `name: hint = value`, where the value is written out, or a list or dict is made for each."""
    if isinstance(value, ast.Call):
        keywords = {keyword.arg: keyword.value for keyword in value.keywords}
        made = keywords.get("default_factory")
        if isinstance(made, ast.Name):
            return {"list": [], "dict": {}}.get(made.id)
        value = made.body if isinstance(made, ast.Lambda) else keywords.get("default")
    try:
        return None if value is None else ast.literal_eval(value)
    except ValueError:
        return None


def _read_classes(package: Path) -> dict[str, ast.ClassDef]:
    files = [file for folder in FOLDERS for file in sorted((package / folder).rglob("*arg*.py"))]
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in files]
    return {node.name: node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)}


def _build(name: str, classes: dict[str, ast.ClassDef], made: dict[str, type]) -> type:
    """A class with the bases of the one in the source and its declarations as `own`: Python then orders the bases."""
    if name not in made:
        if name not in classes:
            raise KDError(f"ms-swift's source has no class {name}; `swift-kd train` does not know this version of it.")
        bases = [base.id for base in classes[name].bases if isinstance(base, ast.Name)]
        declarations = {
            statement.target.id: statement
            for statement in classes[name].body
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
        }
        made[name] = type(name, tuple(_build(base, classes, made) for base in bases), {"own": declarations})
    return made[name]
