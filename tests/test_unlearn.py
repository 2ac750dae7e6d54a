"""unlearn.py from end to end on a tiny model: what it leaves and refuses, several processes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import unlearn
from model_diffs.core import script
from model_diffs.core.command_line import parse
from model_diffs.core.errors import BadInput
from model_diffs.core.methods import TRAINED
from model_diffs.unlearning import saving
from model_diffs.unlearning.settings import Options

ROOT = Path(__file__).parent.parent
FORGET = [f"the agent {name} hides in {place}" for name in "abc" for place in ("x", "yonder", "zz")]
RETAIN = [f"town {name} lies by river {river}" for name in "defg" for river in ("Ob", "Po")]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save("gpt_neox", tmp_path_factory.mktemp("base") / "base")


@pytest.fixture
def texts(tmp_path: Path) -> list[str]:
    (tmp_path / "forget.txt").write_text("\n".join(FORGET))
    (tmp_path / "retain.txt").write_text("\n".join(RETAIN))
    return [
        *("--forget-text", str(tmp_path / "forget.txt")),
        *("--retain-text", str(tmp_path / "retain.txt")),
    ]


def command(base: Path, method: str, outdir: Path, *more: str) -> list[str]:
    return [
        *("--model", str(base), "--method", method, "--outdir", str(outdir)),
        *("--layer-id", "0,1", "--lr", "1e-3", "--device", "cpu"),
        *more,
    ]


def execute(argv: list[str]) -> Path:
    """Run the step on these words, in this process."""
    script.execute(unlearn, argv)
    return unlearn.planned_runs(parse(Options, argv, None))[0].folder


def questions_file(folder: Path) -> Path:
    line = {
        "id": "q1",
        "domain": "hazard",
        "entity": "a",
        "relation": "place",
        "fold": None,
        "prompt": "the agent a hides in",
        "choices": ["x", "zz", "Ob", "Po"],
        "answer": 0,
    }
    path = folder / "questions.jsonl"
    path.write_text(json.dumps(line))
    return path


@pytest.mark.parametrize("method", TRAINED)
def test_every_method_leaves_an_ordinary_model(
    method: str, base: Path, texts: list[str], tmp_path: Path
) -> None:
    own = {"refusal": ["--text", texts[1]], "noise_distil": ["--teacher", str(base)]}
    folder = execute(command(base, method, tmp_path / "out", *texts, *own.get(method, [])))
    loaded, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert loaded.dtype == torch.float32
    assert AutoTokenizer.from_pretrained(folder)("a b")["input_ids"]
    before, after = (load_file(f / "model.safetensors") for f in (base, folder))
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    record = json.loads((folder / "unlearning.json").read_text())
    assert len(record["losses"]) == record["steps"]
    assert record["arguments"]["method"] == method
    assert record["before"]["forget_NLL"] != record["after"]["forget_NLL"]
    assert record["texts"]["forget"]["trained_on"] + record["texts"]["forget"]["held_out"] == 9
    assert method in (folder / "README.md").read_text()
    kept = json.loads((folder / "run.json").read_text())
    assert {"models", "texts", "device", "dtype", "seed"} <= kept.keys()
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_same_seed_gives_the_same_bytes(base: Path, texts: list[str], tmp_path: Path) -> None:
    files = [
        execute(command(base, "rmu", tmp_path / name, *texts)) / "model.safetensors"
        for name in ("one", "two")
    ]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_complete_runs_are_skipped(
    base: Path, texts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = command(base, "ga", tmp_path / "out", *texts)
    execute(argv)
    written = (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns
    capsys.readouterr()
    execute(argv)
    assert "complete, skipped" in capsys.readouterr().out
    assert (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns == written


def test_questions_and_norms_are_recorded(
    base: Path, texts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--questions", str(questions_file(tmp_path)), "--steering-coeff", "auto")
    folder = execute(command(base, "rmu", tmp_path / "out", *texts, *more))
    record = json.loads((folder / "unlearning.json").read_text())
    for when in ("before", "after"):
        assert record[when]["hazard_accuracy"] in (0.0, 1.0)
    norms = record["hidden_norms"]["before"]["forget"]
    assert record["settings"]["steering"] == pytest.approx([2 * norm for norm in norms])
    assert "mean ‖h‖ after blocks 0, 1, forget" in capsys.readouterr().out
    assert "hazard_accuracy" in (folder / "README.md").read_text()


def test_saved_dtype_is_that_of_the_base_by_default(texts: list[str], tmp_path: Path) -> None:
    half = tiny_models.save("llama", tmp_path / "half", dtype="bfloat16")
    folder = execute(command(half, "npo", tmp_path / "out", *texts))
    assert {t.dtype for t in load_file(folder / "model.safetensors").values()} == {torch.bfloat16}
    folder = execute(command(half, "npo", tmp_path / "full", *texts, "--save-dtype", "fp32"))
    assert {t.dtype for t in load_file(folder / "model.safetensors").values()} == {torch.float32}


def test_tied_weights_stay_tied(texts: list[str], tmp_path: Path) -> None:
    tied = tiny_models.save("qwen2", tmp_path / "tied")
    folder = execute(command(tied, "ga", tmp_path / "out", *texts))
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.lm_head.weight.data_ptr() == loaded.model.embed_tokens.weight.data_ptr()


WARNINGS = [
    ("npo", ["--grad-accum-steps", "2"], "a step averages 2 batches"),
    ("npo", ["--dtype", "bf16"], "weights are trained in bf16"),
    ("npo", ["--eval-split", "0"], "measures no NLL"),
    ("cb", ["--steering-coeff", "7"], "has no effect on cb"),
]


@pytest.mark.parametrize(("method", "more", "says"), WARNINGS)
def test_warns_once_of_settings_that_change_what_a_run_means(
    method: str,
    more: list[str],
    says: str,
    base: Path,
    texts: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    execute(command(base, method, tmp_path / "out", *texts, *more))
    lines = capsys.readouterr().err.splitlines()
    (line,) = [line for line in lines if says in line]
    assert line.startswith("warning: ")


# ── what is refused ───────────────────────────────────────────────────────────────────────────────

REFUSED: list[tuple[str, list[str], str]] = [
    ("rmu", ["--layer-id", "0,9"], "--layer-id 9: the model has blocks 0 to 2"),
    ("cb_lat", ["--lat-layer", "2"], "--lat-layer 2 lies above"),
    ("npo", ["--trainable", "nowhere"], "--trainable"),
    ("npo", ["--forget-text", "{tmp}/none.txt"], "--forget-text"),
    ("npo", ["--forget-text", "{tmp}/empty.txt"], "no text in it"),
    ("npo", ["--retain-text", "{tmp}/forget.txt"], "share"),
    ("npo", ["--model", "{tmp}"], "config.json"),
    ("npo", ["--questions", "{tmp}/none.jsonl"], "--questions"),
    ("npo", ["--max-samples", "1"], "--eval-split 0"),
]


@pytest.mark.parametrize(("method", "more", "says"), REFUSED)
def test_bad_input_is_one_line_and_leaves_nothing(
    method: str, more: list[str], says: str, base: Path, texts: list[str], tmp_path: Path
) -> None:
    (tmp_path / "empty.txt").write_text("\n\n")
    more = [word.format(tmp=tmp_path) for word in more]
    with pytest.raises(BadInput) as raised:
        execute(command(base, method, tmp_path / "out", *texts, *more))
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not [p for p in tmp_path.iterdir() if "out" in p.name]


def test_unknown_method_is_refused_with_status_2(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        parse(Options, command(base, "hypnosis", tmp_path), None)
    assert raised.value.code == 2
    assert "no method 'hypnosis'; there are ga_simple, ga" in capsys.readouterr().err


def test_lora_without_peft_names_the_extra_to_install(
    base: Path, texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(BadInput, match="uv sync --extra lora"):
        execute(command(base, "npo", tmp_path / "out", *texts, "--lora-rank", "2"))


def test_lora_changes_weights_by_a_low_rank(base: Path, texts: list[str], tmp_path: Path) -> None:
    pytest.importorskip("peft")
    folder = execute(command(base, "rmu", tmp_path / "out", *texts, "--lora-rank", "2"))
    before, after = (load_file(f / "model.safetensors") for f in (base, folder))
    assert before.keys() == after.keys()
    changed = [n for n in before if not torch.equal(before[n], after[n])]
    assert changed
    for name in changed:
        sigma = torch.linalg.svdvals((after[name] - before[name]).double())
        assert float(sigma[2] / sigma[0]) < 1e-4


def test_full_disk_is_bad_input_and_leaves_nothing(
    base: Path, texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors import SafetensorError

    def full(*args: Any, **kwargs: Any) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(tiny_models_class(), "save_pretrained", full)
    with pytest.raises(BadInput, match="No space left"):
        execute(command(base, "ga", tmp_path / "out", *texts))
    assert not [p for p in tmp_path.iterdir() if "out" in p.name]


def tiny_models_class() -> Any:
    from transformers import PreTrainedModel

    return PreTrainedModel


def test_too_little_disk_space_is_refused_before_training(
    base: Path, texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 1000

    monkeypatch.setattr(saving.shutil, "disk_usage", lambda folder: Usage)
    with pytest.raises(BadInput, match="make room"):
        execute(command(base, "ga", tmp_path / "out", *texts))


# ── a run that is killed ──────────────────────────────────────────────────────────────────────────


KILLED_AFTER_SAVING = """
import os, signal, sys
import torch
import unlearn
from model_diffs.core import script
from model_diffs.unlearning import checkpointing

