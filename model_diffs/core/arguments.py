"""The options that scripts share, and how a script starts and ends.

Standard library only at import: `pipeline.sh` reads the arguments of every script in one process.
"""

import argparse
import errno
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NoReturn

from model_diffs.core import naming, results
from model_diffs.core.errors import BadInput
from model_diffs.core.results import PlannedRun

# Where results go, and what is done with them, does not change what they are.
NOT_RECORDED = {"force", "outroot", "outdir", "model_a", "model_b", "model", "models"}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message} (--help lists the options)", file=sys.stderr)
        sys.exit(2)


class _Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    pass


def new_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser whose help is the script's docstring and whose errors are one line."""
    return _Parser(description=description, formatter_class=_Help, allow_abbrev=False)


# ── values ────────────────────────────────────────────────────────────────────────────────────────


def positive_int(text: str) -> int:
    """An integer of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def natural(text: str) -> int:
    """An integer of at least 0."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return value


def positive_float(text: str) -> float:
    """A finite number above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return value


def fraction(text: str) -> float:
    """A number above 0 and at most 1."""
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most 1")
    return value


# ── groups of options ─────────────────────────────────────────────────────────────────────────────


def _add_run(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("run")
    group.add_argument("--outroot", default="outputs", help="folder of all results")
    group.add_argument("--outdir", default=None, help="place the one result folder here instead")
    group.add_argument("--seed", type=int, default=42, help="seed of everything random")
    group.add_argument("--force", action="store_true", help="run again what is complete")


def add_comparison(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """`--model-a A --model-b B [B …]` and where the results go."""
    group = parser.add_argument_group("models")
    group.add_argument("--model-a", required=required, help="base: org/name[@revision] or a folder")
    group.add_argument("--model-b", required=required, nargs="+", help="changed models")
    _add_run(parser)


def add_models(parser: argparse.ArgumentParser) -> None:
    """`--model M [M …]` for steps that look at one model at a time."""
    group = parser.add_argument_group("models")
    group.add_argument("--model", required=True, nargs="+", help="org/name[@revision] or folders")
    _add_run(parser)


def add_texts(parser: argparse.ArgumentParser) -> None:
    """The two splits and how they are read."""
    group = parser.add_argument_group("texts")
    group.add_argument("--forget-text", default="data/forget.txt", help="one sample per line")
    group.add_argument("--retain-text", default="data/retain.txt", help="one sample per line")
    group.add_argument("--max-samples", type=natural, default=500, help="per split; 0 = all")
    group.add_argument("--max-length", type=positive_int, default=512, help="tokens per sample")
    group.add_argument("--batch-size", type=positive_int, default=16, help="samples per pass")
    group.add_argument("--keep-bos", action="store_true", help="count BOS positions as tokens")
    group.add_argument(
        "--skip-first", type=natural, default=0, help="leave out the first N positions of a sample"
    )
    group.add_argument(
        "--side-by-side",
        choices=["auto", "yes", "no"],
        default="auto",
        help="run all models together, or each alone against a disk cache of the base's states",
    )
    group.add_argument(
        "--device-map",
        choices=["auto"],
        default=None,
        help="auto: spread a model that one device cannot hold over all there is",
    )
    group.add_argument(
        "--cache-fp16",
        action="store_true",
        help="halve that cache; its rounding shows in small differences",
    )


def refuse_device_map(options: argparse.Namespace) -> None:
    """Raise BadInput for `--device-map` where a step has its model on one device only."""
    if options.device_map:
        raise BadInput(
            "--device-map serves the pass of steps 4, 8, 9 and 13; this needs one device"
        )


def add_compute(parser: argparse.ArgumentParser) -> None:
    """Device, dtype and trust."""
    group = parser.add_argument_group("compute")
    group.add_argument("--device", default="auto", help="auto (cuda, mps, cpu), or a torch device")
    group.add_argument(
        "--dtype",
        default="auto",
        choices=["auto", "fp32", "fp16", "bf16"],
        help="of the computation; auto: bf16 on cuda, fp16 on mps, fp32 on cpu",
    )
    group.add_argument(
        "--trust-remote-code", action="store_true", help="run code that a model brings along"
    )


def add_figures(parser: argparse.ArgumentParser) -> None:
    """Format and title of figures."""
    group = parser.add_argument_group("figures")
    group.add_argument("--format", default="png", choices=["png", "pdf", "svg"])
    group.add_argument("--title", default=None, help="in place of the names of the models")


# ── planned runs ──────────────────────────────────────────────────────────────────────────────────


def recorded(options: argparse.Namespace) -> dict[str, object]:
    """The arguments that decide a result: all but where it goes and which other runs go with it."""
    return {k: v for k, v in sorted(vars(options).items()) if k not in NOT_RECORDED}


def _one_folder_each(planned: Iterable[PlannedRun]) -> list[PlannedRun]:
    by_folder: dict[Path, PlannedRun] = {}
    for one in planned:
        other = by_folder.setdefault(one.folder, one)
        if (other.model_a, other.model_b) != (one.model_a, one.model_b):
            raise BadInput(
                f"{other.model_b or other.model_a} and {one.model_b or one.model_a} would share "
                f"the folder {one.folder}: rename one of them"
            )
    return list(by_folder.values())


def comparison_runs(options: argparse.Namespace, folder: str) -> list[PlannedRun]:
    """One planned run per changed model: `<outroot>/<A>__to__<B>/<folder>`, or --outdir."""
    if options.outdir and len(options.model_b) > 1:
        raise BadInput("--outdir places one comparison: give one --model-b, or use --outroot")
    planned = []
    for model_b in options.model_b:
        label = naming.comparison_label(options.model_a, model_b)
        place = Path(options.outdir) if options.outdir else Path(options.outroot) / label / folder
        models = {"model_a": options.model_a, "model_b": model_b}
        planned.append(PlannedRun(place, label, {**recorded(options), **models}, **models))
    return _one_folder_each(planned)


def model_runs(options: argparse.Namespace, folder: str) -> list[PlannedRun]:
    """One planned run per model: `<outroot>/<model>/<folder>`, or --outdir."""
    if options.outdir and len(options.model) > 1:
        raise BadInput("--outdir places one model: give one --model, or use --outroot")
    planned = []
    for model in options.model:
        label = naming.model_label(model)
        place = Path(options.outdir) if options.outdir else Path(options.outroot) / label / folder
        planned.append(PlannedRun(place, label, {**recorded(options), "model": model}, model))
    return _one_folder_each(planned)


def plot_runs(
    options: argparse.Namespace, folder: str, tables: Sequence[str | None]
) -> list[PlannedRun]:
    """Planned runs of a plotting step: of its comparisons, or of tables that were named instead."""
    if any(tables):
        if not options.outdir:
            raise BadInput("a table given by itself needs --outdir for its figures")
        return [PlannedRun(Path(options.outdir), options.title or "", recorded(options))]
    if not (options.model_a and options.model_b):
        raise BadInput("name --model-a and --model-b, or a table to draw and --outdir")
    return comparison_runs(options, folder)


def title_of(planned: PlannedRun) -> str:
    """Title of a comparison's figures: --title, or the two models."""
    title = planned.arguments.get("title")
    if title or not planned.model_b:
        return str(title or planned.label)
    base = naming.model_label(planned.model_a)
    return f"{base} → {naming.short_label(planned.model_b, base)}"


