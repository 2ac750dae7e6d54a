"""Inputs that were read silently wrong, or not refused in one line: all of them are, now."""

import functools
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import forked
import pytest
import tiny_models
import torch
from damaged_inputs import (
    MLP,
    NORM,
    PER_LAYER,
    QUESTION,
    as_bin,
    config,
    few_positions,
    file,
    gibberish_table,
    index,
    loop,
    nothing,
    question,
    stored_as,
    weight,
    with_nan,
    without_a_weight,
)

from model_diffs.core.options import seedable
from model_diffs.core.step import load_script, load_steps

pytestmark = pytest.mark.study
TEXTS = ["--forget-text", "forget.txt", "--retain-text", "retain.txt"]
PAIR = ["--model-a", "./a", "--model-b", "./b"]
WEIGHTS = ["collect_param_stats.py", *PAIR]
STATES = ["collect_activation_norms.py", *PAIR, *TEXTS]
UNLEARN = ["unlearn.py", "--model", "./b", "--method", "npo", *TEXTS]
INFER = ["infer.py", "--model", "./b", "--prompt", "The ferry", "--greedy"]
IMPORTANCE = ["important_acts_ftrs/layer_gradient_analysis.py", "--model", "./b"]
IMPORTANCE += ["--dataset", "forget.txt"]
RELEARN = ["relearn.py", "--model", "./b", *TEXTS, "--questions", "questions.jsonl"]


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two comparable models, two splits, a question, tables, an earlier result."""
    place = tmp_path_factory.mktemp("sound")
    for side, seed in (("a", 0), ("b", 1)):
        tiny_models.save("gpt_neox", place / side, seed=seed)
    for split, line in (("forget", "The ferry leaves at {}."), ("retain", "Bread number {}.")):
        (place / f"{split}.txt").write_text("".join(f"{line.format(i)}\n" for i in range(6)))
    others = [QUESTION | {"id": fold, "fold": fold, "entity": fold} for fold in ("attack", "tune")]
    (place / "questions.jsonl").write_text("\n".join(map(json.dumps, [QUESTION, *others])))
    (place / "per_layer.csv").write_text(PER_LAYER + "0,mlp,0.1,1.5,\n1,mlp,0.2,1.5,0.3\n")
    earlier = place / "outputs/a__to__b/param_stats"
    earlier.mkdir(parents=True)
    (earlier / "run.json").write_text('{"script": "collect_param_stats.py", "arguments": {}}')
    (earlier / "per_layer.csv").write_text("earlier")
    return place


@pytest.fixture
def place(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(sound, tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")
    return tmp_path / "place"


def contents(place: Path) -> dict[str, str]:
    """Every file with the hash of its bytes."""
    return {
        str(path.relative_to(place)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in place.rglob("*")
        if path.is_file()
    }


GPTQ = config(quantization_config={"quant_method": "gptq", "bits": 4})
BNB = config(quantization_config={"load_in_4bit": True, "quant_method": "bitsandbytes"})
AWQ = config(text_config={}, quantization_config={"quant_method": "awq"})
DRAW = ["plot_param_stats.py", "--per-layer-csv", "per_layer.csv", "--outdir", "drawn"]

Case = tuple[str, list[str], Callable[[], object], str]
CASES: list[Case] = [
    # Read silently wrong.
    ("int8 weights", WEIGHTS, stored_as(torch.int8), "quantised"),
    ("int8 weights", STATES, stored_as(torch.int8), MLP),
    ("int8 weights", INFER, stored_as(torch.int8), "I8"),
    ("float8 weights", WEIGHTS, stored_as(torch.float8_e4m3fn), "F8_E4M3"),
    ("float8 weights", INFER, stored_as(torch.float8_e5m2), "F8_E5M2"),
    ("int8 weights in a .bin", INFER, as_bin(lambda t: {**t, MLP: t[MLP].char()}), "int8"),
    ("GPTQ", WEIGHTS, GPTQ, "gptq"),
    ("GPTQ", INFER, GPTQ, "gptq"),
    ("bitsandbytes", STATES, BNB, "bitsandbytes"),
    ("AWQ, multimodal", WEIGHTS, AWQ, "awq"),
    ("NaN", INFER, weight(MLP, with_nan), MLP),
    ("NaN in a norm", INFER, weight(NORM, with_nan), NORM),
    ("infinite logits", [*INFER, "--dtype", "fp16"], weight(NORM, lambda t: t * 1e38), "Inf"),
    ("NUL in texts", STATES, file("retain.txt", "one\ntwo \0 three\n"), "retain.txt, line 2"),
    ("NUL in texts", UNLEARN, file("forget.txt", "\0"), "forget.txt, line 1"),
    ("NUL in questions", RELEARN, question(prompt="a\0"), "line 2"),
    ("half a character", RELEARN, question(prompt="\ud800"), "surrogate"),
    ("deep JSON", RELEARN, file("questions.jsonl", "[" * 100_000), "questions.jsonl, line 1"),
    ("loop of links", STATES, loop("forget.txt"), "forget.txt"),
    ("loop of links", WEIGHTS, loop("b/config.json"), "b/config.json"),
    ("text in a table", DRAW, gibberish_table("lots"), "line 3: no number in column dW"),
    ("infinity in a table", DRAW, gibberish_table("inf"), "line 3"),
    ("no layer in a table", DRAW, file("per_layer.csv", PER_LAYER + ",a,1,1,1\n"), "layer"),
    ("binary table", DRAW, file("per_layer.csv", b"\x00\xff" * 50), "per_layer.csv"),
    ("long texts", STATES, few_positions("gpt2"), "the model takes 16"),
    ("long texts", STATES, few_positions("gpt_neox"), "the model takes 16"),
    ("long texts", UNLEARN, few_positions("gpt2"), "the model takes 16"),
    ("long prompt", [*INFER, "--prompt", "long " * 9], few_positions("gpt2"), "takes 16"),
    # Not one line.
    ("config []", WEIGHTS, file("b/config.json", "[]"), "config.json"),
    ("config null", STATES, file("b/config.json", "null"), "config.json"),
    ("config null", INFER, file("b/config.json", "null"), "config.json"),
    ("deep config", WEIGHTS, file("b/config.json", "[" * 100_000), "config.json"),
    ("text_config null", WEIGHTS, config(text_config=None), "text_config"),
    ("number as text", WEIGHTS, config(hidden_size="64"), "hidden_size is '64'"),
    ("number as text", INFER, config(num_attention_heads="4"), "num_attention_heads"),
    ("number that does not fit", INFER, config(hidden_size=64), "b cannot be loaded"),
    ("number that does not fit", UNLEARN, config(vocab_size=300), "b cannot be loaded"),
    ("odd option", INFER, config(hidden_act=7), "b cannot be loaded"),
    ("index of numbers", WEIGHTS, index({"weight_map": {MLP: 1}}), "index.json"),
    ("index of nothing", STATES, index({"weight_map": None}), "index.json"),
    ("index that is a list", INFER, index([1]), "index.json"),
    (".bin with a list", WEIGHTS, as_bin(lambda t: list(t.values())), "pytorch_model.bin"),
    (".bin with a list", INFER, as_bin(lambda t: list(t.values())), "pytorch_model.bin"),
    (".bin, nested", WEIGHTS, as_bin(lambda t: {"model": t}), "pytorch_model.bin"),
    ("without a weight", INFER, without_a_weight, "lacks 1 weights"),
    ("without a weight", WEIGHTS, without_a_weight, MLP),
    ("negative seed", [*STATES, "--seed", "-1"], nothing, "--seed"),
    ("long seed", [*UNLEARN, "--seed", str(2**64)], nothing, "--seed"),
    ("NaN", [*UNLEARN, "--lr", "nan"], nothing, "--lr"),
    ("NaN without a check", [*UNLEARN, "--gamma", "nan"], nothing, "--gamma"),
    ("inf", [*WEIGHTS, "--tol", "inf"], nothing, "--tol"),
    ("device meta", [*WEIGHTS, "--device", "meta"], nothing, "meta"),
    ("device meta", [*INFER, "--device", "meta"], nothing, "meta"),
    ("unwritable file", [*IMPORTANCE, "--save_consolidated", "/proc/x.npz"], nothing, "/proc/x"),
    ("too long a name", [*IMPORTANCE, "--save_consolidated", "x" * 250], nothing, "xxx"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "damage", "named"),
    [case[1:] for case in CASES],
    ids=[f"{Path(case[1][0]).stem}: {case[0]}" for case in CASES],
)
def test_is_one_line_and_nothing_written(
    place: Path, words: list[str], damage: Callable[[], object], named: str
) -> None:
    damage()
    before = contents(place)
    ended = forked.run(place, words)
    assert ended.status == 2, ended
    assert len(ended.complaint) == 1 and named in ended.complaint[0], ended.err
    assert contents(place) == before


@pytest.mark.parametrize("words", [WEIGHTS, STATES, INFER, RELEARN, DRAW], ids=lambda w: w[0])
def test_the_same_without_damage_is_done(place: Path, words: list[str]) -> None:
    shorter = {"relearn.py": ["--steps", "1", "--eval-steps", "0,1", "--lr", "1e-3"]}
    ended = forked.run(place, [*words, *shorter.get(words[0], [])])
    assert (ended.status, ended.err) == (0, ""), ended


def test_a_byte_order_mark_is_no_part_of_a_text(place: Path) -> None:
    from model_diffs.data.questions import load_questions
    from model_diffs.data.text_datasets import read_dataset
    from model_diffs.data.texts import read_split

    Path("bom.txt").write_text("Salt.\n", encoding="utf-8-sig")
    Path("bom.json").write_text('["Salt."]', encoding="utf-8-sig")
    Path("bom.jsonl").write_text(json.dumps(QUESTION), encoding="utf-8-sig")
    assert read_split("bom.txt", "forget").texts == ["Salt."]
    assert read_dataset("bom.json").texts == read_dataset("bom.txt").texts == ["Salt."]
    assert load_questions("bom.jsonl")[0].id == "q"


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (weight(NORM, with_nan), NORM),
        (weight(MLP, with_nan), MLP),
        (stored_as(torch.int8), "quantised"),
        (file("forget.txt", "a\0"), "NUL"),
    ],
)
def test_check_experiment_reports_it(place: Path, damage: Callable[[], object], named: str) -> None:
    damage()
    ended = forked.run(place, ["check_experiment.py", "--model", "./a", "./b", *TEXTS])
    errors = [line for line in ended.out.splitlines() if line.startswith("error")]
    assert ended.status == 1 and len(errors) == 1 and named in errors[0], ended.out


def test_every_seed_is_checked() -> None:
    scripts = [step.module for step in load_steps()]
    names = (
        "infer.py",
        *(f"important_acts_ftrs/{n}_gradient_analysis.py" for n in ("layer", "sae")),
    )
    scripts += [load_script(forked.ROOT / name) for name in names]
    seeds = [one for script in scripts for one in fields(script.Options) if one.name == "seed"]
    assert len(seeds) > 15
    assert all(seed.metadata["check"] is seedable for seed in seeds)


def test_a_huge_batch_holds_each_text_once(place: Path) -> None:
    small = forked.run(place, [*STATES, "--outroot", "small", "--batch-size", "6"])
    huge = forked.run(place, [*STATES, "--outroot", "huge", "--batch-size", "100000"])
    assert small.status == huge.status == 0, huge.err
    tables = [
        Path(root, "a__to__b/activation_stats/activation_stats.csv") for root in ("small", "huge")
    ]
    assert tables[0].read_bytes() == tables[1].read_bytes()


def test_a_huge_batch_trains_on_each_text_once(place: Path) -> None:
    words = [*UNLEARN, "--epochs", "1", "--eval-split", "0", "--outdir"]
    whole = forked.run(place, [*words, "whole", "--batch-size", "6"])
    huge = forked.run(place, [*words, "huge", "--batch-size", "100000"])
    assert whole.status == huge.status == 0, huge.err
    made = [next(Path(name).rglob("model.safetensors")) for name in ("whole", "huge")]
    assert made[0].read_bytes() == made[1].read_bytes()


def test_a_batch_that_memory_cannot_hold_is_refused(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from model_diffs.models import devices

    monkeypatch.setattr(devices, "free_memory", lambda _: 100_000)
    ended = forked.run(place, [*STATES, "--batch-size", "6", "--side-by-side", "no"])
    assert ended.status == 2 and len(ended.complaint) == 1 and "--batch-size 6" in ended.err
    assert forked.run(place, [*STATES, "--batch-size", "1", "--side-by-side", "no"]).status == 0


def _forget_tokens(record: Path) -> None:
    found = json.loads(record.read_text())
    record.write_text(json.dumps(found | {"tokens_sha256": 7, "models": [1]}))


@pytest.mark.parametrize("damage", ["truncate", "flip", "text", "remove", "record"])
def test_a_damaged_activation_cache_is_made_again(place: Path, damage: str) -> None:
    def table() -> bytes:
        return Path("outputs/a__to__b/activation_stats/activation_stats.csv").read_bytes()

    assert forked.run(place, STATES).status == 0
    first = table()
    for path in Path("outputs/activation_cache").glob("*/statistics.safetensors"):
        data = bytearray(path.read_bytes())
        data[-5] ^= 0x40
        flipped: dict[str, Callable[[], object]] = {
            "truncate": functools.partial(path.write_bytes, data[:-100]),
            "flip": functools.partial(path.write_bytes, data),
            "text": functools.partial(path.write_text, "no tensors"),
            "remove": path.unlink,
            "record": functools.partial(_forget_tokens, path.with_name("run.json")),
        }
        flipped[damage]()
    again = forked.run(place, [*STATES, "--force"])
    assert (again.status, again.err) == (0, ""), again
    assert table() == first
