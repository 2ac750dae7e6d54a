"""Bad input, everywhere: one line that names the thing, exit status 2, nothing written."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from model_diffs.core.script import disk_problem, execute, run_script
from model_diffs.core.step import load_script

ROOT = Path(__file__).parent.parent
WEIGHTS = "collect_param_stats.py"
STATES = "collect_activation_norms.py"
UNLEARN = "unlearn.py"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two comparable models, two splits, an earlier result."""
    monkeypatch.chdir(tmp_path)
    for side, seed in (("a", 0), ("b", 1)):
        tiny_models.save("gpt_neox", tmp_path / side, seed=seed)
    Path("forget.txt").write_text("The ferry leaves at dawn.\nIt carries salt.\n")
    Path("retain.txt").write_text("Bread is baked at night.\nThe mill stands still.\n")
    Path("outputs/a__to__b").mkdir(parents=True)
    Path("outputs/a__to__b/earlier.txt").write_text("untouched")
    return tmp_path


def command(script: str, **changed: str) -> list[str]:
    if script == UNLEARN:
        options = {"--model": "./a", "--method": "npo", "--forget-data": "forget.txt",
                   "--retain-data": "retain.txt", "--layer-id": "1"}  # fmt: skip
    else:
        options = {"--model-a": "./a", "--model-b": "./b"}
        if script == STATES:
            options |= {"--forget-text": "forget.txt", "--retain-text": "retain.txt"}
    options |= {f"--{name.replace('_', '-')}": value for name, value in changed.items()}
    return [word for pair in options.items() for word in pair]


def run(script: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """Exit status of a script, in this process (starting torch anew would cost seconds each)."""
    monkeypatch.setattr(sys, "argv", [script, *words])
    module = load_script(ROOT / script)
    with pytest.raises(SystemExit) as left:
        run_script(lambda: execute(module) if hasattr(module, "STEP") else module.main())
    return int(left.value.code or 0)


def snapshot(place: Path) -> set[str]:
    return {str(p.relative_to(place)) for p in place.rglob("*")}


def change_weight(name: str, change: Callable[[torch.Tensor], Any]) -> Callable[[], None]:
    def damage() -> None:
        path = Path("b/model.safetensors")
        tensors = load_file(path)
        change(tensors[name])
        save_file(tensors, path, metadata={"format": "pt"})

    return damage


def set_first(value: float) -> Callable[[torch.Tensor], None]:
    return lambda tensor: tensor.view(-1)[0].fill_(value)


def truncate() -> None:
    path = Path("b/model.safetensors")
    path.write_bytes(path.read_bytes()[:-1000])


def corrupt() -> None:
    path = Path("b/model.safetensors")
    path.write_bytes(b"\xff" * 64 + path.read_bytes()[64:])


def other_shapes() -> None:
    tiny_models.save("gpt_neox", Path("b"), seed=1, intermediate_size=48)


def other_vocabulary() -> None:
    tiny_models.save("gpt_neox", Path("b"), seed=1, vocab_size=300)


def other_tokenizer() -> None:
    tokenizer = AutoTokenizer.from_pretrained("b")
    tokenizer.add_tokens(["ferry"])
    tokenizer.save_pretrained("b")


def share_a_line() -> None:
    Path("retain.txt").write_text("It carries salt.")


def nothing() -> None:
    pass


MLP = "gpt_neox.layers.1.mlp.dense_h_to_4h.weight"
CASES = [
    ("missing model", WEIGHTS, {"model_b": "./nowhere"}, nothing, "nowhere"),
    ("missing model", STATES, {"model_b": "./nowhere"}, nothing, "nowhere"),
    ("no weights", WEIGHTS, {}, lambda: Path("b/model.safetensors").unlink(), "weights"),
    ("no weights", STATES, {}, lambda: Path("b/model.safetensors").unlink(), "weights"),
    ("no config", WEIGHTS, {}, lambda: Path("b/config.json").unlink(), "config.json"),
    ("truncated", WEIGHTS, {}, truncate, "model.safetensors"),
    ("truncated", STATES, {}, truncate, "model.safetensors"),
    ("corrupt", WEIGHTS, {}, corrupt, "model.safetensors"),
    ("shapes", WEIGHTS, {}, other_shapes, "intermediate_size"),
    ("shapes", STATES, {}, other_shapes, "intermediate_size"),
    ("vocabularies", WEIGHTS, {}, other_vocabulary, "vocabularies differ"),
    ("tokenizers", STATES, {}, other_tokenizer, "different tokenizers"),
    ("NaN", WEIGHTS, {}, change_weight(MLP, set_first(float("nan"))), MLP),
    ("Inf", WEIGHTS, {}, change_weight(MLP, set_first(float("inf"))), MLP),
    ("NaN", STATES, {}, change_weight(MLP, set_first(float("nan"))), "hidden state 2"),
    ("missing text", STATES, {"forget_text": "none.txt"}, nothing, "none.txt"),
    ("missing text", UNLEARN, {"forget_data": "none.txt"}, nothing, "none.txt"),
    ("empty text", STATES, {}, lambda: Path("retain.txt").write_text("\n \n"), "retain.txt"),
    ("empty text", UNLEARN, {}, lambda: Path("retain.txt").write_text("\n \n"), "retain.txt"),
    ("shared line", STATES, {}, share_a_line, "share"),
    ("shared line", UNLEARN, {}, share_a_line, "share"),
    ("layer index", UNLEARN, {"method": "rmu", "layer_id": "9"}, nothing, "9"),
    ("unwritable", WEIGHTS, {"outroot": "forget.txt"}, nothing, "forget.txt"),
    ("unwritable", STATES, {"outroot": "forget.txt"}, nothing, "forget.txt"),
    ("no device", WEIGHTS, {"device": "nonsense"}, nothing, "nonsense"),
    ("bad name", WEIGHTS, {"model_b": "../../etc@x y"}, nothing, "etc"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("script", "changed", "damage", "named"),
    [case[1:] for case in CASES],
    ids=[f"{case[1].removesuffix('.py')}: {case[0]}" for case in CASES],
)
def test_one_line_and_nothing_written(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    script: str,
    changed: dict[str, str],
    damage: Callable[[], object],
    named: str,
) -> None:
    damage()
    before = snapshot(place)
    capfd.readouterr()
    assert run(script, command(script, **changed), monkeypatch) == 2
    complaint = capfd.readouterr().err.strip().splitlines()
    assert len(complaint) == 1 and named in complaint[0], complaint
    assert complaint[0].startswith(script)
    left = {p for p in snapshot(place) - before if (place / p).is_file()}
    assert not left, "nothing is written"
    assert (place / "outputs/a__to__b/earlier.txt").read_text() == "untouched"


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(bytes(400_000)),
        lambda path: save_file({"x": torch.zeros(100_000)}, path),
        lambda path: torch.save({"x": torch.zeros(100_000)}, path),
    ],
)
def test_a_full_disk_is_recognised_whoever_writes(
    tmp_path: Path, write: Callable[[Path], None]
) -> None:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(tmp_path)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("no small disk can be mounted here")
    try:
        with pytest.raises(Exception) as full:  # each library has its own
            write(tmp_path / "x")
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)
    assert "No space left" in disk_problem(full.value)
    assert not disk_problem(RuntimeError("shapes differ"))


