"""Tables of TOML as dataclasses: keys and types are checked, and messages name the place."""

import difflib
import typing
from collections.abc import Iterable
from dataclasses import MISSING, fields, is_dataclass
from types import UnionType
from typing import Any, Literal, get_args, get_origin

from model_diffs.core.errors import BadInput

_WORDS = {str: "a text", int: "an integer", float: "a number", bool: "true or false"}


def typed(kind: Any, value: Any, where: str) -> Any:
    """`value` as the type `kind`: lists become tuples, tables dataclasses.

    Raises BadInput that names `where`.
    """
    if isinstance(kind, UnionType):
        (kind,) = (part for part in get_args(kind) if part is not type(None))
    if is_dataclass(kind):
        return fill(kind, value, f"{where}.")
    if get_origin(kind) is tuple:
        values = value if isinstance(value, list | tuple) else [value]
        return tuple(typed(get_args(kind)[0], one, where) for one in values)
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise BadInput(f"{where} = {value!r}: one of {', '.join(map(str, get_args(kind)))}")
        return value
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise BadInput(f"{where} = {value!r}: not {_WORDS[kind]}")
    # A value becomes one word of a command, and is said in one line.
    if kind is str and (not value.strip() or any(c in value for c in "\t\n\r\0")):
        raise BadInput(f"{where} = {value!r}: empty, or with a tab or line break")
    return value


def unknown(key: str, known: Iterable[str], where: str) -> BadInput:
    """The refusal of a key, with the nearest known one."""
    near = difflib.get_close_matches(key, list(known), n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(known)}"
    return BadInput(f"{where}: unknown key {key}; {hint}")


def table(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadInput(f"{where} = {value!r}: not a table")
    return {key.replace("-", "_"): one for key, one in value.items()}


def fill(kind: Any, content: Any, prefix: str, **given: Any) -> Any:
    """A dataclass from a TOML table. Keys that it lacks become its `arguments`, if it has these.

    `prefix`: what stands before a key in messages.
    """
    hints = typing.get_type_hints(kind)
    known = [name for name in hints if name not in (*given, "arguments")]
    others: dict[str, Any] = {}
    for key, value in table(content, prefix.rstrip(": .")).items():
        if key in known:
            given[key] = typed(hints[key], value, f"{prefix}{key}")
        elif "arguments" in hints:
            others[key] = value
        else:
            raise unknown(key, known, prefix.rstrip(": ."))
    needed = (one.name for one in fields(kind) if one.default is one.default_factory is MISSING)
    if absent := [name for name in needed if name not in (*given, "arguments")]:
        raise BadInput(f"{prefix}{absent[0]} is missing")
    return kind(**given, **({"arguments": others} if "arguments" in hints else {}))
