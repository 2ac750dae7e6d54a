"""Controls of unlearning: fine-tuning on one file, and random changes of another model's norms."""

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import unlearn
from model_diffs.core import options, script
from model_diffs.core.errors import BadInput
from model_diffs.core.methods import METHODS, TRAINED, UNLEARNING
from model_diffs.models.checkpoints import Checkpoint, lockstep
from model_diffs.unlearning.edits import EDITS, _orthonormal
from model_diffs.unlearning.losses import generator_of, random_direction
from model_diffs.unlearning.settings import Options
from model_diffs.unlearning.summary import report as summarised
from model_diffs.unlearning.summary import table
from model_diffs.unlearning.trainer import Trainer

FORGET = [f"the agent {name} hides in {place}" for name in "abc" for place in ("x", "yonder", "zz")]
RETAIN = [f"town {name} lies by river {river}" for name in "defg" for river in ("Ob", "Po")]
TEXT = [f"the {crop} of {town} is late" for crop in ("rye", "oat") for town in ("Um", "Ix", "Ore")]


def moved(base: Path, folder: Path, seed: int = 9, size: float = 0.02) -> Path:
    """The base with a change in every weight: of low rank in matrices, as training makes it."""
    tensors = load_file(base / "model.safetensors")
    generator = torch.Generator().manual_seed(seed)
    for name, W in tensors.items():
        sides = W.flatten(0, -2).shape if W.ndim > 1 else (1, len(W))
        left, right = (torch.randn(side, 3, generator=generator) for side in sides)
        falling = torch.tensor([1.0, 0.4, 0.1])
        change = size * (left * falling @ right.T).reshape(W.shape)
        tensors[name] = (W.float() + change).to(W.dtype).contiguous()
    folder.mkdir()
    for file in base.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save("gpt_neox", tmp_path_factory.mktemp("base") / "base")


@pytest.fixture(scope="module")
def like(base: Path) -> Path:
    return moved(base, base.parent / "like")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the texts."""
    folder = tmp_path_factory.mktemp("texts")
    for name, lines in (("forget", FORGET), ("retain", RETAIN), ("text", TEXT), ("empty", [""])):
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def texts(files: Path) -> list[str]:
    words = [(f"--{name}-text", str(files / f"{name}.txt")) for name in ("forget", "retain")]
    return [*itertools.chain(*words)]


@pytest.fixture(scope="module")
def noisy(base: Path, like: Path, texts: list[str]) -> dict[str, Path]:
    """The folder that each spectrum gives."""
    return {
        spectrum: execute(
            base, "noise", base.parent / spectrum, *texts, "--like", like, "--spectrum", spectrum
        )
        for spectrum in ("gaussian", "keep")
    }


def execute(base: Path, method: str, outdir: Path, *more: object) -> Path:
    """Run unlearn.py on these words, in this process; returns the model's folder."""
    words = ["--model", base, "--method", method, "--outdir", outdir, "--device", "cpu", *more]
    script.execute(unlearn, [str(word) for word in words])
    return outdir


def record_of(folder: Path) -> Any:
    return json.loads((folder / "unlearning.json").read_text())


def changes(base: Path, *others: Path) -> dict[str, list[torch.Tensor]]:
    """ΔW of each model from the base, in fp64, by matrix."""
    opened = Checkpoint.open(str(base))
    every = lockstep(opened, [Checkpoint.open(str(one)) for one in others], opened.matrices())
    return {m.name: [W.double() - A.double() for _, W in of] for m, A, of in every}


# ── fine-tuning ───────────────────────────────────────────────────────────────────────────────────


def test_finetuning_lowers_the_loss_of_its_file_alone(
    base: Path, texts: list[str], files: Path, tmp_path: Path
) -> None:
    given = ("--text", files / "text.txt", "--lr", "3e-3", "--epochs", "8")
    folder = execute(base, "finetune", tmp_path / "out", *texts, *given)
    record = record_of(folder)
    assert record["after"]["text_NLL"] < record["before"]["text_NLL"]
    assert all(log["forget"] == log["retain"] == 0 for log in record["losses"])
    assert record["losses"][-1]["loss"] < record["losses"][0]["loss"]
    facts = record["texts"]["text"]
    assert (facts["trained_on"], facts["held_out"], record["steps"]) == (5, 1, 16)
    read = {
        Path(entry["path"]).name
        for entry in json.loads((folder / "run.json").read_text())["inputs"]
    }
    assert "text.txt" in read
    assert "control: finetune" in (folder / "README.md").read_text()


