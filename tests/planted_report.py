"""A small signature made by hand, hostile names included, and its page on disk."""

import dataclasses
import io
from pathlib import Path

import numpy as np
import pandas as pd

from model_diffs.core.step import Measure
from model_diffs.core.tables import Source
from model_diffs.report import page
from model_diffs.report.signature import (
    Axis,
    Comparison,
    Figure,
    Missing,
    Sentence,
    Signature,
    Verdict,
)
from model_diffs.stats.estimates import Estimate

HOSTILE = "<script>alert(1)</script>"
_TABLE = 'weights/per "layer"\'s.csv'


def _comparison(changed: str, role: str = "unlearned") -> Comparison:
    # A folder cannot hold a slash; everything else that a name may be made of is in it.
    label = "base__to__" + changed.replace("/", "_")
    return Comparison(label, "base", changed, changed, role)


COMPARISONS = [
    _comparison("filtered", "filtered"),
    _comparison(HOSTILE),
    _comparison("npo", "control"),
]


def _measure(key: str, axis: str, label: str, meaning: str, unit: str, **more: float) -> Measure:
    return Measure(key, axis, "layer", key, unit=unit, label=label, meaning=meaning, **more)


MEASURES = [
    _measure("size", "weights", "Size of ΔW", "‖ΔW‖ / ‖W‖, mean.", "ratio", unchanged=0.0),
    _measure("moved", "states", "Change of states", "Changed minus base.", "change", unchanged=0.0),
    _measure("back", "states", "Share that came back", "Of the gap.", "share", unchanged=0.0),
    _measure("rank", "weights", "Rank of ΔW", "Stable rank.", "rank"),
    _measure("hazard_accuracy", "states", "Accuracy", "Of hazard questions.", "accuracy"),
]
VALUES = {
    "size": (12.75, 2.5, 0.3141592653589793),
    "moved": (-0.0625, 0.5, 0.21),
    "back": (None, 0.9, 0.96),
    "rank": (9.9, 2.2, 3.6),
    "hazard_accuracy": (0.22, 0.34, 0.39),
}


def signature() -> Signature:
    """Three comparisons, two axes, an absent number, conclusions, and what is missing."""
    values, sentences = {}, []
    for i, comparison in enumerate(COMPARISONS):
        path = f"{comparison.label}/{_TABLE}"
        for measure in MEASURES:
            value = VALUES[measure.key][i]
            if value is not None:
                source = Source(path, measure.key, f"layer={i}, split=<b>forget</b>")
                ends = (value - 0.03, value + 0.03) if measure.key != "rank" else (None, None)
                values[comparison.label, measure.key] = Estimate(value, source, *ends)
        claim = f"moved <img src=x onerror=alert(1)> like {comparison.short}"
        for axis in ("weights", "states"):
            source = (Source(path, "size", ""),)
            numbers = f"0.5 (0.4 to 0.6) {HOSTILE}."
            sentences.append(
                Sentence(axis, comparison.label, "size", claim, numbers, "Both ends > 0.", source)
            )
    axes = [
        Axis("weights", "Weights", "How far?", "Higher is farther.", (1,),
             (Figure("{comparison}/weights/size", "Size by block."),)),
        Axis("states", "States", "How much?", "Higher is more.", (4, 14),
             (Figure("{comparison}/states/moved", "Movement by state."),
              Figure("together/all", "All models."))),
    ]  # fmt: skip
    missing = [Missing(14, "relearn.py", COMPARISONS[0].label, f"failed, {HOSTILE}")]
    base_values = {
        "hazard_accuracy": Estimate(0.98, Source("base/known.csv", "accuracy", ""), 0.95, 1.0)
    }
    measures = sorted(MEASURES, key=lambda measure: measure.axis != "weights")
    return Signature(
        "base", COMPARISONS, axes, measures, values, base_values, sentences, missing,
        {(COMPARISONS[0].label, "back"): f"no gap to come back from: {HOSTILE}"},
        [f"Of 12 intervals <b>{HOSTILE}</b>."], _provenance(),
        {"size": Verdict("no", HOSTILE, {COMPARISONS[1].label: ("calm",)}, True),
         "rank": Verdict("no", HOSTILE, {COMPARISONS[1].label: ("calm",)}),
         "hazard_accuracy": Verdict("yes", HOSTILE)},
    )  # fmt: skip


def _provenance() -> dict[str, object]:
    run = {
        "step": (1, "collect_param_stats.py"), "whose": HOSTILE,
        "folder": f"{COMPARISONS[1].label}/weights", "seconds": 1.5, "command": HOSTILE,
        "tables": ['per "layer"\'s.csv'],
    }  # fmt: skip
    return {
        "models": [{"label": HOSTILE, "id": HOSTILE, "bytes": 4_200_000, "config_sha256": None,
                    "sum_lr": 0.125}],
        "texts": [{"split": HOSTILE, "path": HOSTILE, "texts": 1000, "tokens": 5000,
                   "texts_left_out": 0, "tokens_left_out": 12, "sha256": None, "steps": [4]}],
        "runs": [run], "versions": {"numpy": ["2.4.6"]}, "devices": [HOSTILE], "dtypes": ["fp32"],
        "pythons": ["3.11.7"], "commits": ["0" * 40], "how": HOSTILE,
        "finished": "2026-01-31T10:00:00+0000",
    }  # fmt: skip


def only_one() -> Signature:
    """One comparison, one axis."""
    whole = signature()
    one = whole.comparisons[2]
    return dataclasses.replace(
        whole,
        comparisons=[one],
        measures=[measure for measure in whole.measures if measure.axis == "weights"],
        sentences=[],
        verdicts={},
        missing=[Missing(4, "collect_param_stats.py", one.label, "not run")],
        provenance={},
    )


def nothing_measured() -> Signature:
    """Not one table."""
    return dataclasses.replace(only_one(), measures=[], values={}, base_values={})


def picture(seed: int) -> bytes:
    """A PNG of some hundred colours in disorder."""
    from PIL import Image

    draw = np.random.default_rng(seed)
    colours = draw.integers(0, 256, (400, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(colours[draw.integers(0, 400, (60, 80))]).save(buffer, "PNG")
    return buffer.getvalue()


def figures(whole: Signature, outroot: Path) -> None:
    """Draw what the axes name."""
    for i, axis in enumerate(whole.axes):
        for j, figure in enumerate(axis.figures):
            for k, comparison in enumerate(whole.comparisons):
                path = figure.path.replace("{comparison}", comparison.label) + ".png"
                (outroot / path).parent.mkdir(parents=True, exist_ok=True)
                (outroot / path).write_bytes(picture(100 * i + 10 * j + k))


def write(whole: Signature, outroot: Path) -> Path:
    """Figures, signature.csv and the page under `outroot`; the page's path."""
    figures(whole, outroot)
    folder = outroot / "report"
    folder.mkdir(parents=True)
    rows = []
    for comparison in whole.comparisons:
        found = {m.key: whole.values.get((comparison.label, m.key)) for m in whole.measures}
        values = {key: value.value if value else None for key, value in found.items()}
        rows.append({"comparison": comparison.label, **values})
    pd.DataFrame(rows).to_csv(folder / "signature.csv", index=False)
    path = folder / "report.html"
    path.write_text(page.render(whole, picture(0) if whole.measures else b"", outroot))
    return path
