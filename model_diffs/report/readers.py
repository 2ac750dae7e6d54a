"""Which function reads a measure, and which step its table comes from."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from model_diffs.report import from_questions, from_texts, from_weights
from model_diffs.report.estimates import Estimate
from model_diffs.report.reading import Tables
from model_diffs.report.signature import Comparison


class Reader(NamedTuple):
    """Where a measure comes from. Its functions raise Absent where there is no number."""

    step: int
    script: str
    read: Callable[[Tables, Comparison, int], Estimate]
    """Tables, comparison, seed of the resamples."""
    read_model: Callable[[Tables, str, int], Estimate] | None = None
    """The same of a single model, for what the base has too."""


def _weights(step: int, script: str, *names: str) -> dict[str, Reader]:
    def reader(name: str) -> Reader:
        read = getattr(from_weights, name)
        return Reader(step, script, lambda tables, comparison, _: read(tables, comparison))

    return {name: reader(name) for name in names}


def _movement(split: str) -> Reader:
    return Reader(
        4,
        "collect_activation_norms.py",
        lambda tables, pair, seed: from_texts.relative_movement(tables, pair, split, seed),
    )


def _covariance(split: str) -> Reader:
    return Reader(
        9,
        "activation_covariance_analysis.py",
        lambda tables, pair, _: from_texts.covariance_change(tables, pair, split),
    )


def _selectivity(column: str, *sums: str) -> Reader:
    return Reader(
        11,
        "row_space_projection_analysis.py",
        lambda tables, pair, seed: from_texts.selectivity(tables, pair, column, sums, seed),
    )


def _sensitivity(column: str, split: str) -> Reader:
    return Reader(
        12,
        "local_lipschitzness_analysis.py",
        lambda tables, pair, seed: from_texts.sensitivity_ratio(tables, pair, column, split, seed),
    )


def _probe(third: str) -> Reader:
    return Reader(
        13,
        "linear_probe_analysis.py",
        lambda tables, pair, _: from_texts.probe_change(tables, pair, third),
    )


def _known(read: Callable[[Tables, str, str, int], Estimate], domain: str) -> Reader:
    return Reader(
        13,
        "linear_probe_analysis.py",
        lambda tables, pair, seed: read(tables, pair.changed, domain, seed),
        lambda tables, model, seed: read(tables, model, domain, seed),
    )


def _attacked(read: Callable[[Tables, Comparison, int], Estimate]) -> Reader:
    return Reader(14, "relearn.py", read)


# By key of the measure.
READERS: Mapping[str, Reader] = {
    **_weights(
        *(1, "collect_param_stats.py"),
        *("relative_change", "changed_share", "mlp_attention_ratio", "half_depth", "stable_rank"),
    ),
    **_weights(
        *(7, "null_space_analysis.py"), *("effective_rank", "top10_share", "subspace_alignment")
    ),
    **_weights(10, "mlp_nullspace_alignment.py", "nullspace_ratio"),
    **{f"dh_{split}": _movement(split) for split in from_texts.SPLITS},
    "separation_change": Reader(
        8, "activation_separation_analysis.py", from_texts.separation_change
    ),
    **{f"covariance_{split}": _covariance(split) for split in from_texts.SPLITS},
    "row_space_selectivity": _selectivity("selectivity_ratio", "proj_ratio_sum", "tokens"),
    "effect_selectivity": _selectivity("effect_selectivity", "effect_sum", "effect_tokens"),
    **{f"lipschitz_{split}": _sensitivity("lipschitz", split) for split in from_texts.SPLITS},
    **{f"jacobian_{split}": _sensitivity("jacobian_norm", split) for split in from_texts.SPLITS},
    **{f"probe_{third}": _probe(third) for third in from_texts.THIRDS},
    **{
        f"{domain}_accuracy": _known(from_questions.output_accuracy, domain)
        for domain in ("hazard", "adjacent", "general")
    },
    "hazard_inside": _known(from_questions.inside_accuracy, "hazard"),
    "recovered_share": _attacked(from_questions.recovered_share),
    "steps_to_half": _attacked(from_questions.steps_to_half),
}
