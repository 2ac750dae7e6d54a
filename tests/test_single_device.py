"""Every script on a device that has no fp64, with the numbers of the CPU."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import single_device
import tiny_study
import torch

from model_diffs.core import script
from model_diffs.core.methods import METHODS
from model_diffs.core.step import load_script, load_steps

pytestmark = pytest.mark.study  # a minute for all
ROOT = Path(__file__).parents[1]
DEVICE = ("--device", single_device.NAME)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tiny_study.Study:
    single_device.install()
    found = tiny_study.make(tmp_path_factory.mktemp("single"), "llama")
    text = tiny_study.questions(found.root / "questions.jsonl", 24).read_text()
    for fold in ("heldout", "tune", "attack"):
        text = text.replace('"fold": null', f'"fold": "{fold}"', 5)
    (found.root / "questions.jsonl").write_text(text)
    return found


def tables(folder: Path) -> dict[str, pd.DataFrame]:
    return {
        path.relative_to(folder).as_posix(): pd.read_csv(path) for path in folder.rglob("*.csv")
    }


def equal(a: pd.DataFrame, b: pd.DataFrame) -> bool:
    if [*a] != [*b] or len(a) != len(b):
        return False
    numbers = a.select_dtypes("number").columns
    rest = [column for column in a if column not in numbers]
    return a[rest].equals(b[rest]) and np.allclose(
        a[numbers], b[numbers], rtol=1e-4, atol=1e-5, equal_nan=True
    )


def run_on(study: tiny_study.Study, device: str, name: str, words: Sequence[str]) -> Path:
    outroot = study.root / device
    script.execute(
        load_script(ROOT / name), [*words, "--outroot", str(outroot), "--device", device]
    )
    return outroot


def test_the_device_refuses_what_a_mac_refuses() -> None:
    single_device.install()
    x = torch.ones(3, 2, device=single_device.NAME)
    assert (x.cpu().double() @ torch.ones(2, dtype=torch.float64)).tolist() == [2, 2, 2]
    with pytest.raises(TypeError):
        x.double()
    with pytest.raises(TypeError):
        x.to("cpu", torch.float64)
    with pytest.raises(TypeError):
        torch.zeros(2, dtype=torch.float64, device=single_device.NAME)
    with pytest.raises(RuntimeError):
        x + torch.ones(3, 2)
    weight = torch.ones(2, 2, device=single_device.NAME, requires_grad=True)
    (x @ weight).square().sum().backward()
    assert weight.grad is not None and weight.grad.cpu().tolist() == [[12, 12], [12, 12]]


MORE = {
    "local_lipschitzness_analysis.py": ["--num-perturbations", "2", "--max-iters", "4"],
    "linear_probe_analysis.py": ["--folds", "2", "--max-iter", "20"],
    "relearn.py": ["--lr", "1e-3", "--steps", "4", "--eval-steps", "0,4", "--batch-size", "4"],
    "collect_param_stats.py": ["--empirical-rank"],
}
STEPS = [
    one for one in load_steps() if one.step.scope in ("comparison", "model")
    and one.accepts("device") and "dictionary" not in one.step.needs
]  # fmt: skip


@pytest.mark.parametrize("name", [one.name for one in STEPS])
def test_steps_give_the_numbers_of_the_cpu(study: tiny_study.Study, name: str) -> None:
    (step,) = (one for one in STEPS if one.name == name)
    words = {"model_a": ["--model-a", study.model_a, "--model-b", study.model_b]}
    words |= {"model": ["--model", study.model_a, study.model_b]}
    words |= {
        s + "_text": [f"--{s}-text", str(study.root / f"{s}.txt")] for s in ("forget", "retain")
    }
    words |= {"questions": ["--questions", str(study.root / "questions.jsonl")]}
    words |= {"base": ["--base", study.model_a]}
    given = [word for field, own in words.items() if step.accepts(field) for word in own]
    found = [run_on(study, device, name, [*given, *MORE.get(name, [])])
             for device in ("cpu", single_device.NAME)]  # fmt: skip
    expected, got = (
        {k: t for k, t in tables(root).items() if step.step.folder in k} for root in found
    )
    assert expected and expected.keys() == got.keys()
    assert [key for key in expected if not equal(expected[key], got[key])] == []


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains(study: tiny_study.Study, method: str) -> None:
    words = [
        "--model",
        study.model_a,
        "--method",
        method,
        "--outdir",
        str(study.root / "made" / method),
    ]
    words += ["--forget-text", str(study.root / "forget.txt"), *DEVICE]
    words += ["--retain-text", str(study.root / "retain.txt"), "--batch-size", "8"]
    if method in ("rmu", "cb", "lat", "cb_lat"):
        words += ["--layer-id", "0,1"]
    if method == "noise":
        words += ["--like", study.model_b]
    if method == "finetune":
        words += ["--text", str(study.root / "retain.txt")]
    script.execute(load_script(ROOT / "unlearn.py"), words)
    assert list((study.root / "made" / method).glob("*.safetensors"))


def test_dictionaries_and_importance(study: tiny_study.Study) -> None:
    texts = [str(study.root / f"{split}.txt") for split in ("forget", "retain")]
    folder = str(study.root / "dictionary")
    words = ["--model", study.model_a, "--dataset", *texts, "--layer", "1", "--k", "2"]
    script.execute(load_script(ROOT / "train_itda.py"), [*words, "--outdir", folder, *DEVICE])
    words = ["--model-a", study.model_a, "--model-b", study.model_b, "--itda", folder]
    words += ["--dataset", *texts]
    run_on(study, single_device.NAME, "diff.py", words)


@pytest.mark.parametrize("by", ["values", "gradients"])
def test_importance_of_dimensions(study: tiny_study.Study, by: str) -> None:
    words = ["--model_name", study.model_a, "--dataset", str(study.root / "forget.txt")]
    words += ["--aggregate_by", by, "--save_outputs", "--outroot", str(study.root / by), *DEVICE]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["layer_gradient_analysis.py", *words])
        module = load_script(ROOT / "important_acts_ftrs" / "layer_gradient_analysis.py")
        with pytest.raises(SystemExit) as left:
            script.run_script(module.main)
    assert left.value.code == 0
