"""Is everything there and sound? What can be known before a long run, in seconds.

Looks at the texts (there, disjoint, balanced, of similar length, without repeats), the questions,
the models (to be had, one architecture, one tokenizer), the device, memory, disk and packages of a
study, or of the models and texts given. Nothing is downloaded or written.

    uv run check_experiment.py --study miniature
    uv run check_experiment.py --model EleutherAI/deep-ignorance-unfiltered --device cuda

Prints one line per finding: ok, warning or error, and what to do. Exit status 1 on errors.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_diffs.core import arguments

if TYPE_CHECKING:
    from model_diffs.pipeline.preflight import Finding

ALL_METHODS = 10


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = arguments.new_parser(__doc__)
    parser.add_argument("--study", default="deep-ignorance", help="name in studies/, or a path")
    parser.add_argument(
        "--model", nargs="+", default=None, help="the base, then others, in place of the study's"
    )
    group = parser.add_argument_group("texts")
    group.add_argument("--forget-data", default=None, help="the study's, else data/forget.txt")
    group.add_argument("--retain-data", default=None, help="the study's, else data/retain.txt")
    group.add_argument("--questions", default=None, help="the study's, if it has some")
    group.add_argument("--max-length", type=arguments.positive_int, default=512, help="tokens")
    group = parser.add_argument_group("what is to be made")
    group.add_argument("--outdir", default="unlearned_models", help="where models will be written")
    group.add_argument("--lora", action="store_true", help="training will be by --lora-rank")
    arguments.add_compute(parser)
    return parser.parse_args(argv)


def complete(options: argparse.Namespace) -> argparse.Namespace:
    """The options, with what they leave open taken from the study."""
    from model_diffs.pipeline.studies import read_study

    values: dict[str, Any] = dict(vars(options))
    values["unlearned"] = ALL_METHODS
    if options.model is None:
        study = read_study(options.study)
        values["model"] = list(study.models)
        values["forget_data"] = options.forget_data or study.forget_text
        values["retain_data"] = options.retain_data or study.retain_text
        values["questions"] = options.questions or study.questions
        values["unlearned"] = len(study.unlearn)
    values["forget_data"] = values["forget_data"] or "data/forget.txt"
    values["retain_data"] = values["retain_data"] or "data/retain.txt"
    return argparse.Namespace(**values)


def findings(options: argparse.Namespace) -> "Iterator[Finding]":
    """Every check, cheap ones first."""
    from model_diffs.pipeline import preflight, preflight_machine, preflight_models

    yield from preflight_machine.check_packages()
    yield from preflight_machine.check_device(options.device, options.dtype)
    found = preflight_models.Models()
    yield from preflight_models.check_models(options.model, found)
    yield from preflight_models.check_tokenizers(found)
    lengths_of = None
    if options.model[0] in found.checkpoints:
        lengths_of = preflight_models.token_counter(found.checkpoints[options.model[0]])
    yield from preflight.check_texts(
        options.forget_data, options.retain_data, lengths_of, options.max_length
    )
    if options.questions:
        yield from preflight.check_questions(
            options.questions, options.forget_data, options.retain_data
        )
    if found.sizes:
        yield from preflight_machine.check_memory(
            found.sizes[0], options.device, options.dtype, options.lora
        )
        yield from preflight_machine.check_disk(
            Path(options.outdir), found.sizes, options.unlearned
        )


def main() -> None:
    """Print the report; exit status 1 where something is an error."""
    options = complete(parse_arguments())
    counts = {"ok": 0, "warning": 0, "error": 0}
    for finding in findings(options):
        counts[finding.level] += 1
        print(f"{finding.level:<8} {finding.subject:<13} {finding.says}", flush=True)
    print(f"\n{counts['ok']} ok, {counts['warning']} warnings, {counts['error']} errors")
    sys.exit(1 if counts["error"] else 0)


if __name__ == "__main__":
    arguments.run_script(main)
