"""What may predict an attack without being one: one file each.

No file trains the model or takes a gradient on attacked facts. A file declares its measures and
computes them:

    MEASURES = (Declaration("midpoint_accuracy", "…", reads_base=True),)

    def measure(pair: Pair) -> dict[str, float]: ...

pair                what all of them are given
answers             what the model answers as it is
ablation            the direction between forget and retain states projected out
midpoint            half-way back to the base
lens_peak           the inner block that answers best, chosen on other folds
statements          facts asked in the words of the forget set
knowledge_probe     a linear reading of values from states, entities held out
similarity          1 − CKA of states
fisher              the change weighted by Fisher information of the base
curvature           of the forget loss, at the model
"""

NAMES = (
    "answers",
    "ablation",
    "midpoint",
    "lens_peak",
    "statements",
    "knowledge_probe",
    "similarity",
    "fisher",
    "curvature",
)
"""Of the files."""
