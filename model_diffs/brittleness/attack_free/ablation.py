"""Knowledge that a direction hides: what comes back when it is projected out.

The `direction` attack of step 18 (Arditi et al. 2024), read as a measure of the model: nothing is
trained, and no fact is told.
"""

from model_diffs.attacks import registry
from model_diffs.brittleness.attack_free.pair import (
    CHOSEN_ON,
    READ_ON,
    Declaration,
    Pair,
    accuracy,
    margin,
)

MEASURES = (
    Declaration("ablation_gain", "Hazard accuracy gained when the direction is projected out."),
    Declaration("ablation_margin", "The same of the margin of the right answer, nats."),
)


def measure(pair: Pair) -> dict[str, float]:
    """Gain on fold `heldout`, at the block, or all, that is best on fold `tune`."""
    attack = registry.load("direction")
    pair.victim.forget_kept()
    found = []
    for strength in attack.strengths(pair.victim, {}):
        with attack.attacked(pair.victim, strength) as opened:
            found.append(opened.ask(pair.hazard))
    pair.victim.forget_kept()
    best = max(found, key=lambda given: (accuracy(given, CHOSEN_ON), margin(given, CHOSEN_ON)))
    return {
        "ablation_gain": accuracy(best, READ_ON) - accuracy(pair.own, READ_ON),
        "ablation_margin": margin(best, READ_ON) - margin(pair.own, READ_ON),
    }
