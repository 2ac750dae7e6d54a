"""Two tiny models, two files of texts, and a dictionary of the first model's block 1.

study = itda_study.make(tmp_path)
(found,) = itda_study.compare(study, study.model_b)
"""

import shutil
from pathlib import Path
from typing import Any

import tiny_study
from safetensors.torch import load_file, save_file

import train_itda
from model_diffs.core.script import execute
from model_diffs.dictionaries.diffing import Comparison, ModelDiffing
from model_diffs.dictionaries.options import Diffing

LAYER = 1


def make(root: Path) -> tiny_study.Study:
    """Everything under `root`, the dictionary in `itda`."""
    made = tiny_study.make(root)
    words = ["--model", made.model_a, "--layer", str(LAYER), "--k", "6", "--device", "cpu"]
    words += ["--fvu-threshold", "0.1", "--outdir", str(made.root / "itda")]
    execute(train_itda, [*words, "--dataset", *files(made)])
    return made


def files(study: tiny_study.Study) -> list[str]:
    return [str(study.root / f"{name}.txt") for name in ("forget", "retain")]


def diffing(study: tiny_study.Study, **changed: Any) -> ModelDiffing:
    options = Diffing(outroot=str(study.root), device="cpu", batch_size=7, **changed)
    return ModelDiffing(study.root / "itda", study.model_a, LAYER, options=options)


def compare(study: tiny_study.Study, *models: str, **changed: Any) -> list[Comparison]:
    opened = diffing(study, **changed)
    return opened.compare(study.model_a, models, opened.read(files(study)))


def edited(study: tiny_study.Study, name: str, change: Any) -> str:
    """A copy of model A with weights changed in place by `change(tensors)`."""
    folder = study.root / name
    shutil.copytree(study.model_a, folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)
