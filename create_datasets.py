"""Step 3. The texts of the published study: what is to be forgotten, and what is to be kept.

Forget samples are questions of WMDP-bio (Li et al. 2024), retain samples lines of WikiText-2 raw,
500 of each, drawn with a seed, no line in both. Either can come from a file of yours instead: text
with one sample per line, .jsonl, or a .json list.

    uv run create_datasets.py
    uv run create_datasets.py --forget-source forget.jsonl --retain-source retain.txt --samples 0

Writes <outdir>/forget.txt, <outdir>/retain.txt (one sample per line) and <outdir>/datasets.json
(source, revision, counts, hashes). Files there that this script did not write are not replaced.
"""

import argparse
import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from model_diffs.core import arguments, folders, results
from model_diffs.core.errors import BadInput
from model_diffs.core.results import PlannedRun

if TYPE_CHECKING:
    from model_diffs.data.sample_sources import Samples

FOLDER = ".datasets"
FILES = ("forget.txt", "retain.txt", "datasets.json")


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = arguments.new_parser(__doc__)
    group = parser.add_argument_group("sources")
    group.add_argument("--forget-source", default=None, help="a file in place of WMDP-bio")
    group.add_argument("--retain-source", default=None, help="a file in place of WikiText-2")
    group.add_argument(
        "--text-field", default=None, help="of JSON objects; text or question if none"
    )
    group.add_argument("--forget-revision", default=None, help="commit or tag of cais/wmdp")
    group.add_argument(
        "--retain-revision", default=None, help="commit or tag of Salesforce/wikitext"
    )
    group.add_argument(
        "--with-answers", action="store_true", help="WMDP-bio: put the right choice behind it"
    )
    group.add_argument(
        "--samples", type=arguments.natural, default=500, help="of each split; 0 = all there are"
    )
    group = parser.add_argument_group("run")
    group.add_argument("--outdir", default="data", help="folder of the three files")
    group.add_argument("--seed", type=int, default=42, help="of the choice of samples")
    group.add_argument(
        "--force", action="store_true", help="make them again; replace files of other origin"
    )
    return parser.parse_args(argv)


def planned_runs(options: argparse.Namespace) -> list[PlannedRun]:
    """The record `<outdir>/.datasets/`; the folder around it holds other things too.

    A file that is gone makes no result stale elsewhere; here it is what the step is for, so what
    is missing stands among the arguments.
    """
    outdir = Path(options.outdir)
    made = (outdir / FOLDER / results.RECORD).exists()
    missing = [name for name in FILES if made and not (outdir / name).exists()]
    decide = {**arguments.recorded(options), "missing": missing}
    return [PlannedRun(outdir / FOLDER, "data sets", decide)]


def check_not_foreign(outdir: Path) -> None:
    """Raise BadInput where a file that would be replaced is not what this script wrote."""
    try:
        written = json.loads((outdir / FOLDER / "datasets.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        written = {}
    for name in FILES[:2]:
        path = outdir / name
        if not path.is_file():
            continue
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest != written.get(path.stem, {}).get("sha256_of_text_file"):
            raise BadInput(
                f"{path} was not written by this script, or was changed since: move it away, or "
                "replace it with --force"
            )


def read_samples(options: argparse.Namespace) -> "dict[str, Samples]":
    """Both splits, chosen so that no line is in both."""
    from model_diffs.data import sample_sources as sources

    if options.forget_source:
        forget = sources.from_file(Path(options.forget_source), options.text_field)
    else:
        text_of = sources.answered_question if options.with_answers else sources.question_text
        wmdp = sources.WMDP._replace(revision=options.forget_revision)
        forget = sources.from_hub(wmdp, text_of)
    if options.retain_source:
        retain, least = sources.from_file(Path(options.retain_source), options.text_field), 0
    else:
        wikitext = sources.WIKITEXT._replace(revision=options.retain_revision)
        retain = sources.from_hub(wikitext, sources.article_text)
        least = sources.LEAST_CHARACTERS
    kept = sources.choose(forget, options.samples, options.seed)
    # Against all forget texts of the source, not only the chosen: what is held out is apart, too.
    everything = [sources.one_line(text) for text in forget.texts]
    return {
        "forget": kept,
        "retain": sources.choose(retain, options.samples, options.seed, everything, least),
    }


def write_whole(path: Path, content: bytes) -> None:
    """Write a file beside its place and rename it there."""
    partial = path.with_name(f".{path.name}.{os.getpid()}{folders.PARTIAL}")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def make(run: results.Run, options: argparse.Namespace) -> None:
    """Choose the samples and write the three files, then note them for later comparison."""
    outdir, facts = Path(options.outdir), {}
    files = {}
    for split, samples in read_samples(options).items():
        files[f"{split}.txt"] = ("\n".join(samples.texts) + "\n").encode()
        digest = hashlib.sha256(files[f"{split}.txt"]).hexdigest()
        facts[split] = {**samples.facts, "sha256_of_text_file": digest}
        if options.samples and len(samples.texts) < options.samples:
            print(
                f"warning: {split}: {len(samples.texts)} samples, {options.samples} were asked for",
                file=sys.stderr,
            )
    run.document("datasets", {**facts, "seed": options.seed})
    files["datasets.json"] = (run.path / "datasets.json").read_bytes()
    for name, content in files.items():
        write_whole(outdir / name, content)
    run.reads(*(outdir / name for name in FILES))
    run.reads(*(path for path in (options.forget_source, options.retain_source) if path))
    run.record(texts=facts, seed=options.seed)
    print(", ".join(f"{outdir / split}.txt: {facts[split]['samples']} samples" for split in facts))


def main() -> None:
    """Make the files, unless they are there."""
    options = parse_arguments()
    for planned in results.pending(planned_runs(options), options.force):
        if not options.force:
            check_not_foreign(Path(options.outdir))
        whole = dataclasses.replace(planned, arguments={**planned.arguments, "missing": []})
        with results.open_run(whole) as run:
            make(run, options)


if __name__ == "__main__":
    arguments.run_script(main)