def names_of(planned: PlannedRun) -> tuple[str, str]:
    """Short names of base and changed model, for legends."""
    if not planned.model_b:
        return "model A", "model B"
    base = naming.model_label(planned.model_a)
    return base, naming.short_label(planned.model_b, base)


# ── start and end of a script ─────────────────────────────────────────────────────────────────────


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch; ask for deterministic algorithms where they are a choice."""
    import random

    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if torch.cuda.is_available():  # the CPU's are; asking loads the compiler, which takes seconds
        # cuBLAS is deterministic only with a fixed workspace.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)


def _load_environment() -> None:
    from dotenv import load_dotenv

    load_dotenv(Path.cwd() / ".env")  # what the environment says already wins


def _register_tracking() -> None:
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE") == "offline":
        from model_diffs.core import tracking

        if tracking.publish not in results.after_commit:
            results.after_commit.append(tracking.publish)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def run_script(main: Callable[[], None]) -> NoReturn:
    """Run a script's `main` and leave with its exit status.

    0 done; 2 bad input, with one line on stderr; 130 Ctrl-C; 141 nobody reads the output any more
    (`| head`). A full or unwritable disk is bad input too. Anything else is a defect and keeps its
    traceback.
    """
    script = Path(sys.argv[0]).name
    try:
        _load_environment()
        _register_tracking()
        main()
    except BadInput as error:
        print(f"{script}: {_one_line(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"{script}: interrupted; nothing half-done is kept", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # What is still buffered would raise once more when Python closes its output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        print(f"{script}: {error.strerror}: {error.filename or 'output'}", file=sys.stderr)
        sys.exit(2)
    sys.exit(0)