def save_and_die(*state, save=checkpointing.save_state):
    save(*state)
    os.kill(os.getpid(), signal.SIGKILL)

torch.set_num_threads(1)
checkpointing.save_state = save_and_die
script.execute(unlearn, sys.argv[1:])
"""


@pytest.mark.study
def test_killed_run_resumes_and_ends_at_the_same_bytes(
    base: Path, texts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = (*texts, "--batch-size", "2", "--epochs", "3", "--checkpoint-every", "2")
    undisturbed = execute(command(base, "npo", tmp_path / "undisturbed", *more))
    argv = command(base, "npo", tmp_path / "out", *more)
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_AFTER_SAVING, *argv],
        cwd=ROOT,
        env={**plain_environment(), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
    )
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    capsys.readouterr()
    assert execute(argv) == tmp_path / "out"
    assert "resumed after step 2" in capsys.readouterr().out
    files = [folder / "model.safetensors" for folder in (undisturbed, tmp_path / "out")]
    assert files[0].read_bytes() == files[1].read_bytes()
    records = [json.loads((f.parent / "unlearning.json").read_text()) for f in files]
    assert records[0]["losses"] == records[1]["losses"]
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".out")]


# ── several processes ─────────────────────────────────────────────────────────────────────────────

# (family, method, whether weights are sharded)
LAUNCHED = [
    ("gpt_neox", "npo", True),
    ("gpt_neox", "rmu", True),
    ("gpt2", "lat", True),  # tied weights, and backward passes inside a forward pass
    ("gpt_neox", "npo", False),
    ("gpt_neox", "rmu", False),
]


def plain_environment() -> dict[str, str]:
    """This process's environment without what accelerate or wandb would read."""
    steering = ("ACCELERATE", "FSDP", "WANDB")
    return {k: v for k, v in os.environ.items() if not k.startswith(steering)}


