"""Step 17: next-token divergence against a loop over tokens in fp64, and planted cases."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny_study
import torch
from scipy.special import log_softmax
from tiny_study import Study
from transformers import AutoModelForCausalLM, AutoTokenizer

NAME = "kl_divergence"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    made = tiny_study.make(tmp_path_factory.mktemp("kl"))
    forget = made.root / "forget.txt"
    forget.write_text(forget.read_text() + "the <script> of a virus & its 'vector' 21.\n")
    made.compare("kl_divergence.py")
    return made


def table(study: Study, name: str, pair: str = "base__to__base__rmu") -> pd.DataFrame:
    return pd.read_csv(study.root / "outputs" / pair / NAME / f"{name}.csv")


def by_token(model: str, text: str) -> np.ndarray:
    """Log-probabilities `[tokens, vocabulary]` after each token but BOS, in fp64."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64).eval()
    with torch.no_grad():
        logits = loaded(input_ids=ids).logits[0].numpy()
    return log_softmax(logits, axis=-1)[int(ids[0, 0] == tokenizer.bos_token_id) :]


@pytest.mark.parametrize("split", ["forget", "retain"])
def test_values_of_each_text_equal_a_loop_over_tokens(study: Study, split: str) -> None:
    lines = (study.root / f"{split}.txt").read_text().splitlines()
    found = table(study, "per_text").query("split == @split").set_index("text")
    for text in (0, 7, len(lines) - 1):
        p, q = by_token(study.model_a, lines[text]), by_token(study.model_b, lines[text])
        expected = (np.exp(p) * (p - q)).sum(-1)
        assert found.loc[text, "kl"] == pytest.approx(expected.mean(), rel=1e-4)
        assert found.loc[text, "agreement"] == np.mean(p.argmax(-1) == q.argmax(-1))
        assert found.loc[text, "tokens"] == len(p)


def test_summary_is_the_mean_over_tokens_inside_its_interval(study: Study) -> None:
    texts = table(study, "per_text")
    for row in table(study, NAME).itertuples():
        part = texts[texts["split"] == row.split]
        assert row.kl == pytest.approx(np.average(part.kl, weights=part.tokens))
        assert row.agreement == pytest.approx(np.average(part.agreement, weights=part.tokens))
        assert row.kl_low < row.kl < row.kl_high and row.agreement_low <= row.agreement_high
        assert (row.texts, row.tokens) == (len(part), part.tokens.sum())


def test_tokens_are_those_with_the_largest_divergence(study: Study) -> None:
    tokens = table(study, "tokens")
    assert tokens.groupby("split").size().tolist() == [20, 20]
    assert all(part.kl.is_monotonic_decreasing for _, part in tokens.groupby("split"))
    first = tokens[tokens["split"] == "forget"].iloc[0]
    line = (study.root / "forget.txt").read_text().splitlines()[first["text"]]
    p, q = by_token(study.model_a, line), by_token(study.model_b, line)
    assert first["kl"] == pytest.approx((np.exp(p) * (p - q)).sum(-1).max(), rel=1e-4)


def test_a_model_against_itself_has_no_divergence(study: Study) -> None:
    study.compare("kl_divergence.py", b=study.model_a)
    texts = table(study, "per_text", "base__to__base")
    assert (texts.kl == 0).all() and (texts.agreement == 1).all()


def test_page_escapes_its_texts(study: Study) -> None:
    path = study.root / "outputs/base__to__base__rmu" / NAME / "contexts.html"
    page = path.read_text(encoding="utf-8")
    assert "<script>" not in page and page.count("<tr") == 41


def test_logits_that_are_not_finite_are_refused(study: Study, tmp_path: Path) -> None:
    from model_diffs.core.errors import BadInput

    broken = tmp_path / "broken"
    model = AutoModelForCausalLM.from_pretrained(study.model_b)
    model.get_output_embeddings().weight.data[3] = float("nan")
    model.save_pretrained(broken)
    AutoTokenizer.from_pretrained(study.model_b).save_pretrained(broken)
    with pytest.raises(BadInput, match="not finite"):
        study.compare("kl_divergence.py", b=str(broken))
    assert not (study.root / "outputs/base__to__broken" / NAME).exists()
