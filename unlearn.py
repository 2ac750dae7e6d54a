"""Make a model forget: what does the base become when a method trains the forget texts away?

One of ten losses (docs/unlearning.md) is minimised on batches of forget and retain texts, starting
from the base's weights; the result is an ordinary model folder that every step takes as --model-b.

    uv run unlearn.py --model models/miniature-base --method npo \\
        --forget-data data/miniature/forget.txt --retain-data data/miniature/retain.txt
    uv run unlearn.py --model EleutherAI/deep-ignorance-unfiltered --method rmu --layer-id 5,6,7

Writes unlearned_models/<model>__<method>/: weights, tokenizer, unlearning.json (arguments, texts,
losses per step, NLLs before and after), README.md (model card), run.json.
"""

import argparse
from pathlib import Path

from model_diffs.core import arguments, naming, results
from model_diffs.core.results import PlannedRun
from model_diffs.unlearning import METHODS

OUTROOT = "unlearned_models"


def steering(text: str) -> str:
    """`auto`, or a number."""
    return text if text == "auto" else str(float(text))


def share(text: str) -> float:
    """A number of at least 0 and below 1."""
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 0 and below 1")
    return value


def natural_float(text: str) -> float:
    """A finite number of at least 0."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number of at least 0")
    return value


def add_data(parser: argparse.ArgumentParser) -> None:
    """Texts, and how they are batched."""
    group = parser.add_argument_group("texts")
    group.add_argument("--forget-data", default="data/forget.txt", help="one sample per line")
    group.add_argument("--retain-data", default="data/retain.txt", help="one sample per line")
    group.add_argument("--max-samples", type=arguments.natural, default=0, help="0 = all")
    group.add_argument("--max-length", type=arguments.positive_int, default=512, help="tokens")
    group.add_argument(
        "--eval-split", type=share, default=0.1, help="share of each split held out to measure NLL"
    )
    group.add_argument("--questions", default=None, help="JSONL of four-choice questions to score")


def add_training(parser: argparse.ArgumentParser) -> None:
    """The trainer's numbers."""
    group = parser.add_argument_group("training")
    group.add_argument("--lr", type=arguments.positive_float, default=1e-5)
    group.add_argument("--epochs", type=arguments.positive_int, default=1)
    group.add_argument("--batch-size", type=arguments.positive_int, default=4, help="per split")
    group.add_argument("--grad-accum-steps", type=arguments.positive_int, default=1)
    group.add_argument("--warmup-steps", type=arguments.natural, default=0)
    group.add_argument("--grad-clip", type=natural_float, default=1.0, help="0 = off")
    group.add_argument(
        "--optimizer", default="adamw", choices=["adamw", "sgd", "adafactor", "muon"]
    )
    group.add_argument(
        "--trainable", default="all", help="all, layers (those of --layer-id), or a name pattern"
    )
    group.add_argument(
        "--lora-rank", type=arguments.natural, default=0, help="0 = off; needs the lora extra"
    )
    group.add_argument(
        "--gradient-checkpointing",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="on for cuda, off elsewhere, unless said",
    )
    group.add_argument("--eval-interval", type=arguments.natural, default=0, help="steps; 0 = off")
    group.add_argument(
        "--checkpoint-every", type=arguments.natural, default=0, help="steps; 0 = never"
    )
    group.add_argument("--save-dtype", default="base", choices=["base", "fp32", "fp16", "bf16"])


def add_method(parser: argparse.ArgumentParser) -> None:
    """The numbers in the losses."""
    says = "; ".join(f"{method.name}: {method.says}" for method in METHODS.values())
    parser.add_argument("--method", required=True, choices=list(METHODS), help=says)
    group = parser.add_argument_group("losses")
    group.add_argument("--beta", type=arguments.positive_float, default=0.1, help="dpo npo simnpo")
    group.add_argument("--gamma", type=float, default=0.0, help="simnpo")
    group.add_argument(
        "--logprob-reduction", default="mean", choices=["mean", "sum"], help="dpo npo"
    )
    group.add_argument("--alpha", type=natural_float, default=100.0, help="rmu cb cb_lat: retain")
    group.add_argument(
        "--steering-coeff", type=steering, default=None, help="rmu: a number or auto (default 20)"
    )
    group.add_argument("--layer-id", default="5,6,7", help="rmu cb lat cb_lat: blocks from 0")
    group.add_argument("--forget-weight", type=natural_float, default=1.0, help="grad_diff")
    group.add_argument("--retain-weight", type=natural_float, default=1.0, help="ga npo simnpo lat")
    group.add_argument(
        "--cb-target", default="random", choices=["random", "orthogonal"], help="cb cb_lat"
    )
    group.add_argument(
        "--lat-layer", type=arguments.natural, default=None, help="lat: middle; cb_lat: first"
    )
    group.add_argument("--lat-eps", type=arguments.positive_float, default=0.1, help="lat cb_lat")
    group.add_argument("--lat-steps", type=arguments.natural, default=5, help="lat cb_lat")
    group.add_argument(
        "--lat-step-size", type=arguments.positive_float, default=None, help="a quarter of ε"
    )


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = arguments.new_parser(__doc__)
    parser.add_argument("--model", required=True, help="base: org/name[@revision] or a folder")
    add_method(parser)
    add_data(parser)
    add_training(parser)
    arguments.add_compute(parser)
    group = parser.add_argument_group("run")
    group.add_argument("--outdir", default=None, help=f"{OUTROOT}/<model>__<method> unless said")
    group.add_argument("--seed", type=int, default=42, help="seed of everything random")
    group.add_argument("--force", action="store_true", help="run again what is complete")
    return parser.parse_args(argv)


def planned_runs(options: argparse.Namespace) -> list[PlannedRun]:
    """The one folder that this command fills."""
    label = f"{naming.model_label(options.model)}__{options.method}"
    folder = Path(options.outdir) if options.outdir else Path(OUTROOT) / label
    recorded = {**arguments.recorded(options), "model": options.model}
    return [PlannedRun(folder, label, recorded, options.model)]


def main() -> None:
    """Unlearn, unless it is done."""
    options = parse_arguments()
    for planned in results.pending(planned_runs(options), options.force):
        from model_diffs.unlearning.running import unlearn

        with results.open_run(planned) as run:
            unlearn(options, run)


if __name__ == "__main__":
    arguments.run_script(main)
