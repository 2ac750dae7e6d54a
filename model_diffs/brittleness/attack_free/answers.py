"""What the model answers as it is: the start of every attack."""

from model_diffs.brittleness.attack_free.pair import READ_ON, Declaration, Pair, accuracy, margin

MEASURES = (
    Declaration("start_accuracy", "Hazard accuracy on held-out facts, before any attack."),
    Declaration("start_margin", "Margin of the right answer, nats."),
    Declaration("known_accuracy", "Accuracy on questions of the other domains."),
)


def measure(pair: Pair) -> dict[str, float]:
    """Of fold `heldout`, and of all other questions."""
    return {
        "start_accuracy": accuracy(pair.own, READ_ON),
        "start_margin": margin(pair.own, READ_ON),
        "known_accuracy": accuracy(pair.victim.ask(pair.known)) if pair.known else 0.0,
    }
