"""Does model diffing find what was removed? An example on the miniature, where the truth is known.

A dictionary is trained on the base, which knows the hazards. The base is compared with the model
that never saw them and with one made to forget them: of the latents that fell most, those of hazard
contexts should be more than among all latents. Latents that all texts use are passed over.

    uv run example_diffing.py
    uv run example_diffing.py --unlearned unlearned_models/miniature-base__rmu

Prints the shares beside what chance gives. Writes a dictionary to <outdir>, and for each comparison
<outroot>/<A>__to__<B>/itda_diffing/ with a page of examples.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diff
import train_itda
from model_diffs.core import arguments, naming
from model_diffs.core.errors import BadInput

# The last block says what comes next; one coefficient names the nearest atom: see docs/itda.md.
DICTIONARY = ["--layer", "3", "--k", "1", "--fvu-threshold", "0.05"]
MODELS = Path("unlearned_models")


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Options of the command line."""
    parser = arguments.new_parser(__doc__)
    parser.add_argument("--base", default="models/miniature-base")
    parser.add_argument("--filtered", default="models/miniature-filtered")
    parser.add_argument(
        "--unlearned", default=None, help="the first of unlearned_models/ where not given"
    )
    parser.add_argument("--forget-text", default="data/miniature/forget.txt")
    parser.add_argument("--retain-text", default="data/miniature/retain.txt")
    parser.add_argument("--outdir", default="artifacts/runs/example_diffing")
    parser.add_argument("--outroot", default="outputs/example_diffing")
    parser.add_argument("--top", type=arguments.positive_int, default=20)
    parser.add_argument("--force", action="store_true", help="run again what is complete")
    return parser.parse_args(argv)


def unlearned_model(options: argparse.Namespace) -> str:
    """The model that was made to forget. Raises BadInput where there is none."""
    if options.unlearned:
        return str(options.unlearned)
    label = naming.model_label(options.base)
    found = sorted(str(folder) for folder in MODELS.glob(f"{label}__*") if folder.is_dir())
    if not found:
        raise BadInput(f"no unlearned model in {MODELS}/: run ./pipeline.sh, or name --unlearned")
    return found[0]


def show(label: str, summary: dict[str, Any], hazard: str) -> None:
    """One line of the result."""
    fell = summary["contexts_of_top_latents"]["fell"]
    fvu = summary["fvu"]["all"]
    if fell["latents"]:
        shares = (
            f"{fell['share'][hazard]:6.0%} of {fell['latents']:<3} "
            f"{fell['chance'][hazard]:6.0%} {fell['p_value'][hazard]:9.2g}"
        )
    else:
        shares = f"{'no latent of one text fell':31}"
    print(f"{label:28} {shares} {fvu['a']['mean']:9.3f} {fvu['b']['mean']:9.3f}")


def main() -> None:
    """Train, compare, print."""
    options = parse_arguments()
    if Path(options.forget_text).stem == Path(options.retain_text).stem:
        raise BadInput("--forget-text and --retain-text need files of two different names")
    changed = [options.filtered, unlearned_model(options)]
    texts = ["--dataset", options.forget_text, options.retain_text]
    force = ["--force"] if options.force else []
    trained = ["--model", options.base, "--outdir", options.outdir, *DICTIONARY, *texts, *force]
    train_itda.train(train_itda.parse_arguments(trained))
    compared = ["--itda", options.outdir, "--model-a", options.base, "--model-b", *changed]
    compared += ["--outroot", options.outroot, "--top", str(options.top), *texts, *force]
    asked = diff.parse_arguments(compared)
    diff.compare(asked)
    print(f"\n{'':28} hazard contexts, latents that fell       mean FVU")
    print(f"{'':28} {'share':>6}        {'chance':>6} {'p':>9} {'base':>9} {'changed':>9}")
    for planned in diff.planned_runs(asked):
        summary = json.loads((planned.folder / "summary.json").read_text(encoding="utf-8"))
        show(naming.model_label(planned.model_b), summary, Path(options.forget_text).stem)
    print(f"\nThe texts: {options.outroot}/*/{diff.FOLDER}/examples.html")


if __name__ == "__main__":
    arguments.run_script(main)
