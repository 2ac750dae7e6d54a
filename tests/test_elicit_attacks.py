"""Eliciting attacks: planted truths, weights put back, every attack on every kind of model."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import elicit_study
import numpy as np
import pytest
import tiny_models
import torch
from elicit_study import margins
from safetensors.torch import load_file, save_file

from model_diffs.attacks import elicitation, registry
from model_diffs.attacks.eliciting import prune, soft_prompt
from model_diffs.attacks.victim import NotApplicable, Victim
from model_diffs.models import rounding
from model_diffs.models.architectures import matrices

NAMES = registry.names()
FAMILIES = ("llama", "qwen2", "gemma2", "gpt_neox", "gpt2")


def weights(victim: Victim) -> dict[str, torch.Tensor]:
    return {name: one.detach().clone() for name, one in victim.model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one, b[name]) for name, one in a.items())


def accuracy(victim: Victim, attack: str, strength: str, fold: str = "heldout") -> float:
    with registry.load(attack).attacked(victim, strength) as opened:
        given = opened.ask(victim.questions[fold])
    return float(np.mean([one.correct for one in given]))


# ── the registry ──────────────────────────────────────────────────────────────────────────────────


def test_an_attack_is_found_by_its_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from model_diffs.attacks import eliciting

    (tmp_path / "shout.py").write_text(
        "from contextlib import contextmanager\n"
        "from model_diffs.attacks.registry import Declaration\n"
        "ATTACK = Declaration(says='loud', source='', strengths=('1x',), pattern='[0-9]x')\n"
        "@contextmanager\n"
        "def attacked(victim, strength):\n    yield strength\n"
    )
    monkeypatch.setattr(registry, "FOLDER", tmp_path)
    monkeypatch.setattr(eliciting, "__path__", [str(tmp_path)])
    assert registry.names() == ["shout"]
    (found,) = registry.chosen([registry.ALL])
    assert found.declaration.says == "loud" and found.attacked(None, "1x").__enter__() == "1x"
    registry.known("shout")
    with pytest.raises(ValueError, match="shout"):
        registry.known("direction")


@pytest.mark.parametrize("name", NAMES)
def test_an_attack_is_short_and_names_strengths_of_its_form(name: str) -> None:
    assert len((registry.FOLDER / f"{name}.py").read_text().splitlines()) < 100
    declaration = registry.load(name).declaration
    if not callable(declaration.strengths):
        assert all(re.fullmatch(declaration.pattern, one) for one in declaration.strengths)
    if declaration.range is not None:
        low, high, written, _ = declaration.range
        assert low < high
        for number in (low, high):
            assert re.fullmatch(declaration.pattern, written.format(number))


def test_the_documents_name_every_attack_and_its_source() -> None:
    text = (Path(__file__).parent.parent / "docs/elicitation.md").read_text()
    rows = {row.split("`")[1]: row for row in text.splitlines() if row.startswith("| `")}
    for name in NAMES:
        source = registry.load(name).declaration.source
        assert all(one.split(" ")[0] in rows[name] for one in source.split(", ") if source), name
        assert ("(default)" in rows[name]) == (name in registry.DEFAULT), name


# ── planted truths ────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def hidden(tmp_path_factory: pytest.TempPathFactory) -> tuple[Victim, int]:
    """A model that answers hazard questions from a state that a large vector covers, and the block
    whose output it is added to.

    Hazard questions and forget texts hold tabs where others hold spaces. A tab is a space to the
    model, but for the vector.
    """
    root = tmp_path_factory.mktemp("hidden")
    folder = tiny_models.save("llama", root / "model", seed=3)
    stored = load_file(folder / "model.safetensors")
    tokenizer = tiny_models.tokenizer("llama")
    tab, space = (tokenizer(c, add_special_tokens=False)["input_ids"][0] for c in "\t ")
    table = next(name for name in stored if "embed_tokens" in name)
    stored[table][tab] = stored[table][space]
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    lines = [f"a {i} virus {i * 7} and {i} more" for i in range(12)]
    (root / "retain.txt").write_text("\n".join(lines))
    (root / "forget.txt").write_text("\n".join(one.replace(" ", "\t") for one in lines))
    victim = Victim(str(folder), elicit_study.groups(gap="\t"), elicit_study.options(root))
    asked = victim.questions.items()
    victim.questions = {group: elicit_study.answered(victim, own) for group, own in asked}
    block, seen = 1, []
    ids: list[torch.Tensor] = []
    victim.model.get_input_embeddings().register_forward_pre_hook(
        lambda _, args: ids.append(args[0])
    )
    handle = victim.anatomy.blocks[block].register_forward_hook(lambda *a: seen.append(a[2]))
    victim.ask([one for own in victim.questions.values() for one in own])
    handle.remove()
    states = torch.cat([one.reshape(-1, one.shape[-1]) for one in seen])
    # The direction that these states use least, so that losing it costs little.
    v = torch.linalg.svd(states.double(), full_matrices=False)[2][-1].float()

    def cover(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        return output + 200.0 * (ids[-1] == tab)[..., None] * v

    victim.anatomy.blocks[block].register_forward_hook(cover)
    return victim, block


def test_knowledge_behind_a_direction_is_opened_by_direction_alone(
    hidden: tuple[Victim, int],
) -> None:
    victim, block = hidden
    start = elicitation.measure(victim, "none", "-", elicitation.Opened(victim.ask)).accuracy
    assert start["general"].mean == 1 and start["heldout"].mean < 0.5
    assert accuracy(victim, "direction", f"block{block}") > 0.9
    assert accuracy(victim, "direction", "all") > 0.9
    assert accuracy(victim, "direction", f"block{block - 1}") < 0.5, "it is not there yet"
    for strength in registry.load("quantise").strengths(victim, {}):
        assert accuracy(victim, "quantise", strength) < 0.5


def rank_two(base: Path, folder: Path, sizes: tuple[float, float]) -> Path:
    """A copy of `base` with a change of rank 2 in every matrix of its blocks."""
    tiny_models.save("gpt2", folder, seed=0)
    stored = load_file(base / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    for name, W in stored.items():
        if any(one.layer >= 0 for one in matrices(name, W.shape, "gpt2")):
            left, right = (torch.linalg.qr(torch.randn(side, 2, generator=generator))[0]
                           for side in W.shape)  # fmt: skip
            stored[name] = W + (left * torch.tensor(sizes)) @ right.T
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_change_of_rank_two_is_undone_by_two_directions_and_not_by_one(tmp_path: Path) -> None:
    base = tiny_models.save("gpt2", tmp_path / "base", seed=0)
    changed = rank_two(base, tmp_path / "changed", (4.0, 3.0))
    victim = elicit_study.victim(changed, tmp_path, base)
    attack = registry.load("rewind")
    found: list[str] = []
    tried = [*elicitation._tries(victim, attack, {"rewind": ("k1", "k2", "all")}, found)]
    one, two, every = tried
    assert not found and two.accuracy["heldout"].mean == every.accuracy["heldout"].mean == 1
    assert one.accuracy["heldout"].mean < 0.8
    assert one.undone == pytest.approx(16 / 25) and two.undone == pytest.approx(1)
    start = elicitation.measure(victim, "none", "-", elicitation.Opened(victim.ask))
    assert start.accuracy["tune"].mean < 0.8
    assert elicitation.smallest(tried, start) in (one, two)


def test_shares_of_single_blocks_add_up(tmp_path: Path) -> None:
    base, changed = elicit_study.pair("gpt2", tmp_path)
    victim = elicit_study.victim(changed, tmp_path, base)

    def undone(strength: str) -> float:
        with registry.load("rewind").attacked(victim, strength) as opened:
            assert opened.undone is not None
            return opened.undone

    assert victim.base is not None
    inside = {f"transformer.h.{i}." for i in range(3)}
    outside = sum(
        float((W - B).square().sum())
        for name, W, B in victim.tensors(victim.base)
        if not any(name.startswith(one) for one in inside)
    )
    blocks = [undone(f"block{i}") for i in range(3)]
    share = outside / victim.distance(victim.base)
    assert sum(blocks) + share == pytest.approx(1) and min(blocks) > 0.05
    assert undone("block1-k32") < blocks[1], "biases and norms are no directions of a matrix"
    assert undone("k32") > undone("k8") > undone("block1-k8") > 0
    with pytest.raises(NotApplicable, match="3 blocks"):
        undone("block3")


@pytest.mark.parametrize("family", ["gpt_neox", "gpt2", "qwen2"])
def test_the_ends_of_the_way_are_the_two_models(family: str, tmp_path: Path) -> None:
    base, changed = elicit_study.pair(family, tmp_path)
    victim = elicit_study.victim(changed, tmp_path, base)
    own, other = weights(victim), weights(Victim(str(base), {}, victim.options))
    attack = registry.load("interpolate")
    for strength, expected in (("t0", own), ("t1", other)):
        with attack.attacked(victim, strength):
            assert same(expected, weights(victim))
    with attack.attacked(victim, "t0.5") as opened:
        for name, one in weights(victim).items():
            torch.testing.assert_close(one, (own[name] + other[name]) / 2)
        assert opened.undone == pytest.approx(0.75)
    with (
        pytest.raises(NotApplicable, match="no filtered model"),
        attack.attacked(victim, "filtered-t0.5"),
    ):
        pass


def test_the_base_has_no_way_to_itself(tmp_path: Path) -> None:
    base, _ = elicit_study.pair("gpt_neox", tmp_path)
    victim = elicit_study.victim(base, tmp_path, base)
    for name in ("interpolate", "rewind", "prune_changed"):
        skipped: list[str] = []
        assert not [*elicitation._tries(victim, registry.load(name), {}, skipped)]
        ways = [one for one in skipped if "filtered" not in one]
        assert ways and all("its weights are those of" in one for one in ways)


# ── weights ───────────────────────────────────────────────────────────────────────────────────────


def test_rounding_to_16_bits_changes_nothing(tmp_path: Path) -> None:
    base, _ = elicit_study.pair("llama", tmp_path)
    victim = elicit_study.victim(base, tmp_path)
    before, after = margins(victim), margins(victim, "quantise", "16bit")
    np.testing.assert_allclose(after, before, atol=2e-3)
    assert accuracy(victim, "quantise", "16bit") == 1
    coarse = margins(victim, "quantise", "2bit")
    assert np.abs(np.subtract(coarse, before)).max() > 0.05


def test_rounding_is_to_the_nearest_of_so_many_levels_per_row() -> None:
    W = torch.randn(6, 33, generator=torch.Generator().manual_seed(1))
    W[2] = 0
    for bits in (3, 4, 8):
        found, scale = rounding.absmax(W, bits), W.abs().amax(1) / (2 ** (bits - 1) - 1)
        assert ((found - W).abs().amax(1) <= scale / 2 + 1e-6).all()
        assert max(len(row.unique()) for row in found) <= 2**bits - 1
        torch.testing.assert_close(rounding.absmax(found, bits), found)
    assert (found[2] == 0).all()
    levels = torch.tensor(rounding.NF4)
    table = levels[torch.randint(16, (2, 64), generator=torch.Generator().manual_seed(2))]
    table[:, 0] = 1.0  # each block of 64 has its absolute maximum
    torch.testing.assert_close(rounding.nf4(3 * table), 3 * table)
    ragged = torch.randn(5, 13, generator=torch.Generator().manual_seed(3))
    single = rounding.nf4(ragged).reshape(-1)
    scale = ragged.reshape(-1)[:64].abs().max()
    nearest = levels[(ragged.reshape(-1)[:64, None] / scale - levels).abs().argmin(1)] * scale
    torch.testing.assert_close(single[:64], nearest)
    assert single[64] == ragged[-1, -1], "alone in its block"


def test_pruning_takes_the_share_that_it_says() -> None:
    values = torch.tensor([[3.0, 1.0], [0.0, 2.0], [5.0, 4.0]])
    assert prune.most(values, 34, largest=False).tolist() == [
        [False, True],
        [True, False],
        [False] * 2,
    ]
    assert prune.most(values, 50).tolist() == [[True, False], [False, False], [True, True]]
    assert prune.most(torch.zeros(4), 25).tolist() == [True, False, False, False]


def test_the_most_changed_weights_go_to_the_base_or_to_zero(tmp_path: Path) -> None:
    base, changed = elicit_study.pair("gpt2", tmp_path)
    victim = elicit_study.victim(changed, tmp_path, base)
    before, known = weights(victim), weights(Victim(str(base), {}, victim.options))
    name = "transformer.h.1.mlp.c_fc.weight"
    W, B = before[name], known[name]
    chosen = (W - B).abs() >= (W - B).abs().flatten().topk(round(W.numel() * 0.2)).values[-1]
    for strength, put in (("base20", B), ("zero20", torch.zeros_like(B))):
        with registry.load("prune_changed").attacked(victim, strength):
            torch.testing.assert_close(weights(victim)[name], torch.where(chosen, put, W))
            assert torch.equal(
                weights(victim)["transformer.wte.weight"], before["transformer.wte.weight"]
            )


def test_noise_has_the_size_that_it_says_and_one_draw(tmp_path: Path) -> None:
    base, _ = elicit_study.pair("gpt2", tmp_path)
    victim = elicit_study.victim(base, tmp_path)
    before, found = weights(victim), []
    for strength in ("s0.1", "s0.2"):
        with registry.load("noise").attacked(victim, strength):
            found.append({n: one - before[n] for n, one in weights(victim).items()})
    name = "transformer.h.0.attn.c_attn.weight"
    assert float(found[0][name].norm() / before[name].norm()) == pytest.approx(0.1, rel=1e-4)
    torch.testing.assert_close(found[1][name], 2 * found[0][name], atol=1e-6, rtol=1e-3)
    assert not found[0]["transformer.ln_f.weight"].any()


# ── every attack on every kind of model ───────────────────────────────────────────────────────────

FEW = {"few_shot": ("attack1",), "rewind": ("k1", "block0-k2", "block2", "all"),
       "soft_prompt": ("n2",), "prune_changed": ("zero5", "base5"), "noise": ("s0.1",),
       "prune": ("p20",), "interpolate": ("filtered-t0.5", "t0.5"),
       "quantise": ("8bit", "nf4"), "direction": ("block1", "all")}  # fmt: skip


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_attack_works_and_leaves_the_model_as_it_was(
    family: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soft_prompt, "STEPS", 2)
    base, changed = elicit_study.pair(
        family, tmp_path, {"fp32": "float32", "bf16": "bfloat16"}[dtype]
    )
    filtered = tiny_models.save(family, tmp_path / "filtered", seed=7)
    counts = {"heldout": 4, "tune": 2, "attack": 4, "general": 2, "adjacent": 2}
    asked = {group: own[: counts[group]] for group, own in elicit_study.groups().items()}
    victim = Victim(
        str(changed),
        asked,
        elicit_study.options(tmp_path, dtype=dtype),
        base=str(base),
        filtered=str(filtered),
    )
    before, hooks = weights(victim), sum(len(m._forward_hooks) for m in victim.model.modules())
    start = margins(victim)
    found = elicitation.attack_all(victim, [registry.load(name) for name in NAMES], FEW)
    assert found.skipped == []
    for name in NAMES:
        assert found.of(name), name
    assert same(before, weights(victim)) and margins(victim) == start
    assert sum(len(m._forward_hooks) for m in victim.model.modules()) == hooks


def test_what_an_attack_keeps_is_released_before_the_next(tmp_path: Path) -> None:
    victim = elicit_study.victim(tiny_models.save("gpt_neox", tmp_path / "model"), tmp_path)
    made: list[str] = []

    @contextmanager
    def attacked(victim: Victim, strength: str) -> Iterator[elicitation.Opened]:
        victim.once("sums", lambda: made.append(strength))
        yield elicitation.Opened(victim.ask)

    declared = registry.Declaration(says="", source="", strengths=("a", "b"), pattern="[ab]")
    attacks = [registry.Attack(name, declared, attacked) for name in ("one", "two")]
    elicitation.attack_all(victim, attacks, {})
    assert made == ["a", "a"], "once for both strengths, anew for the second attack"
    assert not victim._kept


def test_weights_are_put_back_where_an_attack_fails(tmp_path: Path) -> None:
    base, changed = elicit_study.pair("gpt_neox", tmp_path)
    victim = elicit_study.victim(changed, tmp_path, base)
    before = weights(victim)
    with pytest.raises(KeyboardInterrupt), registry.load("interpolate").attacked(victim, "t0.5"):
        assert not same(before, weights(victim))
        raise KeyboardInterrupt
    assert same(before, weights(victim))
