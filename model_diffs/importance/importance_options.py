"""The command line that both importance scripts share. Standard library only at import."""

import argparse
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from model_diffs.core import arguments, naming
from model_diffs.core.errors import BadInput
from model_diffs.data.text_datasets import WIKITEXT

MODEL = "Qwen/Qwen2.5-0.5B"
FOLDER = "importance"
_RANGE = re.compile(r"^\s*(\d+)\s*(?:-\s*(\d+)\s*)?$")


def powers(text: str) -> tuple[float, ...]:
    """Powers separated by commas, each once."""
    try:
        return tuple(dict.fromkeys(arguments.positive_float(part) for part in text.split(",")))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: write a number or a list, 0.5,2") from error


def layer_list(text: str) -> tuple[int, ...] | None:
    """Layers from `0-23`, `0,5,10` or both mixed, sorted; None for all."""
    if text.strip().lower() == "all":
        return None
    layers: set[int] = set()
    for part in text.split(","):
        found = _RANGE.match(part)
        if found is None:
            raise argparse.ArgumentTypeError(f"{text!r}: write layers as 0-23, 0,5,10 or 0-3,8")
        first, last = int(found[1]), int(found[2] or found[1])
        if last < first:
            raise argparse.ArgumentTypeError(f"{part.strip()}: the range runs backwards")
        layers.update(range(first, last + 1))
    return tuple(sorted(layers))


def new_parser(description: str | None) -> argparse.ArgumentParser:
    """All options but what is a dimension; `parse` takes them with dashes as with underscores."""
    parser = arguments.new_parser(description)
    group = parser.add_argument_group("model and texts")
    group.add_argument("--model_name", default=MODEL, help="org/name[@revision] or a folder")
    group.add_argument("--dataset", default=WIKITEXT, help="text file, folder or org/name[:config]")
    group.add_argument("--num_samples", type=arguments.natural, default=500, help="texts; 0 = all")
    group.add_argument(
        "--batch_size", type=arguments.positive_int, default=4, help="texts per pass"
    )
    group.add_argument("--max_length", type=arguments.positive_int, default=128, help="tokens")
    group.add_argument("--keep_bos", action="store_true", help="count BOS positions as tokens")
    group.add_argument(
        "--skip_first", type=arguments.natural, default=0, help="leave out the first N positions"
    )
    group.add_argument("--seed", type=int, default=42, help="of the sample of texts")
    group = parser.add_argument_group("what is measured")
    group.add_argument(
        "--layers", type=layer_list, default="all", help="0-23, 0,5,10, mixed or all"
    )
    group.add_argument(
        "--site",
        choices=["mlp_out", "mlp_hidden", "residual"],
        default="mlp_out",
        help="output of a block's MLP, what its last matrix reads, or the output of the block",
    )
    group.add_argument("--aggregate_by", choices=["values", "gradients"], default="values")
    group.add_argument(
        "--aggregation_mode", choices=["mean", "mean_abs", "both"], default="mean_abs"
    )
    group.add_argument(
        "--power", type=powers, default=None, help="of the aggregated values; a number or a list"
    )
    group.add_argument(
        "--normalize_gradients",
        choices=["none", "sum_abs", "sum", "both"],
        default="sum_abs",
        help="values or gradients alike: so that Σ|v| or Σv is the number of dimensions",
    )
    group = parser.add_argument_group("compute")
    group.add_argument("--device", default="auto", help="auto (cuda, mps, cpu), or a torch device")
    group.add_argument("--dtype", default="auto", choices=["auto", "fp32", "fp16", "bf16"])
    group.add_argument(
        "--trust_remote_code", action="store_true", help="run code that a model brings along"
    )
    group = parser.add_argument_group("output")
    group.add_argument("--save_outputs", action="store_true", help="a folder of results")
    group.add_argument("--save_consolidated", default=None, metavar="PATH", help="one .npz file")
    group.add_argument("--outroot", default="outputs", help="folder of all results")
    return parser


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse; a flag may be spelled with dashes or underscores."""
    words = []
    for word in sys.argv[1:] if argv is None else argv:
        name, equals, value = word.partition("=")
        plain = "--" + name[2:].replace("-", "_") if name.startswith("--") else name
        words.append(plain + equals + value)
    return parser.parse_args(words)


def layers_of(layers: tuple[int, ...] | None, count: int, model: str) -> tuple[int, ...]:
    """The layers that are asked for. BadInput where the model has no such layer."""
    if layers is None:
        return tuple(range(count))
    beyond = [layer for layer in layers if layer >= count]
    if beyond:
        raise BadInput(f"{model} has layers 0-{count - 1}, and --layers asks for {beyond[0]}")
    return layers


def layers_label(layers: Sequence[int]) -> str:
    """Layers as a folder name has them: `0-23`, `0,5,10`, `0-3,8`."""
    parts: list[list[int]] = []
    for layer in layers:
        if parts and layer == parts[-1][-1] + 1:
            parts[-1].append(layer)
        else:
            parts.append([layer])
    return ",".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)


def result_folders(
    options: argparse.Namespace, prefix: str, layers: Sequence[int]
) -> dict[float | None, Path]:
    """A new folder per power, named after what was asked for and the time."""
    label, stamp = naming.model_label(options.model_name), time.strftime("%Y%m%d_%H%M%S")
    stem = (
        f"{prefix}_model_{label}_num_samples_{options.num_samples}"
        f"_batch_size_{options.batch_size}_layers_{layers_label(layers)}"
    )
    folders: dict[float | None, Path] = {}
    for power in options.power or [None]:
        name = f"{stem}_{stamp}" if power is None else f"{stem}_power_{power}_{stamp}"
        folder, copy = Path(options.outroot) / FOLDER / name, 2
        while folder.exists():  # another run of this second
            folder, copy = folder.with_name(f"{name}_{copy}"), copy + 1
        folders[power] = folder
    return folders


def consolidated_path(given: str, power: float | None, several: bool) -> Path:
    """Where --save_consolidated goes: one file per power where there are several."""
    path = Path(given).expanduser()
    if path.suffix != ".npz":
        path = path.with_name(path.name + ".npz")
    return path.with_name(f"{path.stem}_power_{power}.npz") if several else path


def check_places(options: argparse.Namespace) -> None:
    """Raise BadInput, before anything is computed, where results could not be written."""
    if options.save_outputs:
        place = Path(options.outroot).absolute() / FOLDER
        there = next(folder for folder in (place, *place.parents) if folder.exists())
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            raise BadInput(f"--outroot: {there} is no folder that can be written: choose another")
    if not options.save_consolidated:
        return
    given = Path(options.save_consolidated).expanduser()
    if given.is_dir():
        raise BadInput(f"--save_consolidated {given} is a folder: name a file")
    path = consolidated_path(options.save_consolidated, None, several=False)
    if not path.parent.is_dir():
        raise BadInput(f"--save_consolidated: {path.parent} is no folder; make it first")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise BadInput(f"--save_consolidated: {path.parent} cannot be written: choose another")