def test_finetuning_reads_its_own_texts_and_nothing_of_the_forget_set(
    base: Path, texts: list[str], files: Path, tmp_path: Path
) -> None:
    """Other forget texts leave the same weights; other texts do not."""

    def weights(name: str, *more: object) -> bytes:
        folder = execute(base, "finetune", tmp_path / name, *texts, "--lr", "1e-3", *more)
        return (folder / "model.safetensors").read_bytes()

    retained = weights("retained")
    same = weights("same", "--text", files / "retain.txt", "--eval-split", "0")
    (tmp_path / "other.txt").write_text("\n".join(FORGET[::-1][:4]))
    assert weights("forgotten", "--forget-text", tmp_path / "other.txt") == retained
    assert weights("text", "--text", files / "text.txt") != retained
    # Without held-out texts the file read as --text is the retain set as it is read by default.
    assert weights("default", "--eval-split", "0") == same


def test_steps_take_the_place_of_epochs(
    base: Path, texts: list[str], files: Path, tmp_path: Path
) -> None:
    words = ("--text", files / "text.txt", "--steps", "7", "--batch-size", "3")
    folder = execute(base, "finetune", tmp_path / "out", *texts, *words)
    logs = record_of(folder)["losses"]
    assert [log["step"] for log in logs] == [*range(1, 8)]
    assert logs[-1]["lr"] < 0.1 * logs[0]["lr"]  # the cosine ends with the last of them


def test_interrupted_finetuning_resumes_and_ends_at_the_same_bytes(
    base: Path,
    texts: list[str],
    files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ("--text", files / "text.txt", "--epochs", "4", "--checkpoint-every", "2", *texts)
    undisturbed = execute(base, "finetune", tmp_path / "undisturbed", *words)
    step = Trainer._step

    def until_five(trainer: Trainer, number: int, *rest: Any) -> Any:
        if number == 5:
            raise KeyboardInterrupt
        return step(trainer, number, *rest)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Trainer, "_step", until_five)
        execute(base, "finetune", tmp_path / "out", *words)
    resumed = execute(base, "finetune", tmp_path / "out", *words)
    assert "resumed after step 4 of 8" in capsys.readouterr().out
    one, two = (load_file(f / "model.safetensors") for f in (undisturbed, resumed))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("more", [("--lora-rank", "2"), ("--optimizer", "muon")])
def test_finetuning_takes_the_options_of_training(
    more: tuple[str, ...], base: Path, texts: list[str], files: Path, tmp_path: Path
) -> None:
    if "--lora-rank" in more:
        pytest.importorskip("peft")
    folder = execute(base, "finetune", tmp_path / "out", *texts, "--lr", "1e-2", *more)
    record = record_of(folder)
    assert record["after"]["retain_NLL"] < record["before"]["retain_NLL"]


# ── noise ─────────────────────────────────────────────────────────────────────────────────────────


# Transposed matrices, stacked experts, a tied head.
@pytest.mark.parametrize(
    ("family", "spectrum"), [("gpt2", "keep"), ("mixtral", "gaussian"), ("qwen2", "keep")]
)
def test_noise_has_the_norms_of_the_other_change_matrix_by_matrix(
    family: str, spectrum: str, texts: list[str], tmp_path: Path
) -> None:
    own = tiny_models.save(family, tmp_path / "own")
    other = moved(own, tmp_path / "other")
    words = (*texts, "--like", other, "--spectrum", spectrum)
    folder = execute(own, "noise", tmp_path / "out", *words)
    _, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    found = changes(own, other, folder)
    if family == "mixtral":
        assert sum("experts" in name for name in found) > tiny_models.LAYERS * 4
    for name, (wanted, made) in found.items():
        assert float(made.norm()) == pytest.approx(float(wanted.norm()), rel=1e-5), name
        cosine = float((made * wanted).sum() / made.norm() / wanted.norm())
        # Of independent directions in n dimensions: 0 ± 1/√n; here of rank three.
        assert abs(cosine) < 5 / wanted.numel() ** 0.5 * (1 if spectrum == "gaussian" else 3), name
    before, after = (load_file(one / "model.safetensors") for one in (own, folder))
    vectors = [name for name in before if before[name].ndim == 1]
    assert vectors and all(torch.equal(before[name], after[name]) for name in vectors)


