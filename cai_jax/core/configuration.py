"""Configs: loaded from a file, locked, and changed only where a key exists and the type fits."""

import ast
import difflib
import math
import runpy
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, FieldReference

from cai_jax.errors import InputError


def load_config(path: str) -> ConfigDict:
    """Runs a config file and returns what its `get_config()` does, locked.

    Raises:
        InputError: no such file, no `get_config`, or an error in it (named with its line).
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: expected a config file, found none; check --config")
    try:
        found = runpy.run_path(path)
        if "get_config" not in found:
            raise InputError(f"{path}: expected a function get_config(), found none")
        config = found["get_config"]()
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except Exception as error:
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == path]
        line = error.lineno if isinstance(error, SyntaxError) else (lines or [0])[-1]
        message = error.msg if isinstance(error, SyntaxError) else str(error)
        raise InputError(f"{path}:{line}: {type(error).__name__}: {message}") from error
    if not isinstance(config, ConfigDict):
        raise InputError(
            f"{path}: get_config() must return a ConfigDict, found {type(config).__name__}"
        )
    return config.lock()


def override(config: ConfigDict, overrides: Iterable[str]) -> None:
    """Applies `a.b=V` texts to a config, in order; V is read as the type that is there.

    A key that refers to a shared value (`config.get_ref`) is cut loose from it; the shared value's
    own key, at the top of the config, changes it for all.

    Raises:
        InputError: an unknown key, with the nearest right one; a value of another type.
    """
    for text in overrides:
        path, equals, value = text.partition("=")
        where = f"--config.{path}"
        if not equals:
            raise InputError(f"{where}: expected --config.KEY=VALUE, found no '='")
        parent, key = _find(config, path, where)
        assign(config, path, parse_value(value, parent[key], where), where)


def assign(config: ConfigDict, path: str, value: Any, where: str) -> None:
    """Sets `config.<path>`, which must exist and be of the value's type.

    Args:
        config: changed in place, locked or not.
        path: keys joined by ".".
        value: a value, a FieldReference, or a mapping, whose entries are set one by one.
        where: opens every error message.
    """
    parent, key = _find(config, path, where)
    if isinstance(parent[key], ConfigDict):
        if not isinstance(value, Mapping | ConfigDict):
            raise InputError(f"{where}: expected a group of keys, found {value!r}")
        for name in value:
            assign(parent[key], name, value[name], f"{where}.{name}")
        return
    found = value.get() if isinstance(value, FieldReference) else value
    old = parent[key]
    if old is not None and found is not None and not _fits(found, old):
        raise InputError(f"{where}: expected {_type_name(old)}, found {found!r}")
    if isinstance(old, float) and isinstance(value, int):
        value = float(value)
    if "." not in path and parent.is_locked:
        parent[key] = value  # through a reference, to all who share it
        return
    with parent.unlocked():
        del parent[key]
        parent[key] = value


def parse_value(text: str, old: Any, where: str) -> Any:
    """Reads `text` as a value of the type of `old`; a value that was None may become any."""
    if isinstance(old, ConfigDict):
        raise InputError(f"{where}: a group of keys; set one of {', '.join(old)}")
    try:
        if isinstance(old, bool):
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if isinstance(old, int | float):
            return type(old)(text)
        if isinstance(old, list | tuple):
            return _parse_sequence(text, old)
        return text if isinstance(old, str) else _literal(text)
    except (ValueError, KeyError, SyntaxError, TypeError):
        raise InputError(f"{where}: expected {_type_name(old)}, found {text!r}") from None


def plain(value: Any, where: str = "config") -> Any:
    """Dicts, lists and scalars for JSON, with every reference resolved (those in lists too).

    Raises:
        InputError: a value that JSON has no form for.
    """
    if isinstance(value, FieldReference):
        value = value.get()
    if isinstance(value, ConfigDict | Mapping):
        return {str(key): plain(value[key], f"{where}.{key}") for key in value}
    if isinstance(value, list | tuple):
        return [plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise InputError(
        f"{where}: expected a number, text, list or group, found {type(value).__name__}"
    )


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest known one, or all of them."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(known)}"


def _find(config: ConfigDict, path: str, where: str) -> tuple[ConfigDict, str]:
    """The group that holds the last key of `path`, and that key."""
    *groups, last = path.split(".")
    group: Any = config
    for depth, key in enumerate([*groups, last]):
        if not isinstance(group, ConfigDict):
            above = ".".join(path.split(".")[:depth])
            raise InputError(f"{where}: {above!r} is a value, it has no key {key!r}")
        if key not in group:
            raise InputError(f"{where}: unknown key {key!r}; {nearest(key, group)}")
        parent, group = group, group[key]
    return parent, last


def _parse_sequence(text: str, old: list | tuple) -> list | tuple:
    """Reads "[1, 2]", "(1, 2)" or "1,2"; the items have the type of the old ones, if any."""
    if text.startswith(("[", "(")):
        items = list(ast.literal_eval(text))
    else:
        items = [item.strip() for item in text.split(",") if item.strip()]
        kind = type(old[0]) if old else str
        items = [kind(item) if kind in (int, float) else item for item in items]
    return type(old)(items)


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _fits(value: Any, old: Any) -> bool:
    if isinstance(value, FieldReference):
        value = value.get()
    if isinstance(old, bool) or isinstance(value, bool):
        return isinstance(old, bool) and isinstance(value, bool)
    if isinstance(old, float):
        return isinstance(value, int | float) and math.isfinite(value)
    if isinstance(old, list | tuple):
        return isinstance(value, list | tuple) and all(
            _fits(item, first) for item in value for first in old[:1]
        )
    return isinstance(value, type(old))


def _type_name(value: Any) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    if isinstance(value, list | tuple):
        return f"a list, each item {_type_name(value[0])}" if value else "a list"
    return names.get(type(value), "a value")
