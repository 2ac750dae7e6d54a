"""Does model diffing find what was removed? An example on the miniature, where the truth is known.

A dictionary is trained on the base, which knows the hazards. The base is compared with the model
that never saw them and with one made to forget them: of the latents that fell most, the share with
hazard contexts is set beside that of all latents (docs/itda.md). Those used by all texts are left
out.

    uv run example_diffing.py
    uv run example_diffing.py --unlearned unlearned_models/miniature-base__rmu

Prints the shares beside what chance gives. Writes a dictionary to <outdir>, and for each comparison
<outroot>/<A>__to__<B>/itda_diffing/ with a page of examples.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diff
import train_itda
from model_diffs.core import naming
from model_diffs.core.command_line import parse
from model_diffs.core.errors import BadInput
from model_diffs.core.methods import UNLEARNING, method_of
from model_diffs.core.options import option, positive
from model_diffs.core.script import execute, run_script

# The last block determines the next token; one coefficient names the nearest atom (docs/itda.md).
DICTIONARY = ["--layer", "3", "--k", "1", "--fvu-threshold", "0.05"]
MODELS = Path("unlearned_models")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Example."""

    model_a: str = option("models/miniature-base", "base, on which the dictionary is trained")
    filtered: str = option("models/miniature-filtered", "model that never saw the forget set")
    unlearned: str | None = option(None, "default: the first in unlearned_models/")
    forget_text: str = option("data/miniature/forget.txt", "the forget set")
    retain_text: str = option("data/miniature/retain.txt", "the retain set")
    outdir: str = option("artifacts/runs/example_diffing", "folder of the dictionary")
    outroot: str = option("outputs/example_diffing", "folder of the comparisons")
    top: int = option(20, "latents compared in each direction", check=positive)
    force: bool = option(False, "run again what is complete")


def unlearned_model(options: Options) -> str:
    """The unlearned model to compare. Raises BadInput where there is none."""
    if options.unlearned:
        return options.unlearned
    label = naming.model_label(options.model_a)
    made = sorted(str(folder) for folder in MODELS.glob(f"{label}__*") if folder.is_dir())
    # Controls stand there, too.
    found = [one for one in made if method_of(naming.model_label(one)) in UNLEARNING]
    if not found:
        raise BadInput(f"no unlearned model in {MODELS}/: run ./pipeline.sh, or name --unlearned")
    return found[0]


def show(label: str, summary: dict[str, Any], hazard: str) -> None:
    """One line of the result."""
    fell, fvu = summary["contexts_of_top_latents"]["fell"], summary["fvu"]["all"]
    shares = f"{'no latent of one data set fell':31}"
    if fell["latents"]:
        share, chance, p = (fell[key][hazard] for key in ("share", "chance", "p_value"))
        shares = f"{share:6.0%} of {fell['latents']:<3} {chance:6.0%} {p:9.2g}"
    print(f"{label:28} {shares} {fvu['a']['mean']:9.3f} {fvu['b']['mean']:9.3f}")


def main() -> None:
    """Train, compare, print."""
    options = parse(Options, None, __doc__)
    if Path(options.forget_text).stem == Path(options.retain_text).stem:
        raise BadInput("--forget-text and --retain-text need files of two different names")
    more = ["--dataset", options.forget_text, options.retain_text]
    more += ["--force"] if options.force else []
    trained = ["--model", options.model_a, "--outdir", options.outdir, *DICTIONARY, *more]
    compared = ["--itda", options.outdir, "--model-a", options.model_a, "--model-b"]
    compared += [options.filtered, unlearned_model(options)]
    compared += ["--outroot", options.outroot, "--top", str(options.top), *more]
    execute(train_itda, trained)
    execute(diff, compared)
    print(f"\n{'':28} hazard contexts, latents that fell       mean FVU")
    print(f"{'':28} {'share':>6}        {'chance':>6} {'p':>9} {'base':>9} {'changed':>9}")
    for planned in diff.planned_runs(parse(diff.Options, compared, None)):
        summary = json.loads((planned.folder / "summary.json").read_text(encoding="utf-8"))
        show(naming.model_label(planned.model_b), summary, Path(options.forget_text).stem)
    print(f"\nThe texts: {options.outroot}/*/{diff.STEP.folder}/examples.html")


if __name__ == "__main__":
    run_script(main)
