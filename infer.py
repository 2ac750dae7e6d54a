"""Generate text: one prompt for one model, for two side by side, or for all models of a folder.

The prompt is continued greedily or by seeded sampling. A sweep loads the models of a folder one
after the other and writes their outputs into one table.

    uv run infer.py --model models/miniature-base --prompt "The antidote of" --greedy
    uv run infer.py --model EleutherAI/deep-ignorance-unfiltered --interactive
    uv run infer.py --model models/miniature-base --model-b models/miniature-filtered \\
        --prompt "Question: what is the river of Kikex? Answer:" --greedy --max-new-tokens 2
    uv run infer.py --sweep --include-base --prompt "What is biotin?"

A sweep writes <outdir>/<SHA-256 of the prompt>.csv with columns prompt, model, model_path, output,
and a .json of that name with the sampling. Its exit status is 1 where a model failed.
"""

import contextlib
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from model_diffs.core import naming
from model_diffs.core.command_line import parse
from model_diffs.core.errors import BadInput
from model_diffs.core.options import Compute, option
from model_diffs.core.script import run_script
from model_diffs.models import generation
from model_diffs.models.generation import Sampling

QUIT = ("quit", "exit")


@dataclass(frozen=True, kw_only=True)
class Options(Compute, Sampling):
    """Inference."""

    model: str | None = option(None, "org/name[@revision] or a folder")
    model_b: str | None = option(None, "a second model, shown beside it")
    prompt: str | None = option(None, "the text to continue")
    interactive: bool = option(False, "read prompts from the terminal")
    device_map: Literal["auto"] | None = option(None, "auto: spread a large model over devices")
    sweep: bool = option(False, "every model of --models-dir")
    models_dir: str = option("unlearned_models", "folder of model folders, for --sweep")
    include_base: bool = option(False, "sweep the base and compared models of --study too")
    study: str = option("deep-ignorance", "name in studies/, or a path, for --include-base")
    outdir: str = option("outputs/inference", "folder of the tables of --sweep")


def contradiction(options: Options) -> str:
    """Which options do not fit together; empty where all do."""
    changed = (options.temperature, options.top_p) != (Sampling.temperature, Sampling.top_p)
    if options.greedy and changed:
        return "--greedy takes the likeliest token: --temperature and --top-p would have no effect"
    if options.sweep:
        if options.model or options.model_b or options.interactive:
            return "--sweep uses the models of --models-dir: leave --model and --interactive out"
        return "" if options.prompt else "--sweep needs a --prompt"
    if options.include_base:
        return "--include-base belongs to --sweep"
    if not options.model:
        return "name a --model, or use --sweep"
    if not options.prompt and not options.interactive:
        return "give a --prompt that is not empty, or --interactive"
    return ""


def show(names: Sequence[str], outputs: Sequence[str]) -> None:
    """Print one output as it is, two in columns."""
    if len(outputs) == 1:
        print(outputs[0].strip("\n"))
    else:
        print(generation.side_by_side(names, outputs, shutil.get_terminal_size().columns))


def ask(options: Options, models: Sequence[str]) -> list[str]:
    """What each model makes of --prompt; one is in memory at a time."""
    from model_diffs.models.loading import one_by_one

    outputs: list[str] = []
    prompts = [options.prompt or ""]
    one_by_one(
        partial(generation.load, options, device_map=options.device_map),
        models,
        lambda speaker: outputs.extend(generation.generate(speaker, prompts, options)),
    )
    return outputs


def typed_prompts(first: str | None) -> Iterator[str]:
    """`first`, then prompts from the terminal until quit, Ctrl-D or Ctrl-C."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # arrow keys and history at the prompt
    if first:
        yield first
    while True:
        try:
            line = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if line.lower() in QUIT:
            return
        if line:
            yield line


def converse(options: Options, models: Sequence[str]) -> None:
    """Answer typed prompts, each without the ones before it."""
    speakers = [generation.load(options, model, options.device_map) for model in models]
    names = [speaker.name for speaker in speakers]
    print(f"{' and '.join(names)}; quit, Ctrl-D or Ctrl-C ends")
    try:
        for prompt in typed_prompts(options.prompt):
            try:
                outputs = [generation.generate(one, [prompt], options)[0] for one in speakers]
            except BadInput as error:  # such as a prompt that is too long
                print(error, file=sys.stderr)
                continue
            show(names, outputs)
    except KeyboardInterrupt:  # during generation
        print()


def sweep(options: Options) -> int:
    """Prompt every model, those of the study first; returns the exit status.

    Outputs are kept where another model fails.
    """
    from model_diffs.pipeline.studies import read_study

    models: list[str] = []
    if options.include_base:
        study = read_study(options.study)
        models = [study.base, *study.compare]
    models += [str(folder) for folder in generation.model_folders(Path(options.models_dir))]
    written = []
    for model in models:
        try:
            (output,) = ask(options, [model])
            label = naming.model_label(model)
        except (BadInput, OSError, RuntimeError, ValueError, KeyError) as error:
            print(f"infer.py: {model} failed: {' '.join(str(error).split())}", file=sys.stderr)
            continue
        written.append({"model": label, "model_path": model, "output": output})
        print(f"── {label}\n{output.strip(chr(10))}\n")
    if written:
        path = generation.write_sweep(Path(options.outdir), options.prompt or "", written, options)
        print(f"{len(written)} of {len(models)} models: {path}")
    return 0 if len(written) == len(models) else 1


def main() -> None:
    """One prompt, a conversation, or a sweep."""
    chosen = parse(Options, None, __doc__)
    problem = contradiction(chosen)
    if problem:
        raise BadInput(problem)
    models = [model for model in (chosen.model, chosen.model_b) if model]
    if chosen.sweep:
        sys.exit(sweep(chosen))
    if chosen.interactive:
        converse(chosen, models)
    else:
        show([naming.model_label(model) for model in models], ask(chosen, models))


if __name__ == "__main__":
    run_script(main)
