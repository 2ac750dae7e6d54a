"""Step 4's tables from statistics that are written down here."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_study

from model_diffs.diagnostics.activation_norms import norm_table, text_table
from model_diffs.stats.intervals import ratio_interval

DOCUMENTS, STATES, SEED = 11, 4, 3
TOKENS = np.random.default_rng(9).integers(1, 8, DOCUMENTS)


def saved(seed: int, *names: str) -> Any:
    """Statistics of each name `[documents, S]`; of `residual` states, others."""
    draw = np.random.default_rng(seed)
    shape = (DOCUMENTS, STATES)
    held = {(name, which): draw.uniform(size=shape) for name in names for which in ("", "residual")}
    held |= {("tokens", ""): TOKENS, ("documents", ""): np.arange(2, 2 + DOCUMENTS)}

    def read(name: str, which: str = "") -> np.ndarray:
        return held[name, which]

    return SimpleNamespace(read=read, split=SimpleNamespace(name="forget"), held=held)


def test_every_column_is_a_mean_over_tokens_with_its_interval() -> None:
    a, b = (saved(i, "norm_l1", "norm_l2") for i in (0, 1))
    change = saved(2, "dh_l1", "dh_l2", "dh_rel", "cosine")
    table = norm_table(a, b, change, SEED)
    expected = {
        "model_a_norm_L1": a.read("norm_l1"),
        "model_a_norm_L2": a.read("norm_l2"),
        "model_b_norm_L1": b.read("norm_l1"),
        "model_b_norm_L2": b.read("norm_l2"),
        "mean_dh_L1": change.read("dh_l1"),
        "mean_dh_L2": change.read("dh_l2"),
        "norm_change_L1": b.read("norm_l1") - a.read("norm_l1"),
        "norm_change_L2": b.read("norm_l2") - a.read("norm_l2"),
        "mean_dh_rel": change.read("dh_rel"),
        "mean_cosine": change.read("cosine"),
        "mean_dh_rel_residual": change.read("dh_rel", "residual"),
    }
    for name, sums in expected.items():
        interval = ratio_interval(sums, TOKENS, SEED)
        for end, values in zip(("", "_low", "_high"), interval, strict=True):
            np.testing.assert_allclose(table[f"{name}{end}"], values, rtol=1e-12)
    assert table.columns[:4].tolist() == ["layer", "split", "model_a_norm_L1", "model_a_norm_L2"]
    assert table.columns[2:8].tolist() == [*expected][:6], "documented ones first, ends last"
    assert table["layer"].tolist() == [0, 1, 2, 3] and (table["split"] == "forget").all()
    assert (table["tokens"] == TOKENS.sum()).all() and (table["texts"] == DOCUMENTS).all()


def test_models_that_counted_other_tokens_are_refused() -> None:
    a, b = (saved(i, "norm_l1", "norm_l2") for i in (0, 1))
    b.held["tokens", ""] = TOKENS + 1
    with pytest.raises(ValueError, match="forget: the two models counted different tokens"):
        norm_table(a, b, saved(2, "dh_l1"), SEED)


def test_a_text_has_the_mean_of_its_tokens_over_the_blocks() -> None:
    change = saved(2, "dh_rel")
    table = text_table(change)
    sums = change.read("dh_rel", "residual")
    np.testing.assert_allclose(table["mean_dh_rel"], sums[:, 1:].sum(1) / 3 / TOKENS)
    assert table["text"].tolist() == [*range(2, 13)] and (table["split"] == "forget").all()
    np.testing.assert_array_equal(table["tokens"], TOKENS)


@pytest.mark.parametrize(
    ("how", "says"), [("no", "states of the base are kept in fp16"), ("yes", "has no effect")]
)
def test_a_cache_in_fp16_is_named_where_it_acts_and_where_it_does_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str, says: str
) -> None:
    study = tiny_study.make(tmp_path)
    models = ("--model-a", study.model_a, "--model-b", study.model_b)
    study.run("collect_activation_norms.py", *models, "--cache-fp16", "--side-by-side", how)
    assert f"warning: --cache-fp16: {says}" in capsys.readouterr().err
