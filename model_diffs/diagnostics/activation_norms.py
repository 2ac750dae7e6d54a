"""Step 4's tables: norms of hidden states and of their differences, intervals over documents."""

import numpy as np
import pandas as pd

from model_diffs.activations.saved import Saved
from model_diffs.stats.intervals import ratio_interval


def norm_table(base: Saved, changed: Saved, difference: Saved, seed: int) -> pd.DataFrame:
    """One row per hidden state: means over tokens, `_low` and `_high` their 95 % intervals.

    The change of a norm is resampled as one statistic, so its interval is paired: both models on
    the same resampled documents. `…_residual` reads the last state before the final norm.
    """
    tokens, split = base.read("tokens"), base.split.name
    if not np.array_equal(tokens, changed.read("tokens")):
        raise ValueError(f"{split}: the two models counted different tokens")
    plain = {
        "model_a_norm_L1": base.read("norm_l1"),
        "model_a_norm_L2": base.read("norm_l2"),
        "model_b_norm_L1": changed.read("norm_l1"),
        "model_b_norm_L2": changed.read("norm_l2"),
        "mean_dh_L1": difference.read("dh_l1"),
        "mean_dh_L2": difference.read("dh_l2"),
    }
    sums = plain | {
        "norm_change_L1": plain["model_b_norm_L1"] - plain["model_a_norm_L1"],
        "norm_change_L2": plain["model_b_norm_L2"] - plain["model_a_norm_L2"],
        "mean_dh_rel": difference.read("dh_rel"),
        "mean_cosine": difference.read("cosine"),
        "mean_dh_rel_residual": difference.read("dh_rel", "residual"),
    }
    interval = ratio_interval(np.stack(list(sums.values()), axis=-1), tokens, seed)
    columns = {
        f"{name}{end}": part[:, number]
        for number, name in enumerate(sums)
        for end, part in zip(("", "_low", "_high"), interval, strict=True)
    }
    found = pd.DataFrame({name: columns[name] for name in plain} | columns)  # their intervals last
    found.insert(0, "layer", range(len(found)))
    found.insert(1, "split", split)
    return found.assign(tokens=tokens.sum(), texts=len(tokens))


def text_table(difference: Saved) -> pd.DataFrame:
    """One row per text (`text`: its position in the split), for resampling the same texts.

    `mean_dh_rel` is the mean over the text's tokens and over states 1, …, N, the outputs of the
    blocks (N before the final norm); weighted by `tokens`, these average to the mean over texts.
    """
    tokens, texts = difference.read("tokens"), difference.read("documents")
    moved = difference.read("dh_rel", "residual")[:, 1:].mean(1) / tokens
    columns = {"text": texts, "tokens": tokens, "mean_dh_rel": moved}
    return pd.DataFrame({"split": difference.split.name, **columns})