def test_norms_and_directions_of_noise(base: Path, like: Path, noisy: dict[str, Path]) -> None:
    for wanted, *both in changes(base, like, *noisy.values()).values():
        for made in both:
            assert float(made.norm()) == pytest.approx(float(wanted.norm()), rel=1e-5)
            cosine = float((made * wanted).sum() / made.norm() / wanted.norm())
            assert abs(cosine) < 0.1  # 0 ± 1/√n, n at least 1024; wider for the kept spectrum


def test_kept_spectra_are_those_of_the_change_with_other_vectors(
    base: Path, like: Path, noisy: dict[str, Path]
) -> None:
    for name, (wanted, flat, made) in changes(base, like, *noisy.values()).items():
        (U, sigma, V), (U_made, kept, V_made) = map(torch.linalg.svd, (wanted, made))
        top = float(sigma[0])
        assert float((kept - sigma).abs().max()) < 1e-4 * top, name
        for one, other in ((U[:, :3], U_made[:, :3]), (V[:3].T, V_made[:3].T)):
            overlap = float((one.T @ other).square().sum() / 3)
            assert overlap < 0.5, name  # 3 of at least 32 dimensions: 0.09 expected
        # Gaussian changes spread over all directions what three held.
        assert float(torch.linalg.svdvals(flat)[0]) < 0.8 * top, name


def test_singular_vectors_of_a_kept_spectrum_have_no_preferred_sign_or_place() -> None:
    """Mean and covariance of the leading vector's entries are those of the unit sphere."""
    drawn = [_orthonormal(4, 3, generator_of("test", i)) for i in range(2000)]
    assert all(torch.allclose(Q.T @ Q, torch.eye(3), atol=1e-5) for Q in drawn[:20])
    for column in range(3):
        vectors = torch.stack([Q[:, column] for Q in drawn])
        assert float(vectors.mean(0).abs().max()) < 0.05  # ± 0.011
        assert float((vectors.T @ vectors / 2000 - torch.eye(4) / 4).abs().max()) < 0.03


def test_entries_of_noise_are_gaussian(base: Path, noisy: dict[str, Path]) -> None:
    found = [dW for (dW,) in changes(base, noisy["gaussian"]).values()]
    scaled = torch.cat([(dW / dW.square().mean().sqrt()).flatten() for dW in found])
    assert float(scaled.mean()) == pytest.approx(0, abs=0.02)
    assert float(scaled.pow(4).mean()) == pytest.approx(3, abs=0.1)
    # No two matrices share their draw: 0 ± 0.03 between independent ones.
    unit = torch.stack([dW.flatten()[:1024] / dW.flatten()[:1024].norm() for dW in found])
    assert float((unit @ unit.T - torch.eye(len(unit))).abs().max()) < 0.2


def test_noise_is_seeded(
    base: Path, like: Path, texts: list[str], noisy: dict[str, Path], tmp_path: Path
) -> None:
    first, again, other = (
        (folder / "model.safetensors").read_bytes()
        for folder in (
            noisy["gaussian"],
            execute(base, "noise", tmp_path / "again", *texts, "--like", like),
            execute(base, "noise", tmp_path / "other", *texts, "--like", like, "--seed", 1),
        )
    )
    assert first == again != other


def test_noise_leaves_an_ordinary_folder_and_records_norms(
    base: Path, like: Path, noisy: dict[str, Path]
) -> None:
    folder = noisy["gaussian"]
    assert AutoTokenizer.from_pretrained(folder)("a b")["input_ids"]
    _, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    record = record_of(folder)
    assert {"forget_NLL", "retain_NLL", "gap"} <= record["after"].keys()
    assert record["before"]["forget_NLL"] != record["after"]["forget_NLL"]
    found = changes(base, like, folder)
    assert [one["name"] for one in record["matrices"]] == list(found)
    for one in record["matrices"]:
        wanted, made = (float(change.norm()) for change in found[one["name"]])
        assert (one["wanted"], one["stored"]) == pytest.approx((wanted, made), rel=1e-5)
    card = (folder / "README.md").read_text()
    assert "control: noise" in card and "Vectors (biases, norms) are the base's" in card
    assert "`--like`" in card and "`--lr`" not in card and "`--text`" not in card
    inputs = json.loads((folder / "run.json").read_text())["inputs"]
    assert any(entry["path"].endswith("like/model.safetensors") for entry in inputs)
    assert "gaussian" in table([folder], {}) and "weights trained in" in summarised(folder)