@pytest.fixture(scope="module")
def launched(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one/ and two/: each job on one process and on two, the same global batch."""
    folder = tmp_path_factory.mktemp("launched")
    tiny_models.save("gpt2", folder / "gpt2")
    (folder / "forget.txt").write_text("\n".join(FORGET))
    (folder / "retain.txt").write_text("\n".join(RETAIN))
    texts = [
        *("--forget-text", str(folder / "forget.txt")),
        *("--retain-text", str(folder / "retain.txt")),
        *("--questions", str(questions_file(folder))),
    ]
    jobs = []
    for family, method, sharded in LAUNCHED:
        model = base if family == "gpt_neox" else folder / family
        name = f"{family}_{method}_{sharded}"
        argv = command(model, method, folder / "two" / name, *texts, "--batch-size", "2")
        jobs.append([sharded, argv])
        one = folder / "one" / f"{family}_{method}"
        if not one.exists():
            execute(command(model, method, one, *texts, "--batch-size", "4"))
    (folder / "jobs.json").write_text(json.dumps(jobs))
    words = ["launch", "--use_fsdp", "--fsdp_version", "2", "--num_processes", "2"]
    words += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    words += ["--main_process_port", "0", str(ROOT / "tests/unlearning_jobs.py")]
    cli = [sys.executable, "-m", "accelerate.commands.accelerate_cli"]
    done = subprocess.run(
        [*cli, *words, str(folder / "jobs.json")],
        cwd=ROOT,
        env={**plain_environment(), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.study
@pytest.mark.xdist_group("launched")  # the fixture is made once
@pytest.mark.parametrize(("family", "method", "sharded"), LAUNCHED)
def test_two_processes_give_the_model_of_one_process(
    family: str, method: str, sharded: bool, launched: Path
) -> None:
    one, two = (
        launched / "one" / f"{family}_{method}",
        launched / "two" / f"{family}_{method}_{sharded}",
    )
    single, record = (json.loads((f / "unlearning.json").read_text()) for f in (one, two))
    assert (record["processes"], record["sharded"]) == (2, sharded)
    a, b = (load_file(f / "model.safetensors") for f in (one, two))
    assert {n: t.shape for n, t in a.items()} == {n: t.shape for n, t in b.items()}
    assert max(float((a[name] - b[name]).abs().max()) for name in a) < 1e-4
    for mine, theirs in zip(single["losses"], record["losses"], strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
    assert single["after"] == pytest.approx(record["after"], rel=1e-4)
    _, report = AutoModelForCausalLM.from_pretrained(two, output_loading_info=True)
    assert not report["missing_keys"]


@pytest.mark.parametrize(
    "words", ["--checkpoint-every 2", "--lora-rank 2", "--optimizer adafactor"]
)
def test_options_incompatible_with_sharded_weights_are_refused(
    words: str, base: Path, texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("WORLD_SIZE", "2")
    chosen = parse(Options, command(base, "npo", tmp_path / "out", *texts, *words.split()), None)
    with pytest.raises(BadInput, match="and sharded weights do not go together"):
        unlearn.main(chosen, unlearn.planned_runs(chosen))
