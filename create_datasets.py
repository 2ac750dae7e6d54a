"""Step 3. The texts of the published study: what is to be forgotten, and what is to be kept.

Forget samples are questions of WMDP-bio (Li et al. 2024), retain samples lines of WikiText-2 raw,
500 of each, drawn with a seed, no line in both. Either can come from a file of yours instead: text
with one sample per line, .jsonl, or a .json list.

    uv run create_datasets.py
    uv run create_datasets.py --forget-source forget.jsonl --retain-source retain.txt --samples 0

Writes <outdir>/forget.txt, <outdir>/retain.txt (one sample per line) and <outdir>/datasets.json
(source, revision, counts, hashes). Files there that this script did not write are not replaced.
"""

import dataclasses
import hashlib
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from model_diffs.core import folders
from model_diffs.core.errors import BadInput
from model_diffs.core.options import natural, option, recorded, seedable
from model_diffs.core.results import RECORD, PlannedRun, Run, open_run
from model_diffs.core.script import run_step
from model_diffs.core.step import Step

if TYPE_CHECKING:
    from model_diffs.data.text_sources import Samples

STEP = Step(
    number=3,
    folder=".datasets",
    question="Which texts are to be forgotten, and which are to be kept?",
    scope="other",
)
FILES = ("forget.txt", "retain.txt", "datasets.json")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Sources and output."""

    forget_source: str | None = option(None, "a file in place of WMDP-bio")
    retain_source: str | None = option(None, "a file in place of WikiText-2")
    text_field: str | None = option(
        None, "field of JSON objects that holds the text; by default text, question or prompt"
    )
    forget_revision: str | None = option(None, "commit or tag of cais/wmdp")
    retain_revision: str | None = option(None, "commit or tag of Salesforce/wikitext")
    with_answers: bool = option(False, "WMDP-bio: append the correct choice to its question")
    samples: int = option(500, "samples per split; 0 = all", check=natural)
    seed: int = option(42, "seed of the choice of samples", check=seedable)
    outdir: str = option("data", "folder of the three files", recorded=False, written=True)
    force: bool = option(
        False, "make them again, and replace files that this script did not write", recorded=False
    )


def planned_runs(options: Options) -> list[PlannedRun]:
    """The record `<outdir>/.datasets/`; the folder around it holds other files too.

    A missing output makes a result stale only inside its folder; these files lie outside, so
    those missing are compared as an argument, which is empty in every record.
    """
    outdir = Path(options.outdir)
    made = (outdir / STEP.folder / RECORD).exists()
    missing = [name for name in FILES if made and not (outdir / name).exists()]
    arguments = {**recorded(options), "missing": missing}
    return [PlannedRun(outdir / STEP.folder, "data sets", arguments)]


def check_not_foreign(outdir: Path) -> None:
    """Raise BadInput where a file that would be replaced is not what this script wrote."""
    written = folders.read_json(outdir / STEP.folder / "datasets.json")
    for path in (outdir / name for name in FILES[:2]):
        of_split = written.get(path.stem) if isinstance(written, dict) else None
        expected = of_split.get("sha256_of_text_file") if isinstance(of_split, dict) else None
        if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() != expected:
            raise BadInput(
                f"{path} was not written by this script, or was changed since: move it away, or "
                "replace it with --force"
            )


def read_samples(options: Options) -> "dict[str, Samples]":
    """Both splits, chosen so that no line is in both."""
    from model_diffs.data import text_sources as sources

    if options.forget_source:
        forget = sources.from_file(Path(options.forget_source), options.text_field)
    else:
        text_of = partial(sources.question_text, with_answer=options.with_answers)
        revision = options.forget_revision
        forget = sources.from_hub("cais/wmdp", "wmdp-bio", "test", revision, text_of)
    if options.retain_source:
        retain, shortest = sources.from_file(Path(options.retain_source), options.text_field), 0
    else:
        name, config = sources.WIKITEXT.split(":")
        revision, shortest = options.retain_revision, sources.LEAST_CHARACTERS
        retain = sources.from_hub(name, config, "train", revision, sources.article_text)
    # Retain texts are none of the source's forget texts, chosen or not.
    forbidden = [sources.one_line(text) for text in forget.texts]
    return {
        "forget": sources.choose(forget, options.samples, options.seed),
        "retain": sources.choose(retain, options.samples, options.seed, forbidden, shortest),
    }


def make(run: Run, options: Options) -> None:
    """Choose the samples, write the three files and record their hashes."""
    outdir, facts, files = Path(options.outdir), {}, {}
    for split, samples in read_samples(options).items():
        content = files[f"{split}.txt"] = ("\n".join(samples.texts) + "\n").encode()
        digest = hashlib.sha256(content).hexdigest()
        facts[split] = {**samples.facts, "sha256_of_text_file": digest}
        if len(samples.texts) < options.samples:
            print(
                f"warning: {split}: {len(samples.texts)} samples, {options.samples} were asked for",
                file=sys.stderr,
            )
    run.document("datasets", {**facts, "seed": options.seed})
    files["datasets.json"] = (run.path / "datasets.json").read_bytes()
    for name, content in files.items():
        with folders.whole_file(outdir / name) as partial:
            partial.write_bytes(content)
    run.reads(*(outdir / name for name in FILES))
    run.reads(*(path for path in (options.forget_source, options.retain_source) if path))
    run.record(texts=facts, seed=options.seed)
    print(", ".join(f"{outdir / split}.txt: {facts[split]['samples']} samples" for split in facts))


def main(options: Options, todo: list[PlannedRun]) -> None:
    """Make the files."""
    for planned in todo:
        if not options.force:
            check_not_foreign(Path(options.outdir))
        arguments = {**planned.arguments, "missing": []}
        with open_run(dataclasses.replace(planned, arguments=arguments)) as run:
            make(run, options)


if __name__ == "__main__":
    run_step(__name__)
