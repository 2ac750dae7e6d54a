"""Activation statistics against a loop over single texts and tokens, in fp64."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_models
import tiny_study
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from model_diffs.activations import store
from model_diffs.activations.saved import Saved, States, entry, pick
from model_diffs.core.errors import BadInput
from model_diffs.core.options import Pass
from model_diffs.core.results import PlannedRun
from model_diffs.data.texts import read_split
from model_diffs.diagnostics.activation_norms import norm_table, text_table
from model_diffs.models import loading

FORGET = [
    "The river at Ava is wide.",
    "No.",
    "Seven weavers kept a very long ledger of their looms.",
]
RETAIN = ["Birds sing at dawn in the old mill yard.", "A ferry.", "Bread, salt and slow water."]
FAMILIES = ["gpt_neox", "llama", "gpt2", "qwen2", "gemma2", "mixtral", "opt", "phi", "gemma3"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str]]:
    """Two random models of each family."""
    root = tmp_path_factory.mktemp("models")
    return {
        family: tuple(
            str(tiny_models.save(family, root / f"{family}-{side}", seed=seed))
            for seed, side in enumerate("ab")
        )
        for family in FAMILIES
    }


def options(tmp_path: Path, **changed: object) -> Pass:
    (tmp_path / "forget.txt").write_text("\n".join(FORGET) + "\n\n")
    (tmp_path / "retain.txt").write_text("\n".join(RETAIN))
    values = {
        "forget_text": str(tmp_path / "forget.txt"),
        "retain_text": str(tmp_path / "retain.txt"),
        "outroot": str(tmp_path / "outputs"),
        "max_samples": 0,
        "max_length": 40,
        "batch_size": 2,
        "device": "cpu",
        "dtype": "fp32",
    }
    return Pass(**{**values, **changed})


def states_of(folder: str, text: str, max_length: int) -> tuple[list[int], np.ndarray]:
    """Token ids and transformers' own hidden states `[S, positions, d]` of one unpadded text.

    After them the output of the last block, before the final norm.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = tokenizer(text, truncation=True, max_length=max_length)["input_ids"]
    outputs = tiny_study.last_block(model)
    with torch.no_grad():
        hidden = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    return ids, torch.stack([*hidden, outputs[-1]])[:, 0].double().numpy()


def everything(saved: Saved) -> SimpleNamespace:
    """All tensors of an entry."""
    return SimpleNamespace(**load_file(saved.path))


