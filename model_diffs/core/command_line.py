"""An options dataclass read from the words of a command line.

Types of its fields become argparse's conversions, its bases the groups of --help. Standard library
only.
"""

import argparse
import inspect
import math
import sys
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, fields
from typing import Any, Literal, NoReturn, TypeVar

from model_diffs.core.options import flag

T = TypeVar("T")

# Other spellings of a flag, accepted wherever the flag is; `_` is read as `-` in every flag.
ALIASES = {
    "forget_data": "forget_text",
    "retain_data": "retain_text",
    "model_name": "model",
    "models": "model",
    "base": "model_a",
    "num_samples": "max_samples",
}


def _finite(text: str) -> float:
    """A float; ValueError for NaN and infinities, which no option means."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not finite")
    return value


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message} (--help lists the options)", file=sys.stderr)
        sys.exit(2)


class _Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False, (), ""):  # says nothing that the text does not
            return action.help
        if isinstance(action.default, tuple):
            return f"{action.help} (default: {' '.join(map(str, action.default))})"
        return super()._get_help_string(action)


def _converter(one: Field[Any], kind: Any) -> Callable[[str], Any]:
    kind = _finite if kind is float else kind
    convert, check = one.metadata["convert"] or kind, one.metadata["check"]

    def read(text: str) -> Any:
        known = {int: "an integer", _finite: "a number"}.get(convert)
        reason = known and f"{text!r} is not {known}"
        try:
            value, reason = convert(text), None
            if check:
                check(value)
        except ValueError as error:
            raise argparse.ArgumentTypeError(reason or str(error)) from None
        return value

    return read


def _add(group: Any, one: Field[Any], kind: Any) -> None:
    optional = isinstance(kind, types.UnionType)
    if optional:
        (kind,) = (part for part in typing.get_args(kind) if part is not types.NoneType)
    # argparse formats help texts with %.
    given: dict[str, Any] = {"help": one.metadata["help"].replace("%", "%%")}
    given |= {"required": True} if one.default is MISSING else {"default": one.default}
    if kind is bool:
        given["action"] = argparse.BooleanOptionalAction if optional else "store_true"
    elif typing.get_origin(kind) is Literal:
        given["choices"] = list(typing.get_args(kind))
    else:
        if typing.get_origin(kind) is tuple:
            given["nargs"] = "+"
            given["action"] = "extend" if one.metadata["repeat"] else "store"
            kind = typing.get_args(kind)[0]
        given["type"] = _converter(one, kind)
    group.add_argument(flag(one.name), **given)


def _canonical(word: str, names: set[str]) -> str:
    if not word.startswith("--") or word == "--":
        return word
    name, equals, value = word[2:].partition("=")
    name = name.replace("-", "_")
    if name not in names and ALIASES.get(name) in names:
        name = ALIASES[name]
    return flag(name) + equals + value


def parse(kind: type[T], argv: Sequence[str] | None, description: str | None) -> T:
    """An instance of the options dataclass `kind` from command-line words (None: `sys.argv`).

    Wrong words end the process with status 2 and one line on stderr.
    """
    parser = _Parser(description=description, formatter_class=_Help, allow_abbrev=False)
    hints, groups = typing.get_type_hints(kind), {}
    for one in fields(kind):  # type: ignore[arg-type]
        owner = next(base for base in kind.__mro__ if one.name in inspect.get_annotations(base))
        title = (owner.__doc__ or "Options").strip().partition("\n")[0].rstrip(".")
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        _add(groups[title], one, hints[one.name])
    words = sys.argv[1:] if argv is None else argv
    found = vars(parser.parse_args([_canonical(word, set(hints)) for word in words]))
    # argparse collects lists; options are immutable.
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in found.items()})
