"""Do the keywords of every `_target_` node fit what it names?

Hydra accepts a wrong keyword under `_partial_: true` and finds out hours later. `crossvit.*` targets are read from their source, so that
nothing heavy is imported; `check_signatures` checks the rest once their libraries are to be loaded anyway.
"""

import ast
import inspect
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from omegaconf import DictConfig, OmegaConf

from crossvit.config.explain import suggest
from crossvit.errors import UserError

PACKAGE = "crossvit"
SPECIAL = ("_target_", "_partial_", "_args_", "_recursive_", "_convert_")
FLAGS = ("bool", "bool | None", "Optional[bool]", "typing.Optional[bool]")
"""Annotations of what is on or off."""


class Signature(NamedTuple):
    """Names that may be given by keyword; `open` where any name is accepted or where the source does not tell. flags: those annotated as
    bool, or as bool or None."""

    names: frozenset[str]
    open: bool
    flags: frozenset[str] = frozenset()


def target_nodes(node: object, prefix: str = "") -> Iterator[tuple[str, dict]]:
    """(dotted key, node) of every mapping with a `_target_` in a plain, resolved config."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield prefix, node
        for key, value in node.items():
            yield from target_nodes(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from target_nodes(value, f"{prefix}[{index}]")


def check_own_targets(plain: dict) -> None:
    """Checks the `crossvit.*` nodes of a plain, resolved config from their source. Raises UserError for the first that does not fit."""
    for key, node in target_nodes(plain):
        target = node["_target_"]
        if isinstance(target, str) and target.startswith(f"{PACKAGE}."):
            _check_keywords(key, node, _own_signature(key, target))


def check_signatures(cfg: DictConfig) -> None:
    """Imports the targets that the source alone does not answer for and checks their keywords, before anything is built.

    Raises UserError for the first that does not fit.
    """
    from hydra.utils import get_object

    for key, node in target_nodes(OmegaConf.to_container(cfg, resolve=True)):
        target = str(node["_target_"])
        if target.startswith(f"{PACKAGE}.") and not _own_signature(key, target).open:
            continue
        try:
            found = get_object(target)
        except Exception as error:
            raise UserError(f"{key}._target_={target}: cannot be imported ({type(error).__name__})") from error
        if not callable(found):
            raise UserError(f"{key}._target_={target}: is not callable")
        _check_keywords(key, node, _live_signature(found))


def _check_keywords(key: str, node: dict, signature: Signature) -> None:
    for name in signature.flags & node.keys():
        if node[name] is not None and not isinstance(
            node[name], bool
        ):  # Hydra reads `no` and `off` as words, and a word is true
            raise UserError(f"{key}.{name}={node[name]}: must be true or false")
    if signature.open:
        return
    for name in node:
        if name not in SPECIAL and name not in signature.names:
            where = f"{key}.{name}" if key else name
            raise UserError(f"{where}: {node['_target_']} takes no {name!r}.{suggest(str(name), signature.names)}")


def _live_signature(found: object) -> Signature:
    """Of a class: its constructor's names and, where that takes `**keywords`, those of the constructors it inherits from."""
    chain = [c.__init__ for c in found.__mro__ if "__init__" in vars(c)] if isinstance(found, type) else [found]
    names: set[str] = set()
    flags: set[str] = set()
    for function in chain:
        try:
            parameters = inspect.signature(function).parameters.values()
        except (TypeError, ValueError):  # built in C: nothing to compare with
            return Signature(frozenset(), True, frozenset(flags))
        kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        names.update(p.name for p in parameters if p.kind in kinds)
        flags.update(p.name for p in parameters if inspect.formatannotation(p.annotation).strip("'") in FLAGS)
        if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
            return Signature(frozenset(names - {"self"}), False, frozenset(flags))
    return Signature(frozenset(), True, frozenset(flags))


