"""What does a model say? One prompt to one model, to two side by side, or to all that were made.

The prompt is continued, greedily or by seeded sampling. A sweep loads the models of a folder one
after the other and writes what each says into one table.

    uv run infer.py --model models/miniature-base --prompt "The antidote of" --greedy
    uv run infer.py --model EleutherAI/deep-ignorance-unfiltered --interactive
    uv run infer.py --model models/miniature-base --model-b models/miniature-filtered \\
        --prompt "Question: what is the river of Kikex? Answer:" --greedy --max-new-tokens 2
    uv run infer.py --sweep --include-base --prompt "What is biotin?"

A sweep writes <outdir>/<SHA-256 of the prompt>.csv with columns prompt, model, model_path, output,
and a .json of that name with the sampling. Its exit status is 1 where a model failed.
"""

import argparse
import contextlib
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from model_diffs.core import arguments, naming
from model_diffs.core.errors import BadInput

if TYPE_CHECKING:
    from model_diffs.models.generation import Sampling, Speaker

TEMPERATURE, TOP_P = 0.7, 0.95
QUIT = ("quit", "exit")


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; a way of use that does not fit the others is an error."""
    parser = arguments.new_parser(__doc__)
    parser.add_argument("--model", default=None, help="org/name[@revision] or a folder")
    parser.add_argument("--model-b", default=None, help="a second one, shown beside it")
    parser.add_argument("--prompt", default=None, help="the text to continue")
    parser.add_argument("--interactive", action="store_true", help="prompts from the terminal")
    group = parser.add_argument_group("sweep")
    group.add_argument("--sweep", action="store_true", help="every model of --models-dir")
    group.add_argument("--models-dir", default="unlearned_models", help="folder of model folders")
    group.add_argument(
        "--include-base", action="store_true", help="also the base and compared models of --study"
    )
    group.add_argument("--study", default="deep-ignorance", help="name in studies/, or a path")
    group.add_argument("--outdir", default="outputs/inference", help="folder of the tables")
    group = parser.add_argument_group("sampling")
    group.add_argument("--max-new-tokens", type=arguments.positive_int, default=100)
    group.add_argument(
        "--temperature", type=arguments.positive_float, default=None, help=f"{TEMPERATURE} if none"
    )
    group.add_argument("--top-p", type=arguments.fraction, default=None, help=f"{TOP_P} if none")
    group.add_argument("--greedy", action="store_true", help="the likeliest token, always")
    group.add_argument("--seed", type=int, default=42, help="same seed, same text")
    arguments.add_compute(parser)
    parser.add_argument("--device-map", choices=["auto"], default=None, help="spread a large model")
    options = parser.parse_args(argv)
    problem = _contradiction(options)
    if problem:
        parser.error(problem)
    return options


def _contradiction(options: argparse.Namespace) -> str:
    if options.greedy and (options.temperature or options.top_p):
        return "--greedy takes the likeliest token: --temperature and --top-p would do nothing"
    if options.sweep:
        if options.model or options.model_b or options.interactive:
            return "--sweep asks the models of --models-dir: leave --model and --interactive out"
        return "" if options.prompt else "--sweep needs a --prompt"
    if options.include_base:
        return "--include-base belongs to --sweep"
    if not options.model:
        return "name a --model, or use --sweep"
    if not options.prompt and not options.interactive:
        return "give a --prompt that is not empty, or --interactive"
    return ""


def sampling_of(options: argparse.Namespace) -> "Sampling":
    """How tokens are chosen."""
    from model_diffs.models.generation import Sampling

    return Sampling(
        options.max_new_tokens,
        options.temperature or TEMPERATURE,
        options.top_p or TOP_P,
        options.greedy,
        options.seed,
    )


def show(names: Sequence[str], outputs: Sequence[str]) -> None:
    """Print one output as it is, two in columns."""
    from model_diffs.models.generation import side_by_side

    if len(outputs) == 1:
        print(outputs[0].strip("\n"))
    else:
        print(side_by_side(names, outputs, shutil.get_terminal_size().columns))


def ask(options: argparse.Namespace, model: str) -> str:
    """What one model says; it is out of memory afterwards."""
    from model_diffs.models import generation

    speaker = generation.load(options, model)
    (output,) = generation.generate(speaker, [options.prompt], sampling_of(options))
    return output


def ask_once(options: argparse.Namespace) -> None:
    """One prompt to one or two models, one in memory at a time."""
    from model_diffs.models import generation

    models = [model for model in (options.model, options.model_b) if model]
    outputs = []
    for model in models:
        outputs.append(ask(options, model))
        generation.free()
    show([naming.model_label(model) for model in models], outputs)


def typed_prompts(first: str | None) -> Iterator[str]:
    """Prompts from the terminal until quit, Ctrl-D or Ctrl-C; `first` is asked without waiting."""
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


def converse(options: argparse.Namespace) -> None:
    """Ask what is typed; each prompt by itself, without what was said before."""
    from model_diffs.models import generation

    speakers: list[Speaker] = [
        generation.load(options, model) for model in filter(None, (options.model, options.model_b))
    ]
    print(f"{' and '.join(s.name for s in speakers)}; quit, Ctrl-D or Ctrl-C ends")
    try:
        for prompt in typed_prompts(options.prompt):
            try:
                outputs = [
                    generation.generate(speaker, [prompt], sampling_of(options))[0]
                    for speaker in speakers
                ]
            except BadInput as error:  # a prompt that is too long is no reason to leave
                print(error, file=sys.stderr)
                continue
            show([speaker.name for speaker in speakers], outputs)
    except KeyboardInterrupt:  # while a model was speaking
        print()


def sweep_models(options: argparse.Namespace) -> list[str]:
    """The models of a sweep: those of the study first, where they are asked for."""
    from model_diffs.models.generation import model_folders
    from model_diffs.pipeline.studies import read_study

    known = list(read_study(options.study).models) if options.include_base else []
    return known + [str(folder) for folder in model_folders(Path(options.models_dir))]


def sweep(options: argparse.Namespace) -> int:
    """Ask every model, one in memory at a time; returns the exit status.

    What a model says is kept even where another fails.
    """
    from model_diffs.models import generation

    written, failed, asked = [], [], sweep_models(options)
    for model in asked:
        try:
            output = ask(options, model)
            label = naming.model_label(model)
        except (BadInput, OSError, RuntimeError, ValueError, KeyError) as error:
            failed.append(model)
            print(f"infer.py: {model} failed: {' '.join(str(error).split())}", file=sys.stderr)
            continue
        generation.free()
        written.append(generation.Written(options.prompt, label, model, output))
        print(f"── {label}\n{output.strip(chr(10))}\n")
    if written:
        path = generation.write_sweep(
            Path(options.outdir), options.prompt, written, sampling_of(options)
        )
        print(f"{len(written)} of {len(asked)} models: {path}")
    return 1 if failed else 0


def main() -> None:
    """One of the four ways of use."""
    options = parse_arguments()
    if options.sweep:
        sys.exit(sweep(options))
    if options.interactive:
        converse(options)
    else:
        ask_once(options)


if __name__ == "__main__":
    arguments.run_script(main)
