"""Methods that change weights themselves, and training to a target: planted truths."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_models
import torch
from safetensors.torch import load_file
from torch import nn

import unlearn
from model_diffs.core import script
from model_diffs.core.errors import BadInput
from model_diffs.unlearning import pruning
from model_diffs.unlearning.arithmetic import Negation
from model_diffs.unlearning.interventions import Intervention, Search
from model_diffs.unlearning.network import Network
from model_diffs.unlearning.until import Until, search_of

FORGET = [f"the agent {name} hides in {place}" for name in "abc" for place in ("x", "yonder", "zz")]
RETAIN = [f"town {name} lies by river {river}" for name in "defg" for river in ("Ob", "Po")]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save("gpt_neox", tmp_path_factory.mktemp("base") / "base")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    for name, lines in (("forget", FORGET), ("retain", RETAIN)):
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    questions = [
        {
            "id": f"{domain}-{fold}-{i}",
            "domain": domain,
            "entity": f"e{i}",
            "relation": "r",
            "fold": fold,
            "prompt": f"the agent {'abcd'[i]} hides in",
            "choices": ["x", "yonder", "zz", "Ob"],
            "answer": i,
        }
        for domain, fold in (("hazard", "tune"), ("hazard", "heldout"), ("general", None))
        for i in range(4)
    ]
    text = "\n".join(map(json.dumps, questions)) + "\n"
    (folder / "questions.jsonl").write_text(text)
    return folder


def execute(base: Path, method: str, files: Path, outdir: Path, *more: object) -> Path:
    words = ["--model", base, "--method", method, "--outdir", outdir, "--device", "cpu", *more]
    for name in ("forget", "retain"):
        words += [f"--{name}-text", files / f"{name}.txt"]
    script.execute(unlearn, [str(word) for word in words])
    return outdir


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def record_of(folder: Path) -> Any:
    return json.loads((folder / "unlearning.json").read_text())


# ── weights ───────────────────────────────────────────────────────────────────────────────────────


def test_task_arithmetic_goes_the_other_way_in_proportion(
    base: Path, files: Path, tmp_path: Path
) -> None:
    """Twice the scale is twice the change, and forget texts become less likely, not more."""
    train = ("--lr", "1e-3", "--steps", "3", "--save-dtype", "fp32", "--scale")
    once, twice = (
        execute(base, "task_arithmetic", files, tmp_path / scale, *train, scale)
        for scale in ("1", "2")
    )
    W, W_once, W_twice = (weights(one) for one in (base, once, twice))
    for name, before in W.items():
        change = W_once[name] - before.float()
        torch.testing.assert_close(W_twice[name], before.float() + 2 * change)
    record = record_of(twice)
    assert record["losses"][-1]["loss"] < record["losses"][0]["loss"]
    assert record["after"]["forget_NLL"] > record["before"]["forget_NLL"]


def test_what_is_removed_is_zero_and_stays_zero(base: Path, files: Path, tmp_path: Path) -> None:
    given = ("--lr", "1e-2", "--steps", "8", "--pruned", "0.5", "--batch-size", "4")
    found = weights(execute(base, "prune", files, tmp_path / "out", *given))
    out = [W for name, W in found.items() if name.endswith("dense_4h_to_h.weight")]
    into = [W for name, W in found.items() if name.endswith("dense_h_to_4h.weight")]
    dead = [(a == 0).all(0) & (b == 0).all(1) for a, b in zip(out, into, strict=True)]
    assert int(torch.cat(dead).sum()) == round(0.5 * sum(W.shape[1] for W in out))


def test_importance_is_the_first_order_change_of_the_loss() -> None:
    """Of one batch: |slope| of the loss as a neuron is scaled away, by finite differences."""
    network = Network(tiny_models.build("gpt_neox", 0).double())
    texts = [[5, 9, 30, 41, 7], [8, 12, 60, 3, 1]]
    trainer: Any = SimpleNamespace(
        network=network,
        options=SimpleNamespace(batch_size=2),
        texts=lambda split: texts,
        batch=lambda split, rows: pruning_batch([texts[i] for i in rows]),
    )
    found = pruning.importance(trainer, "forget")
    slopes = []
    for out, _ in pruning.parts(network):
        for neuron in range(out.in_features):
            kept = out.weight[:, neuron].detach().clone()
            losses = []
            for share in (1.001, 0.999):
                with torch.no_grad():
                    out.weight[:, neuron] = kept * share
                    losses.append(float(pruning.nll(network, pruning_batch(texts))))
            with torch.no_grad():
                out.weight[:, neuron] = kept
            slopes.append(abs(losses[0] - losses[1]) / 0.002)
    expected = torch.tensor(slopes).double()
    torch.testing.assert_close(found, expected / expected.mean(), rtol=1e-3, atol=1e-5)


def pruning_batch(texts: list[list[int]]) -> Any:
    from model_diffs.unlearning.data import split_batch

    return split_batch(texts, range(len(texts)), 0, torch.device("cpu"))


def test_noise_replaces_its_share_of_every_matrix(base: Path, files: Path, tmp_path: Path) -> None:
    """At a rate of nearly 0 what is saved is the start: half the base, half noise of its size."""
    given = ("--teacher", base, "--noise-share", "0.5", "--lr", "1e-12", "--steps", "1")
    folder = execute(base, "noise_distil", files, tmp_path / "out", *given, "--save-dtype", "fp32")
    W, made = weights(base), weights(folder)
    for name, before in W.items():
        if before.ndim < 2:
            torch.testing.assert_close(made[name], before.float())
            continue
        noise = made[name] - 0.5 * before.float()
        rms = before.float().square().mean().sqrt()
        assert float(noise.square().mean().sqrt() / (0.5 * rms)) == pytest.approx(1, abs=0.15)
        flat = torch.stack([noise.flatten(), before.float().flatten()])
        assert abs(float(torch.corrcoef(flat)[0, 1])) < 0.15


def test_distillation_comes_closer_to_its_teacher(base: Path, files: Path, tmp_path: Path) -> None:
    given = ("--teacher", base, "--noise-share", "0.3", "--lr", "3e-3", "--steps", "30")
    losses = record_of(execute(base, "noise_distil", files, tmp_path / "out", *given))["losses"]
    assert losses[-1]["loss"] < 0.5 * losses[0]["loss"]


def test_rates_of_another_model_are_repeated(base: Path, files: Path, tmp_path: Path) -> None:
    npo = execute(base, "npo", files, tmp_path / "npo", "--lr", "2e-3", "--steps", "5")
    like = execute(base, "finetune", files, tmp_path / "like", "--like", npo)
    rates = [[step["lr"] for step in record_of(one)["losses"]] for one in (npo, like)]
    assert rates[0] == pytest.approx(rates[1], rel=1e-9) and len(rates[0]) == 5


@pytest.mark.parametrize("method", ["prune", "task_arithmetic"])
def test_methods_of_whole_weights_refuse_an_adapter(
    method: str, base: Path, files: Path, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match="without --lora-rank"):
        execute(base, method, files, tmp_path / "out", "--lora-rank", "2")


# ── the target ────────────────────────────────────────────────────────────────────────────────────


class Clock(nn.Module):
    """A model that is nothing but the number of steps it was trained for."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.Parameter(torch.zeros(()))