@pytest.mark.parametrize(
    "family", [*FAMILIES[:3], *(pytest.param(f, marks=pytest.mark.study) for f in FAMILIES[3:])]
)
def test_statistics_equal_a_loop_over_tokens(
    family: str, folders: dict[str, tuple[str, str]], tmp_path: Path
) -> None:
    a, b = folders[family]
    found = store.statistics(options(tmp_path), [a, b], [(a, b)])
    bos = AutoTokenizer.from_pretrained(a).bos_token_id
    counted = []
    for row, text in enumerate(FORGET):
        ids, h_a = states_of(a, text, 40)
        _, h_b = states_of(b, text, 40)
        start = int(family in tiny_models.WITH_BOS and ids[0] == bos)
        h_a, h_b = h_a[:, start:], h_b[:, start:]
        counted.append(h_a)
        own = everything(found.models["forget", a])
        change = everything(found.differences["forget", b])
        assert own.tokens[row] == len(ids) - start
        sums = {"dh_l1": 0.0, "dh_l2": 0.0, "dh_rel": 0.0, "cosine": 0.0}
        norms = {"norm_l1": 0.0, "norm_l2": 0.0}
        for token in range(h_a.shape[1]):
            x, y = h_a[:, token], h_b[:, token]
            norms["norm_l1"] += np.abs(x).sum(1)
            norms["norm_l2"] += np.sqrt((x**2).sum(1))
            sums["dh_l1"] += np.abs(y - x).sum(1)
            sums["dh_l2"] += np.sqrt(((y - x) ** 2).sum(1))
            sums["dh_rel"] += np.sqrt(((y - x) ** 2).sum(1)) / np.sqrt((x**2).sum(1))
            cosines = [
                u @ v / np.linalg.norm(u) / np.linalg.norm(v) for u, v in zip(x, y, strict=True)
            ]
            sums["cosine"] += np.array(cosines)
        for name, expected in norms.items():
            np.testing.assert_allclose(getattr(own, name)[row], expected, rtol=1e-5)
        for name, expected in sums.items():
            np.testing.assert_allclose(getattr(change, name)[row], expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(own.pooled[row], h_a.mean(1), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(own.last[row], h_a[:, -1], rtol=1e-5, atol=1e-5)
    tokens = np.concatenate(counted, axis=1)
    own = everything(found.models["forget", a])
    for state, rows in enumerate(tokens):
        np.testing.assert_allclose(own.mean[state], rows.mean(0), rtol=1e-5, atol=1e-6)
        covariance = np.cov(rows.T, bias=True)
        error = np.abs(own.spectrum[state] - np.linalg.eigvalsh(covariance)[::-1]).max()
        assert error < 1e-5 * np.abs(covariance).max()


@pytest.mark.parametrize(
    "changed",
    [{"batch_size": 1}, {"batch_size": 3}, {"side_by_side": "no"}, {"device_map": "auto"}],
)
def test_statistics_do_not_depend_on_batches_or_order_of_models(
    changed: dict[str, object], folders: dict[str, tuple[str, str]], tmp_path: Path
) -> None:
    a, b = folders["llama"]
    (tmp_path / "x").mkdir()
    (tmp_path / "y").mkdir()
    one = store.statistics(options(tmp_path / "x"), [a, b], [(a, b)])
    other = store.statistics(options(tmp_path / "y", **changed), [a, b], [(a, b)])
    for key, saved in one.models.items():
        for name, value in vars(everything(saved)).items():
            np.testing.assert_allclose(
                getattr(everything(other.models[key]), name),
                value,
                rtol=1e-5,
                atol=1e-5,
                err_msg=name,
            )
    for key, saved in one.differences.items():
        for name, value in vars(everything(saved)).items():
            np.testing.assert_allclose(
                getattr(everything(other.differences[key]), name), value, rtol=1e-5, atol=1e-5
            )
    assert not list((tmp_path / "y").rglob("*.partial")), "the disk cache is removed"


@pytest.fixture
def texts_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the number of texts of each batch that a model reads."""
    found: list[int] = []
    whole = loading.stream_states

    def counting(anatomy: object, batch: loading.Batch, *rest: object, **more: object) -> None:
        found.append(len(batch.input_ids))
        whole(anatomy, batch, *rest, **more)

    monkeypatch.setattr(loading, "stream_states", counting)
    return found


def test_one_pass_serves_all_comparisons_and_is_reused(
    folders: dict[str, tuple[str, str]], tmp_path: Path, texts_read: list[int]
) -> None:
    a, b = folders["gpt_neox"]
    c = str(tiny_models.save("gpt_neox", tmp_path / "c", seed=7))
    chosen = options(tmp_path, skip_first=0)  # nothing is looked at beforehand
    store.statistics(chosen, [a, b, c], [(a, b), (a, c)])
    assert sum(texts_read) == 3 * (len(FORGET) + len(RETAIN)), "each model reads each text once"
    texts_read.clear()
    store.statistics(chosen, [a, b, c], [(a, b), (a, c)])
    assert not texts_read, "saved statistics are not computed again"
    (tmp_path / "retain.txt").write_text("Another line.\nAnd one more.")
    store.statistics(chosen, [a], [])
    assert sum(texts_read) == 2, "only the split that changed is read again"


def test_a_moved_and_renamed_model_finds_its_statistics(
    folders: dict[str, tuple[str, str]], tmp_path: Path, texts_read: list[int]
) -> None:
    a, _ = folders["gpt_neox"]
    old = tiny_models.save("gpt_neox", tmp_path / "old", seed=7)
    before = store.statistics(options(tmp_path), [a, str(old)], [(a, str(old))])
    (tmp_path / "elsewhere").mkdir()
    new = str(old.rename(tmp_path / "elsewhere" / "new"))
    texts_read.clear()
    after = store.statistics(options(tmp_path), [a, new], [(a, new)])
    assert not texts_read
    assert after.models["forget", new].path == before.models["forget", str(old)].path
    assert after.differences["retain", new].path == before.differences["retain", str(old)].path


def test_models_of_one_folder_name_have_statistics_of_their_own(
    folders: dict[str, tuple[str, str]], tmp_path: Path, texts_read: list[int]
) -> None:
    one, two = (
        str(tiny_models.save("gpt_neox", tmp_path / parent / "model", seed=seed))
        for seed, parent in enumerate("xy")
    )
    found = [store.statistics(options(tmp_path), [model]).models for model in (one, two)]
    saved = found[0]["forget", one], found[1]["forget", two]
    assert saved[0].path != saved[1].path
    assert not np.allclose(saved[0].read("norm_l2"), saved[1].read("norm_l2"))
    assert [[*entry.record()["models"]] for entry in saved] == [[one], [two]]
    texts_read.clear()
    for model in (one, two):
        store.statistics(options(tmp_path), [model])
    assert not texts_read, "both entries are kept"


@pytest.mark.parametrize("changed", [{"max_length": 9}, {"keep_bos": True}, {"batch_size": 1}])
def test_options_that_change_numbers_give_another_entry(
    changed: dict[str, object], folders: dict[str, tuple[str, str]], tmp_path: Path
) -> None:
    a, _ = folders["gpt_neox"]
    plain, other = options(tmp_path), options(tmp_path, **changed)
    split = read_split(plain.forget_text, "forget")
    assert entry(plain, split, a).path != entry(other, split, a).path


def test_a_damaged_entry_is_made_again(
    folders: dict[str, tuple[str, str]], tmp_path: Path, texts_read: list[int]
) -> None:
    a, _ = folders["gpt_neox"]
    entry = store.statistics(options(tmp_path), [a]).models["forget", a]
    for damaged in (entry.path, entry.path.parent / "run.json"):
        damaged.unlink()
        texts_read.clear()
        store.statistics(options(tmp_path), [a])
        assert sum(texts_read) == len(FORGET) and entry.complete()


def test_a_model_against_itself_has_no_difference(
    folders: dict[str, tuple[str, str]], tmp_path: Path
) -> None:
    a, _ = folders["gpt_neox"]
    copy = str(tiny_models.save("gpt_neox", tmp_path / "copy", seed=0))
    for other in (copy, a):
        found = store.statistics(options(tmp_path), [a], [(a, other)])
        change = everything(found.differences["retain", other])
        assert not change.dh_l1.any() and not change.dh_l2.any() and not change.dh_rel.any()
        np.testing.assert_allclose(change.cosine / change.tokens[:, None], 1, rtol=1e-6)


def test_means_of_texts_give_the_mean_of_the_table(
    folders: dict[str, tuple[str, str]], tmp_path: Path
) -> None:
    a, b = folders["gpt_neox"]
    found = store.statistics(options(tmp_path), [a, b], [(a, b)])
    base, changed = (found.models["forget", model] for model in (a, b))
    difference = found.differences["forget", b]
    table = norm_table(base, changed, difference, 42)
    texts = text_table(difference)
    assert texts["text"].tolist() == [0, 1, 2]
    mean = np.average(texts["mean_dh_rel"], weights=texts["tokens"])
    assert mean == pytest.approx(table["mean_dh_rel_residual"][1:].mean(), rel=1e-12)
    residual, hidden = table["mean_dh_rel_residual"], table["mean_dh_rel"]
    assert len(table) == tiny_models.LAYERS + 1
    assert residual[:-1].equals(hidden[:-1])
    moved = [
        np.linalg.norm(states_of(b, text, 40)[1] - h, axis=2) / np.linalg.norm(h, axis=2)
        for text in FORGET
        for h in [states_of(a, text, 40)[1]]
    ]
    after, before = np.concatenate(moved, axis=1).mean(1)[-2:]
    assert residual.iloc[-1] == pytest.approx(before, rel=1e-5)
    assert hidden.iloc[-1] == pytest.approx(after, rel=1e-5)
    assert abs(after - before) > 0.01


def test_statistics_of_another_version_are_made_again(
    folders: dict[str, tuple[str, str]], tmp_path: Path, texts_read: list[int]
) -> None:
    """Entries from before the state ahead of the final norm was kept have one state fewer."""
    a, _ = folders["gpt_neox"]
    entry = store.statistics(options(tmp_path), [a]).models["forget", a]
    path = entry.path.parent / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 1}))
    texts_read.clear()
    store.statistics(options(tmp_path), [a])
    assert sum(texts_read) == len(FORGET) and entry.complete()


@pytest.mark.parametrize("axis", [0, 1])
def test_chosen_states(axis: int) -> None:
    every = np.moveaxis(np.arange(12).reshape(2, 6), 1, axis)  # states 0, 1, 2, 3, N, N before norm

    def chosen(which: States) -> list[int]:
        return np.moveaxis(pick(every, which, axis), axis, 1)[0].tolist()

    assert chosen("every") == [0, 1, 2, 3, 4, 5]
    assert chosen("hidden") == [0, 1, 2, 3, 4]
    assert chosen("residual") == [0, 1, 2, 3, 5]


def test_left_out_positions_are_counted(
    folders: dict[str, tuple[str, str]], tmp_path: Path
) -> None:
    a, _ = folders["llama"]
    for changed, left_out in (({}, 3), ({"keep_bos": True}, 0), ({"skip_first": 2}, 6)):
        root = tmp_path / str(left_out)
        root.mkdir()
        found = store.statistics(options(root, **changed), [a])
        record = found.models["forget", a].record()
        assert record["left_out"] == {"documents": 0, "tokens": left_out}
        lengths = [len(AutoTokenizer.from_pretrained(a)(t)["input_ids"][:40]) for t in FORGET]
        assert record["tokens"] == sum(lengths) - left_out


def test_texts_without_counted_tokens_are_left_out(
    folders: dict[str, tuple[str, str]], tmp_path: Path
) -> None:
    a, _ = folders["gpt_neox"]  # "No." has three byte tokens
    found = store.statistics(options(tmp_path, skip_first=3), [a])
    assert found.models["forget", a].read("documents").tolist() == [0, 2]
    assert found.models["forget", a].record()["left_out"]["documents"] == 1


def test_non_finite_states_name_model_and_state(tmp_path: Path) -> None:
    folder = tiny_models.save("gpt_neox", tmp_path / "broken")
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.gpt_neox.layers[1].mlp.dense_4h_to_h.weight[0, 0] = 3e38
        model.gpt_neox.layers[1].mlp.dense_4h_to_h.weight[0, 1] = -3e38
        model.gpt_neox.layers[1].mlp.dense_4h_to_h.bias[0] = 3e38
    model.save_pretrained(folder)
    with pytest.raises(BadInput, match="hidden state"):
        store.statistics(options(tmp_path), [str(folder)])


def test_refuses_other_tokenizers_shared_lines_and_other_depths(
    folders: dict[str, tuple[str, str]], tmp_path: Path
) -> None:
    a, _ = folders["gpt_neox"]
    chosen = options(tmp_path)
    (tmp_path / "retain.txt").write_text(FORGET[1])
    with pytest.raises(BadInput, match="share 1 lines"):
        store.statistics(chosen, [a])
    other = tiny_models.save("gpt_neox", tmp_path / "other", seed=3)
    tokenizer = AutoTokenizer.from_pretrained(other)
    tokenizer.add_tokens(["ferry"])
    tokenizer.save_pretrained(other)
    with pytest.raises(BadInput, match="different tokenizers"):
        store.statistics(options(tmp_path), [a, str(other)], [(a, str(other))])
    deeper = tiny_models.save("gpt_neox", tmp_path / "deeper", num_hidden_layers=2)
    with pytest.raises(BadInput, match="num_hidden_layers"):
        store.statistics(options(tmp_path), [a], [(a, str(deeper))])
    assert not (tmp_path / "outputs").exists(), "nothing is written"


def test_refuses_to_compare_statistics_of_different_tokens(
    folders: dict[str, tuple[str, str]], tmp_path: Path
) -> None:
    a, _ = folders["gpt_neox"]
    other = str(tiny_models.save("gpt_neox", tmp_path / "other", seed=3))
    tiny_models.tokenizer("llama").save_pretrained(other)  # with a BOS
    chosen = options(tmp_path)
    for model in (a, other):
        store.statistics(chosen, [model])
    with pytest.raises(BadInput, match="forget texts into different tokens"):
        store.of_comparisons(chosen, [PlannedRun(tmp_path / "x", "", {}, a, other)])


def test_warns_of_an_attention_sink_at_the_first_position(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny_models.save("gpt2", tmp_path / "sink")
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.transformer.wpe.weight[0] *= 1e4
    model.save_pretrained(folder)
    store.statistics(options(tmp_path, skip_first=0), [str(folder)])
    assert "--skip-first 1" in capsys.readouterr().err
    store.statistics(options(tmp_path, skip_first=1), [str(folder)])
    assert "--skip-first" not in capsys.readouterr().err
