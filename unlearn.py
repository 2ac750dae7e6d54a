"""Make a model forget: what does the base become when a method removes the forget set by training?

One of fifteen methods (docs/unlearning.md) changes the base's weights, most by minimising a loss on
batches of forget and retain texts; the result is an ordinary model folder that every step takes as
--model-b. Three methods make its controls: finetune trains on one file, noise adds random changes
of a model's norms, quantise rounds.

    uv run unlearn.py --model models/miniature-base --method npo \\
        --forget-text data/miniature/forget.txt --retain-text data/miniature/retain.txt
    uv run unlearn.py --model EleutherAI/deep-ignorance-unfiltered --method rmu --layer-id 5,6,7
    uv run unlearn.py --model models/miniature-base --method noise \\
        --like unlearned_models/miniature-base__npo --forget-text … --retain-text …

Writes unlearned_models/<model>__<method>/: weights, tokenizer, unlearning.json (arguments, texts,
losses per step, NLLs before and after), README.md (model card), run.json.
"""

import importlib
from pathlib import Path

from model_diffs.core.methods import METHODS
from model_diffs.core.naming import model_label
from model_diffs.core.options import recorded
from model_diffs.core.results import PlannedRun, is_main_process, open_run
from model_diffs.core.script import run_step
from model_diffs.core.step import Step
from model_diffs.unlearning.settings import Options, check

STEP = Step(
    number=0,
    folder="unlearned_models",
    question="What does the base become when the forget set is removed by training?",
    memory="model_diffs.unlearning.memory:UNLEARN",
    scope="other",
    needs=("forget", "retain", "questions"),
    processes=True,
    version=2,  # each method draws its own random directions
)

# What makes a model, by the kind of making that the registry says of its method.
MAKERS = {"trained": "model_diffs.unlearning.running", "edited": "model_diffs.unlearning.editing"}


def planned_runs(options: Options) -> list[PlannedRun]:
    """The one folder that this command fills. Raises BadInput for what the method cannot use."""
    check(options)
    if options.push_to:
        from model_diffs.unlearning import pushing

        pushing.check_name(options.push_to)
    usual = f"{model_label(options.model)}__{options.method}"
    folder = Path(options.outdir) if options.outdir else Path(STEP.folder) / usual
    arguments = {**recorded(options), "model": options.model}
    # Two models of one method are told apart by their folders.
    return [PlannedRun(folder, folder.name, arguments, options.model)]


def main(options: Options, todo: list[PlannedRun]) -> None:
    """Make the model, unless it is done."""
    maker = importlib.import_module(MAKERS[METHODS[options.method].making])
    for planned in todo:
        with open_run(planned) as run:
            maker.make(options, run)
        if options.push_to and is_main_process():
            from model_diffs.unlearning import pushing

            pushing.push(planned.folder, options.push_to)


if __name__ == "__main__":
    run_step(__name__)