def test_half_precision_stays_and_its_rounding_is_said(
    texts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    half = tiny_models.save("llama", tmp_path / "half", dtype="bfloat16")
    other = moved(half, tmp_path / "other", size=2e-4)
    folder = execute(half, "noise", tmp_path / "out", *texts, "--like", other)
    assert {t.dtype for t in load_file(folder / "model.safetensors").values()} == {torch.bfloat16}
    assert "rounding changes ‖ΔW‖" in capsys.readouterr().err
    full = execute(
        half, "noise", tmp_path / "full", *texts, "--like", other, "--save-dtype", "fp32"
    )
    assert "rounding" not in capsys.readouterr().err
    for wanted, made in changes(half, other, full).values():
        assert float(made.norm()) == pytest.approx(float(wanted.norm()), rel=1e-4)
    assert AutoModelForCausalLM.from_pretrained(full).dtype == torch.float32


# ── what is refused ───────────────────────────────────────────────────────────────────────────────

REFUSED: list[tuple[str, str, str]] = [
    ("noise", "", "--method noise needs --like"),
    ("noise", "--like {base}", "has the matrices of"),
    ("noise", "--like {copy}", "has the matrices of"),
    ("noise", "--like {llama}", "compare models of one architecture"),
    ("noise", "--like {wide}", "compare models of one architecture"),
    ("noise", "--like {files}/none", "no such folder"),
    ("noise", "--like {like} --lr 1e-3", "--lr has no effect on --method noise"),
    ("noise", "--like {like} --text {files}/text.txt", "--text has no effect on --method noise"),
    ("npo", "--like {like}", "--like has no effect on --method npo"),
    ("npo", "--spectrum keep", "--spectrum has no effect on --method npo"),
    ("npo", "--text {files}/text.txt", "--text has no effect on --method npo"),
    ("finetune", "--like {like}", "no model that unlearn.py trained"),
    ("finetune", "--like {like} --steps 3", "--steps has no effect beside --like"),
    (
        "finetune",
        "--text {files}/none.txt",
        "no such text file; make it or name another with --text",
    ),
    ("finetune", "--text {files}/empty.txt", "no text in it"),
]


@pytest.mark.parametrize(("method", "more", "says"), REFUSED)
def test_bad_input_is_one_line_and_leaves_nothing(
    method: str,
    more: str,
    says: str,
    base: Path,
    like: Path,
    texts: list[str],
    files: Path,
    tmp_path: Path,
) -> None:
    made: dict[str, Callable[[], Path]] = {
        "copy": lambda: moved(base, tmp_path / "copy", size=0.0),
        "llama": lambda: tiny_models.save("llama", tmp_path / "llama"),
        "wide": lambda: tiny_models.save("gpt_neox", tmp_path / "wide", intermediate_size=48),
    }
    places = {"base": base, "like": like, "files": files}
    places |= {name: make() for name, make in made.items() if f"{{{name}}}" in more}
    with pytest.raises(BadInput) as raised:
        execute(base, method, tmp_path / "out", *texts, *more.format(**places).split())
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not [p for p in tmp_path.iterdir() if "out" in p.name]


# ── directions ────────────────────────────────────────────────────────────────────────────────────


def test_no_two_methods_share_a_random_direction() -> None:
    drawn = [
        random_direction(4096, layer, seed, name)
        for name in ("rmu", "cb", "cb_lat")
        for layer in (1, 2)
        for seed in (1, 12)
    ]
    cosines = torch.stack(drawn) @ torch.stack(drawn).T
    assert float((cosines - torch.eye(len(drawn))).abs().max()) < 0.1  # 0 ± 0.016
    assert torch.equal(drawn[0], random_direction(4096, 1, 1, "rmu"))


def test_every_method_is_trained_or_edited() -> None:
    assert {*TRAINED, *EDITS} == {*METHODS}
    assert not {*TRAINED} & {*EDITS}
    controls = {name for name, one in METHODS.items() if one.role == "control"}
    assert controls == {"finetune", "noise", "quantise"}
    assert {*METHODS} - {*UNLEARNING} - controls == {"refusal", "noise_distil"}  # need a file


def test_registry_names_options_that_exist() -> None:
    defaults = Options(model="m", method="npo")
    for method in METHODS.values():
        assert set(method.required) <= set(method.inputs)
        for name in (*method.options, *method.inputs):
            assert hasattr(defaults, name), name
    given = replace(defaults, method="noise", like="x")
    assert unlearn.planned_runs(given)[0].folder == Path("unlearned_models/m__noise")
    assert options.recorded(given)["like"] == "x"