def walked(accuracy: Any, steps: int, general: float = 1.0) -> tuple[Until, list[int], Any]:
    """Train `steps` steps at most; the accuracy on tune after n is `accuracy(n)`."""
    clock = Clock()
    trainer: Any = SimpleNamespace(
        network=clock,
        stateful=[],
        steps=[None] * steps,
        steps_log=[],
        intervention=Intervention(),
        say=lambda line: None,
    )

    def ask(questions: Any) -> float:
        return general if questions == ["general"] else accuracy(int(clock.steps))

    search, number, seen = Until("hazard", 0.30, ask, ["tune"], ["general"]), 0, []  # type: ignore[arg-type]
    while number < steps:
        number += 1
        with torch.no_grad():
            clock.steps += 1
        trainer.steps_log.append(number)
        seen.append(int(clock.steps))
        number = search.after_step(trainer, number)
    return search, seen, trainer


def test_training_goes_back_and_stops_at_the_step_of_the_target() -> None:
    """Accuracy falls through the target between two looks: only step 93 is within."""
    search, seen, trainer = walked(lambda n: 0.9 if n < 93 else 0.3 if n == 93 else 0.0, 400)
    assert search.reached and search.looks[-1].at == 93
    assert seen == [*range(1, 101), *range(91, 94)]  # looks every ten steps
    assert trainer.steps_log == [*range(1, 94)]


def test_a_target_that_costs_too_much_is_not_reached() -> None:
    search, seen, _ = walked(lambda n: 0.9 if n < 20 else 0.3, 40, general=0.9)
    assert not search.reached and seen[-1] == 40
    assert search.record()["reached"] is False


def test_a_strength_is_bisected() -> None:
    """Accuracy 1 − s/8 is 0.30 ± 0.05 for s from 5.2 to 6."""
    now = [0.0]
    search = Until("hazard", 0.30, lambda asked: 1.0 if asked == ["general"] else 1 - now[0] / 8,
                   ["tune"], ["general"])  # type: ignore[arg-type] # fmt: skip
    found = search.strength(SimpleNamespace(), lambda s: now.__setitem__(0, s), 8.0)  # type: ignore[arg-type]
    assert search.reached and 5.2 <= found <= 6 and now[0] == found


def test_without_a_target_every_step_is_trained() -> None:
    assert search_of(None, [], None, None).after_step(SimpleNamespace(), 7) == 7
    assert Search().record() is None
    assert not Negation.grows_with_steps


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ("--until hazard=0.3", "--until needs --questions"),
        ("--until poison=0.3 --questions {questions}", "of domain 'poison' and fold 'tune'"),
        ("--until hazard=0.3 --questions {questions} --checkpoint-every 2", "--checkpoint-every"),
    ],
)
def test_targets_that_cannot_be_looked_at_are_refused(
    more: str, says: str, base: Path, files: Path, tmp_path: Path
) -> None:
    words = more.format(questions=files / "questions.jsonl").split()
    with pytest.raises(BadInput, match=says):
        execute(base, "npo", files, tmp_path / "out", *words)
    assert not list(tmp_path.glob("*"))


def test_a_run_records_its_looks(base: Path, files: Path, tmp_path: Path) -> None:
    given = ("--until", "hazard=0.30", "--questions", files / "questions.jsonl", "--steps", "4")
    found = record_of(execute(base, "npo", files, tmp_path / "out", *given))["until"]
    assert found["domain"] == "hazard" and found["target"] == 0.3
    assert [look["at"] for look in found["looks"]][-1] <= 4
