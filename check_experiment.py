"""Is everything there and sound? What can be known before a long run, in the time to read it.

Checks the texts (readable, disjoint, balanced, of similar length, without repeats), the questions,
the models (obtainable, finite, one architecture, one tokenizer), the device, memory, disk and
packages of a study, or of the models and texts given. Nothing is downloaded or written.

    uv run check_experiment.py --study miniature
    uv run check_experiment.py --model EleutherAI/deep-ignorance-unfiltered --device cuda

Prints one line per finding: ok, warning or error, and what to do. Exit status 1 on errors.
"""

import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from model_diffs.core.command_line import parse
from model_diffs.core.methods import UNLEARNING
from model_diffs.core.options import Compute, option, positive
from model_diffs.core.script import run_script

if TYPE_CHECKING:
    from model_diffs.pipeline.preflight import Finding


@dataclass(frozen=True, kw_only=True)
class Options(Compute):
    """Experiment."""

    study: str = option("deep-ignorance", "name in studies/, or a path")
    model: tuple[str, ...] = option((), "the base, then others, in place of the study's")
    forget_text: str | None = option(None, "the study's, else data/forget.txt")
    retain_text: str | None = option(None, "the study's, else data/retain.txt")
    questions: str | None = option(None, "the study's, if it has some")
    max_length: int = option(512, "tokens per sample", check=positive)
    outdir: str = option("unlearned_models", "where unlearned models will be written")
    lora: bool = option(False, "training will use --lora-rank")


def findings(options: Options) -> "Iterator[Finding]":
    """Every check, cheap ones first."""
    from model_diffs.pipeline import preflight, studies

    if options.model:
        models, texts, unlearned = options.model, studies.Texts(), len(UNLEARNING)
    else:
        study = studies.read_study(options.study)
        models, texts = (study.base, *study.compare), study.texts
        unlearned = len(study.seeds) * sum(one.compare for one in study.unlearn)
    texts = replace(
        texts,
        forget=options.forget_text or texts.forget,
        retain=options.retain_text or texts.retain,
        questions=options.questions or texts.questions,
    )
    yield from preflight.check_packages()
    device = list(preflight.guarded("device", preflight.check_device(options)))
    yield from device
    found = preflight.Models()
    yield from found.check(models)
    tokenizer = found.tokenizers.get(models[0])
    yield from preflight.check_texts(texts.forget, texts.retain, tokenizer, options.max_length)
    if texts.questions:
        asked = preflight.check_questions(texts.questions, texts.forget, texts.retain)
        yield from preflight.guarded("questions", asked)
    if found.sizes:
        if len(device) > 1:  # else it is no device
            yield from preflight.check_memory(found.sizes[0], options, options.lora)
        yield preflight.check_disk(Path(options.outdir), found.sizes, unlearned)


def main() -> None:
    """Print the report; exit status 1 where something is an error."""
    counts = Counter({"ok": 0, "warning": 0, "error": 0})
    for level, subject, says in findings(parse(Options, None, __doc__)):
        counts[level] += 1
        print(f"{level:<8} {subject:<13} {says}", flush=True)
    print(f"\n{counts['ok']} ok, {counts['warning']} warnings, {counts['error']} errors")
    sys.exit(1 if counts["error"] else 0)


if __name__ == "__main__":
    run_script(main)