def _own_signature(key: str, target: str) -> Signature:
    parts = target.split(".")
    length = next((n for n in range(len(parts) - 1, 0, -1) if _source(".".join(parts[:n])) is not None), 0)
    module, names = ".".join(parts[:length]), parts[length:]
    if len(names) > 1 and names[0] not in _definitions(module):
        raise UserError(f"{key}._target_={target}: there is no module {module}.{names[0]}")
    signature = _find(module, names[0]) if len(names) == 1 else _find_method(module, *names[:2])
    if signature is None:
        public = [n for n in _definitions(module) if not n.startswith("_")]
        raise UserError(f"{key}._target_={target}: {module} has no {'.'.join(names)!r}.{suggest(names[0], public)}")
    return signature


@lru_cache
def _source(module: str) -> ast.Module | None:
    path = Path(__file__).resolve().parents[2].joinpath(*module.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return ast.parse(candidate.read_text(encoding="utf-8"))
    return None


@lru_cache
def _definitions(module: str) -> dict[str, ast.AST]:
    """Top-level classes, functions and imported names of a module of this package."""
    found: dict[str, ast.AST] = {}
    tree = _source(module)
    for node in tree.body if tree else ():
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found[node.name] = node
        elif isinstance(node, ast.ImportFrom):
            found.update({alias.asname or alias.name: node for alias in node.names})
    return found


def _find(module: str, name: str) -> Signature | None:
    """The signature of `name` in `module`, None where it is not defined there."""
    node = _definitions(module).get(name)
    if isinstance(node, ast.FunctionDef):
        return _of_arguments(node.args)
    if isinstance(node, ast.ClassDef):
        return _of_class(module, node)
    if isinstance(node, ast.ImportFrom):
        if node.level or not (node.module or "").startswith(PACKAGE):
            return Signature(frozenset(), open=True)
        original = next(alias.name for alias in node.names if (alias.asname or alias.name) == name)
        return _find(node.module, original)
    return None


def _find_method(module: str, class_name: str, name: str) -> Signature | None:
    """The signature of a class or static method: another way to make the class, to which its `**keywords` go on."""
    node = _definitions(module).get(class_name)
    if isinstance(node, ast.ImportFrom):
        return Signature(frozenset(), open=True)
    for item in node.body if isinstance(node, ast.ClassDef) else ():
        if isinstance(item, ast.FunctionDef) and item.name == name:
            bound = not any(ast.unparse(decorator) == "staticmethod" for decorator in item.decorator_list)
            own = _of_arguments(item.args, method=bound)
            return _joined(own, _of_class(module, node)) if own.open else own
    return None


def _of_arguments(arguments: ast.arguments, method: bool = False) -> Signature:
    named = {a.arg: a.annotation for a in (*arguments.args[1 if method else 0 :], *arguments.kwonlyargs)}
    return Signature(frozenset(named), arguments.kwarg is not None, _flags(named))


def _flags(annotations: dict[str, ast.expr | None]) -> frozenset[str]:
    return frozenset(name for name, node in annotations.items() if node is not None and ast.unparse(node) in FLAGS)


def _joined(own: Signature, base: Signature) -> Signature:
    """Of a callable whose `**keywords` go on to another."""
    return Signature(own.names | base.names, base.open, own.flags | base.flags)


def _of_class(module: str, node: ast.ClassDef) -> Signature:
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            own = _of_arguments(item.args, method=True)
            if not own.open:
                return own
            return _joined(own, _of_bases(module, node))
    if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list) or any(
        ast.unparse(base).endswith("NamedTuple") for base in node.bases
    ):
        fields = [i for i in node.body if isinstance(i, ast.AnnAssign) and isinstance(i.target, ast.Name)]
        named = {field.target.id: field.annotation for field in fields}
        return Signature(frozenset(named), False, _flags(named))
    return _of_bases(module, node)


def _of_bases(module: str, node: ast.ClassDef) -> Signature:
    """The first base class that is defined in this package; any other base may take anything."""
    for base in node.bases:
        if isinstance(base, ast.Name) and (found := _find(module, base.id)) is not None:
            return found
    return Signature(frozenset(), open=True)
