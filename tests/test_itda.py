"""ITDA dictionaries: what is read, which activations become atoms, and their files."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tiny_models
import tiny_study
import torch
import yaml
from test_itda_files import PUBLISHED_KEYS
from torch import Tensor

import train_itda
from model_diffs.activations import passes
from model_diffs.activations.tokens import TokenBatch
from model_diffs.core import results
from model_diffs.core.command_line import parse
from model_diffs.core.errors import BadInput
from model_diffs.core.script import execute, run_script
from model_diffs.dictionaries import reading, training
from model_diffs.dictionaries.itda import ITDA
from model_diffs.dictionaries.options import Training
from model_diffs.dictionaries.reading import Reading
from model_diffs.dictionaries.training import Trained
from model_diffs.models import loading

CPU = torch.device("cpu")
SETTINGS = Training(layer=(1,), k=4, max_atoms=500, fvu_threshold=0.2, batch_size=8, seq_len=24)


class Place(NamedTuple):
    """A tiny model with a BOS, its tokenizer, and some texts."""

    folder: Path
    reader: passes.Reader
    tokenizer: Any
    texts: Reading
    states: list[np.ndarray]
    """Outputs of block 1, `[positions, d]` per text."""


def outputs(reader: passes.Reader, texts: Reading, layer: int) -> list[np.ndarray]:
    """Output of a block `[positions, d]` for each text alone, from a hook on the block itself."""
    found: list[np.ndarray] = []

    def keep(module: Any, args: Any, output: Any) -> None:
        found.append((output[0] if isinstance(output, tuple) else output).view(-1, 32).numpy())

    handle = reader.anatomy.blocks[layer].register_forward_hook(keep)
    with torch.no_grad():
        for ids in texts.tokens.ids:
            reader.model(torch.tensor([ids]))
    handle.remove()
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    root = tmp_path_factory.mktemp("itda")
    folder = tiny_models.save("llama", root / "model")
    (root / "texts.txt").write_text("\n".join(tiny_study.texts("forget", 40)))
    tokenizer = loading.load_tokenizer(str(folder))
    texts = reading.read([str(root / "texts.txt")], tokenizer, SETTINGS)
    reader = passes.Reader(str(folder), loading.load_model(str(folder), CPU, torch.float32))
    return Place(folder, reader, tokenizer, texts, outputs(reader, texts, 1))


def train(place: Place, layers: list[int], **changed: Any) -> list[Trained]:
    settings = replace(SETTINGS, **changed)
    pad_id = place.tokenizer.pad_token_id
    return training.train(place.reader, place.texts, pad_id, layers, settings)[0]


# ── reading ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("family", ["gpt_neox", "llama", "gpt2", "gemma2", "opt"])
def test_layer_is_output_of_its_block_before_the_final_norm(family: str) -> None:
    reader = passes.Reader("tiny", tiny_models.build(family))
    blocks = reader.anatomy.blocks
    batch = loading.pad_batch([[5, 6, 7, 8], [9, 10]], 0, CPU)
    at = TokenBatch([0, 1], batch, batch.attention_mask.bool())
    reference: dict[int, Tensor] = {}

    def keep(layer: int) -> Any:
        def hook(module: Any, args: Any, output: Any) -> None:
            reference[layer] = output[0] if isinstance(output, tuple) else output

        return hook

    own = [block.register_forward_hook(keep(layer)) for layer, block in enumerate(blocks)]
    with torch.inference_mode():
        for layers in ([2, 0], [1], [2]):
            found = reading.activations(reader, at, layers)
            assert set(layers) == set(found)
            for layer in layers:
                assert torch.equal(found[layer], reference[layer][at.counted])
    for handle in own:
        handle.remove()
    assert not any(block._forward_hooks for block in blocks)


def test_padding_and_bos_never_become_atoms(place: Place) -> None:
    everything = train(place, [1], fvu_threshold=1e-4)[0]
    sequences, positions = everything.atom_indices.T
    lengths = torch.tensor([len(ids) for ids in place.texts.tokens.ids])
    assert (positions >= 1).all() and (positions < lengths[sequences]).all()
    assert 1 in positions
    states = place.states
    for (sequence, position), atom in zip(
        everything.atom_indices.tolist(), everything.atoms, strict=True
    ):
        x = states[sequence][position]
        assert np.allclose(x / np.linalg.norm(x), atom.numpy(), atol=1e-5)


# ── which activations become atoms ────────────────────────────────────────────────────────────────


def reference_atoms(place: Place, settings: Training) -> list[tuple[int, int]]:
    """The same training for one token at a time, in fp64, without any of the shortcuts."""
    states = [state.astype(np.float64) for state in place.states]
    atoms: list[np.ndarray] = []
    where: list[tuple[int, int]] = []

    def error(x: np.ndarray, available: list[np.ndarray], steps: int) -> float:
        left, rebuilt = x.copy(), np.zeros_like(x)
        for _ in range(steps if available else 0):
            products = np.array([atom @ left for atom in available])
            j = int(np.abs(products).argmax())
            left, rebuilt = left - products[j] * available[j], rebuilt + products[j] * available[j]
        if settings.loss_threshold is None:
            return float(left @ left / (x @ x))
        if not available:
            return np.inf
        units = [v / np.linalg.norm(v) for v in (x, rebuilt)]
        return float(((units[0] - units[1]) ** 2).mean())

    loss = settings.loss_threshold
    threshold = settings.fvu_threshold if loss is None else loss
    for start in range(0, len(states), settings.batch_size):
        old, new = list(atoms), []
        for document in range(start, min(start + settings.batch_size, len(states))):
            for position in range(1, len(states[document])):
                x = states[document][position]
                badly = error(x, old, settings.k) > threshold
                alone = [error(x, [atom], 1) for atom in new]
                if badly and all(e > threshold for e in alone) and len(atoms) < settings.max_atoms:
                    new.append(x / np.linalg.norm(x))
                    atoms.append(new[-1])
                    where.append((document, position))
    return where


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"fvu_threshold": 0.05, "k": 2},
        {"max_atoms": 37},
        {"loss_threshold": 0.004, "batch_size": 3},
    ],
)
def test_atoms_equal_those_of_a_loop_over_single_tokens(
    place: Place, changed: dict[str, Any]
) -> None:
    found = train(place, [1], **changed)[0]
    reference = reference_atoms(place, replace(SETTINGS, **changed))
    assert list(map(tuple, found.atom_indices.tolist())) == reference
    assert len(reference) > 20
    assert torch.allclose(found.atoms.norm(dim=1), torch.ones(len(reference)), atol=1e-6)


def test_repeated_activations_become_one_atom(place: Place, tmp_path: Path) -> None:
    lines = place.texts.texts[:10]
    (tmp_path / "thrice.txt").write_text("\n".join(line for line in lines for _ in range(3)))
    (tmp_path / "once.txt").write_text("\n".join(lines))
    counts = []
    for name in ("once", "thrice"):
        path = str(tmp_path / f"{name}.txt")
        repeated = place._replace(texts=reading.read([path], place.tokenizer, SETTINGS))
        # Batches of the same distinct texts.
        size = {"once": 2, "thrice": 6}[name]
        found = train(repeated, [1], fvu_threshold=1e-7, k=1, batch_size=size, max_atoms=2000)[0]
        counts.append(len(found.atoms))
        products = (found.atoms @ found.atoms.T).abs().fill_diagonal_(0)
        assert products.max() < 1 - 5e-7
    assert counts[0] == counts[1]


def test_layers_trained_together_equal_layers_trained_alone(place: Place) -> None:
    together = train(place, [0, 2])
    for one in together:
        alone = train(place, [one.layer])[0]
        assert torch.equal(one.atoms, alone.atoms)
        assert torch.equal(one.atom_indices, alone.atom_indices)
        assert one.rows == alone.rows and one.judged == alone.judged
    assert not torch.equal(together[0].atoms[:5], together[1].atoms[:5])


def test_pass_ends_once_a_full_dictionary_is_judged(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "JUDGED", 100)
    found = train(place, [1], max_atoms=10)[0]
    assert len(found.atoms) == 10
    full = next(step for step in found.rows if step.atoms == 10)
    assert len(found.rows) < 5 and found.rows[-1].tokens - full.tokens >= 100
    x = [state[1:] for state in place.states[: len(found.rows) * SETTINGS.batch_size]]
    later = torch.from_numpy(np.concatenate(x))[full.tokens :]
    fvu = ITDA(found.atoms, found.atom_indices, {"layer": 1, "k": 4}).encode(later).fvu
    assert found.judged.fvu_tokens == len(later)
    assert found.judged.fvu.mean == pytest.approx(float(fvu.double().mean()), rel=1e-4)


def test_lower_threshold_gives_more_atoms_and_a_better_fit(place: Place) -> None:
    coarse, fine = (train(place, [1], fvu_threshold=t, max_atoms=5000)[0] for t in (0.4, 0.05))
    assert len(coarse.atoms) < len(fine.atoms)
    assert coarse.judged.fvu.mean > fine.judged.fvu.mean
    assert [s.atoms for s in fine.rows] == sorted(s.atoms for s in fine.rows)


# ── the script ────────────────────────────────────────────────────────────────────────────────────


def plan(words: list[str]) -> list[results.PlannedRun]:
    return train_itda.planned_runs(parse(train_itda.Options, words, None))


def words_of(place: Place, outdir: Path, *more: str) -> list[str]:
    texts = str(place.texts.splits[0].path)
    return [
        *("--model", str(place.folder), "--layer", "1", "--dataset", texts, "--k", "4"),
        *("--max-atoms", "60", "--outdir", str(outdir), "--device", "cpu", *more),
    ]


def test_script_writes_a_folder_per_layer_and_skips_complete_ones(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = words_of(place, tmp_path / "two", "--layer", "2")
    execute(train_itda, words)
    planned = plan(words)
    assert [one.folder.name for one in planned] == ["layer_1", "layer_2"]
    assert all(results.state(one).status == "complete" for one in planned)
    names = {"atoms.safetensors", "metadata.yaml", "atoms.csv", "training.csv", "training.png"}
    assert {file.name for file in planned[0].folder.iterdir()} == names | {
        "summary.json",
        "run.json",
    }
    metadata = yaml.safe_load((planned[1].folder / "metadata.yaml").read_text())
    assert list(metadata)[: len(PUBLISHED_KEYS)] == list(PUBLISHED_KEYS)
    assert metadata["layer"] == 2 and metadata["dataset_sha256"] == place.texts.sha256()
    capsys.readouterr()
    execute(train_itda, words)
    assert capsys.readouterr().out.count("complete, skipped") == 2
    execute(train_itda, words_of(place, tmp_path / "one"))
    for name in names | {"summary.json"}:
        assert (tmp_path / "one" / name).read_bytes() == (planned[0].folder / name).read_bytes(), (
            name
        )


def test_dictionary_is_stale_after_a_text_changes(place: Place, tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("The ferry leaves at dawn.\nBread is salt.\n")
    words = ["--model", str(place.folder), "--layer", "0", "--dataset", str(texts)]
    words += ["--outdir", str(tmp_path / "run")]
    execute(train_itda, words)
    texts.write_text("The ferry leaves at dawn.\nBread is bread.\n")
    assert results.state(plan(words)[0]).status == "stale"


def test_dead_share_is_undefined_when_all_tokens_are_atoms(place: Place, tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("The ferry leaves.\n")
    words = ["--model", str(place.folder), "--layer", "1", "--outdir", str(tmp_path / "run")]
    words += ["--dataset", str(texts), "--fvu-threshold", "0.000001", "--max-atoms", "60"]
    execute(train_itda, words)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["dead_tokens"] == 0 and summary["dead_share"] is None


def test_bad_input_is_refused_in_one_line_and_leaves_no_files(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("\n\n")
    outdir = tmp_path / "run"
    for more, message in (
        (["--layer", "7"], "blocks 0 to 2: there is no layer 7"),
        (["--dataset", str(empty)], "no text in it"),
        (["--fvu-threshold", "1"], "no activation has an error above the threshold"),
    ):
        with pytest.raises(BadInput, match=message):
            execute(train_itda, words_of(place, outdir, *more))
        assert not list(outdir.rglob("*"))

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(training.Trained, "update", full)
    words = words_of(place, outdir)
    with pytest.raises(BadInput, match="--batch-size 16: try --batch-size 8"):
        execute(train_itda, words)
    with pytest.raises(SystemExit):
        run_script(lambda: execute(train_itda, words))
