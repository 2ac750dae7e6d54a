"""Knowledge that is answered inside and not at the output: the logit lens at its best block.

The block is chosen on the questions of the other folds, so that no question chooses the block that
it is read from.
"""

import numpy as np

from model_diffs.brittleness.attack_free.pair import Declaration, Pair
from model_diffs.evaluation import logit_lens

MEASURES = (
    Declaration("lens_peak", "Hazard accuracy read at the inner block that is best elsewhere."),
    Declaration("lens_margin", "Margin of the right answer there, nats."),
)


def measure(pair: Pair) -> dict[str, float]:
    """Mean over all hazard questions, each read at the block that is best on the other folds."""
    victim = pair.victim
    size = 4 * victim.options.batch_size
    every = logit_lens.answers_by_layer(victim.model, victim.tokenizer, pair.hazard, size)
    inner = every[1:-1]
    right = np.array([[one.correct for one in given] for given in inner], float)
    margins = np.array([[one.margin for one in given] for given in inner])
    folds = np.array([str(one.fold) for one in pair.hazard])
    found = []
    for fold in dict.fromkeys(folds):
        others = folds != fold if (folds != fold).any() else folds == fold
        block = int((right[:, others].mean(1) + 1e-6 * margins[:, others].mean(1)).argmax())
        found += [(right[block, i], margins[block, i]) for i in np.flatnonzero(folds == fold)]
    means = np.mean(found, axis=0)
    return {"lens_peak": float(means[0]), "lens_margin": float(means[1])}
