"""Attacks that ask otherwise: shown questions, trained vectors, inner blocks."""

from pathlib import Path

import elicit_study
import numpy as np
import pytest
import tiny_models
import torch
from elicit_study import margins

from model_diffs.attacks import elicitation, registry
from model_diffs.attacks.eliciting import few_shot, soft_prompt
from model_diffs.attacks.victim import NotApplicable, Victim
from model_diffs.evaluation import scoring

FAMILIES = ("llama", "qwen2", "gemma2", "gpt_neox", "gpt2")


@pytest.mark.parametrize("family", FAMILIES)
def test_reading_shown_questions_once_changes_no_answer(family: str, tmp_path: Path) -> None:
    folder = tiny_models.save(family, tmp_path / "model")
    victim = elicit_study.victim(folder, tmp_path)
    shown, asked = (
        victim.questions["attack"][:3],
        victim.questions["heldout"] + victim.questions["attack"][:4],
    )
    given = [few_shot.behind(shown, one) for one in asked]
    assert given[0].prompt.count("\n") == 3 and given[-2].prompt.count("\n") == 2
    assert few_shot.sentence(shown[0]) in given[0].prompt and given[-4].prompt.startswith("Q")
    plain = scoring.score(victim.model, victim.tokenizer, given)
    reading = few_shot.reading(victim)
    once = scoring.read_answers(victim.model, victim.tokenizer, given, 8, reading)[0]
    np.testing.assert_allclose(*([a.margin for a in one] for one in (once, plain)), atol=2e-5)


def test_shown_questions_are_of_the_group_named_and_the_same_for_all(tmp_path: Path) -> None:
    folder = tiny_models.save("llama", tmp_path / "model")
    victim = elicit_study.victim(folder, tmp_path)
    one, two = (margins(victim, "few_shot", s) for s in ("attack2", "general2"))
    assert one != two and one == margins(victim, "few_shot", "attack2")
    with pytest.raises(NotApplicable, match="8 questions of attack"):
        margins(victim, "few_shot", "attack9")


def test_a_soft_prompt_makes_what_it_is_trained_on_likelier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_models.save("llama", tmp_path / "model")
    asked = elicit_study.groups()
    asked["attack"] = [one._replace(choices=tuple("zabc")) for one in asked["attack"]]
    victim = Victim(str(folder), asked, elicit_study.options(tmp_path))
    found = []
    for steps in (0, 60):
        monkeypatch.setattr(soft_prompt, "STEPS", steps)
        with registry.load("soft_prompt").attacked(victim, "n4") as opened:
            found.append(np.mean([one.margin for one in opened.ask(asked["attack"])]))
    assert found[1] > found[0] + 0.1
    # Without a prefix nothing is in front: the model's own answers.
    own = soft_prompt.train(victim, 1)[:0]
    batch = soft_prompt.pad_batch([[5, 6, 7], [8, 9]], 0, victim.device)
    plain = victim.model(**batch._asdict()).logits
    torch.testing.assert_close(soft_prompt.behind(victim, own, batch), plain, atol=1e-5, rtol=1e-5)


def test_the_lens_reads_an_inner_block_in_one_pass(tmp_path: Path) -> None:
    folder = tiny_models.save("llama", tmp_path / "model")
    victim = elicit_study.victim(folder, tmp_path)
    passes: list[int] = []
    victim.model.get_input_embeddings().register_forward_hook(lambda *_: passes.append(1))
    found = [margins(victim, "lens", one) for one in registry.load("lens").strengths(victim, {})]
    once = len(passes)
    assert len(found) == 2 and found[0] != found[1] != margins(victim)
    margins(victim, "lens", "block0")
    assert len(passes) == 2 * once, "one pass for both blocks, one for the model's own answers"
    with pytest.raises(NotApplicable, match="2 inner blocks"):
        margins(victim, "lens", "block2")


def test_the_lens_reads_only_the_blocks_that_are_asked_for(tmp_path: Path) -> None:
    """The head is most of the cost, and a study may name a few of many blocks."""
    folder = tiny_models.save("llama", tmp_path / "model")
    victim = elicit_study.victim(folder, tmp_path)
    attack, read = registry.load("lens"), list[int]()
    every = {one.strength: one for one in elicitation._tries(victim, attack, {}, [])}
    victim.model.get_output_embeddings().register_forward_hook(lambda *_: read.append(1))
    (only,) = elicitation._tries(victim, attack, {"lens": ("block1",)}, [])
    asked = len(read)
    assert [*only.correct] == [*every["block1"].correct]
    for group, correct in only.correct.items():
        np.testing.assert_array_equal(correct, every["block1"].correct[group])
    [*elicitation._tries(victim, attack, {}, [])]
    assert len(read) - asked == 2 * asked
