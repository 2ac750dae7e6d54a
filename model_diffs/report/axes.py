"""The sections of the page, in order, and what steps declare for each of them."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from model_diffs.core.step import Measure, Script
from model_diffs.report.signature import Axis, Figure

# Key and question of each axis, and how to read its numbers.
_AXES = {
    ("magnitude", "How much of the weights did the intervention change?"): (
        "Relative ‖ΔW‖ is the norm of the whole change divided by the norm of the base's weights. "
        "The changed share counts the entries whose stored value differs. A small ΔW does not "
        "imply shallow unlearning, but a model retrained from scratch never has one."
    ),
    ("location", "Where in the model is the change?"): (
        "The ratio compares the relative change of MLPs and attention: 1 means both changed "
        "equally. The depth is where the running sum of the blocks' ‖ΔW‖² reaches half: 0.5 for a "
        "change spread evenly, near 0 or 1 for a change in the first or last blocks."
    ),
    ("geometry", "How many directions does the change use, and which?"): (
        "A change with most of its ‖ΔW‖² in few directions is low-rank; full retraining gives "
        "many. An alignment of 1 means that a matrix kept its leading directions. Null-space "
        "energy compares what ΔW writes outside the directions that W uses with a random change of "
        "the same size: below 1, the change stays within them."
    ),
    ("function", "How far do hidden states move, on forget and on retain texts?"): (
        "All numbers are means over the outputs of the blocks. A filtered model moves hidden "
        "states on both sets, since it was trained separately. Forget-set states that move farther "
        "than in the filtered model while retain-set states stay indicate that activations are "
        "displaced rather than that the knowledge is absent; so does a separation of forget and "
        "retain texts that grows more than by filtering."
    ),
    ("precision", "Is the change specific to forget inputs?"): (
        "Both numbers are ratios of forget over retain texts: 1 means that the change affects both "
        "equally. Row space: share of the inputs' energy in the row space of ΔW. Effect: size of "
        "ΔW x relative to W x."
    ),
    ("stability", "Does the model react more or less to small perturbations of its input?"): (
        "Ratios of the changed model over the base: 1 means no change. Response to noise: random "
        "perturbations of the embeddings. Jacobian norm: the worst-case perturbation. Below 1, the "
        "model became smoother around these texts, as when many inputs map to one output; above 1, "
        "it became more sensitive."
    ),
    ("localisation", "At which depth did the two sets become easier or harder to tell apart?"): (
        "Change of the AUC of linear probes, averaged over each third of the blocks. Probes detect "
        "the topic, not the knowledge: no change is usual, also where all knowledge is gone."
    ),
    ("knowledge", "Which questions does the model still answer, at its output and inside?"): (
        "Accuracy on four-choice questions; chance is 0.25. Adjacent and general questions measure "
        "the cost of unlearning. Inside: logit-lens accuracy on hazard questions, corrected for "
        "chance, at the inner block that answers best on other questions. Above the filtered "
        "model's, the knowledge is hidden rather than removed."
    ),
    ("brittleness", "Does fine-tuning on other facts restore what was forgotten?"): (
        "No attack text contains the facts that are asked. What an attack gains counts over the "
        "filtered model after the same attack: 0 for a model that knows as little. An attack that "
        "did not take, since the facts it trains on were not learned, tests nothing. What harmless "
        "training alone brings back shows how little it takes."
    ),
}
AXES = tuple(Axis(key, key.capitalize(), ask, read) for (key, ask), read in _AXES.items())

# The first numbers of the page, in words; conclusions from them stand at its top.
AT_A_GLANCE = {
    "hazard_accuracy": "Hazard questions answered correctly",
    "recovered_best": "Answered beyond the filtered model after the best attack that trains",
    "elicited": "… after the best that does not",
    "relative_change": "Relative change of the weights",
    "dh_forget": "Relative change of forget-set hidden states",
    "dh_retain": "… of retain-set hidden states",
}

# Beside some of them, in small: how many attacks tested the model.
COUNTED = {"recovered_best": "arms_tried", "elicited": "attacks_tried"}


class Declared(NamedTuple):
    """A measure with the script that declares it."""

    script: Script
    measure: Measure


def _figures(script: Script, base: str) -> Iterator[tuple[str, Figure]]:
    """Axis and place of a step's figures; of a step with a summary, also in the study's folder."""
    step = script.step
    owner = {"comparison": "{comparison}/", "model": "{model}/"}.get(step.scope, "")
    for place in dict.fromkeys((owner, "" if step.summary else owner)):
        folder = place + step.folder.replace("{base}", base)
        yield from ((one.axis, Figure(f"{folder}/{one.name}", one.caption)) for one in step.figures)


def declared_by(scripts: Iterable[Script], base: str) -> tuple[list[Axis], list[Declared]]:
    """Axes with their steps and figures, and all measures in the order of the axes.

    An axis that AXES does not have is titled by its key and asks its first step's question.
    """
    axes = {axis.key: axis for axis in AXES}
    declared = []
    for script in scripts:
        step = script.step
        if step.scope == "other":
            continue
        figures = [(axis, figure) for axis, figure in _figures(script, base) if axis]
        declared += [Declared(script, measure) for measure in step.measures]
        for key in dict.fromkeys([*(m.axis for m in step.measures), *(a for a, _ in figures)]):
            axis = axes.get(key) or Axis(key, key.capitalize(), step.question, "")
            own = tuple(figure for shown_under, figure in figures if shown_under == key)
            steps = dict.fromkeys((*axis.steps, step.number))
            axes[key] = axis._replace(steps=(*steps,), figures=axis.figures + own)
    order = [*axes]
    return [*axes.values()], sorted(declared, key=lambda one: order.index(one.measure.axis))