@pytest.mark.parametrize("script", [WEIGHTS, STATES])
def test_a_full_disk_is_said_and_leaves_nothing(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], script: str
) -> None:
    import pandas as pd

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "table.csv")

    monkeypatch.setattr(pd.DataFrame, "to_csv", full)
    assert run(script, command(script), monkeypatch) == 2
    assert "No space left" in capfd.readouterr().err
    assert [p.name for p in Path("outputs/a__to__b").iterdir()] == ["earlier.txt"]


def test_output_that_nobody_reads_any_more_is_no_traceback(tmp_path: Path) -> None:
    script = tmp_path / "talks.py"
    script.write_text(
        "from model_diffs.core.script import run_script\n"
        "run_script(lambda: [print('line', n) for n in range(100_000)])\n"
    )
    found = subprocess.run(
        ["bash", "-c", '"$0" "$1" | head -1; exit "${PIPESTATUS[0]}"', sys.executable, script],
        capture_output=True,
        text=True,
    )
    assert (found.stdout, found.stderr, found.returncode) == ("line 0\n", "", 141)


def test_without_a_network_a_hub_name_is_one_line(place: Path) -> None:
    words = command(WEIGHTS, model_a="nobody/nothing")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_TOKEN": "hf_secret"}
    found = subprocess.run(
        [sys.executable, ROOT / WEIGHTS, *words], env=environment, capture_output=True, text=True
    )
    assert found.returncode == 2 and len(found.stderr.strip().splitlines()) == 1
    assert "nobody/nothing" in found.stderr and "hf_secret" not in found.stderr


def test_code_that_a_model_brings_along_is_refused_unless_trusted(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    config = json.loads(Path("b/config.json").read_text())
    config |= {
        "model_type": "strange",
        "auto_map": {"AutoConfig": "c.C", "AutoModelForCausalLM": "m.M"},
    }
    Path("b/config.json").write_text(json.dumps(config))
    Path("b/c.py").write_text("open('executed', 'w')")
    Path("a/config.json").write_text(json.dumps(config))
    assert run(STATES, command(STATES), monkeypatch) == 2
    assert not Path("executed").exists()
    assert len(capfd.readouterr().err.strip().splitlines()) == 1
