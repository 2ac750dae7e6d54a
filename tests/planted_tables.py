"""The tables of a small study, made by hand: what a report reads, without any model.

study = planted_tables.Study(tmp_path)
study.everything()
"""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd

from model_diffs.attacks import relearning_tables
from model_diffs.attacks.material import Material
from model_diffs.attacks.recovered import BEFORE
from model_diffs.attacks.relearning import Attacked, Measured
from model_diffs.core.step import load_steps
from model_diffs.data.questions import Question
from model_diffs.report.assembling import assemble
from model_diffs.report.axes import declared_by
from model_diffs.report.signature import Comparison, Signature
from model_diffs.stats import cross_validation
from model_diffs.stats.intervals import entity_interval

# The steps that tables are planted for here; a newer one is held by a test of its own.
SCRIPTS = [one for one in load_steps() if one.step.number <= 16]
MEASURES = {one.measure.key: one.measure for one in declared_by(SCRIPTS, "base")[1]}

TEXTS = {"forget": 30, "retain": 40}
STATES = 4
QUESTIONS = {"hazard": 60, "general": 30, "adjacent": 20}
SHA256 = {
    split: {"path": f"{split}.txt", "texts": n, "sha256": split} for split, n in TEXTS.items()
}
RATES, STEPS = (0.1, 0.2), (0, 5, 10)
STEP_FOLDERS = (
    *("param_stats", "null_space_analysis", "mlp_nullspace", "activation_stats"),
    *("activation_separation", "activation_covariance", "row_space_projection", "lipschitzness"),
    "itda_diffing",
)
MODEL_FOLDERS = ("linear_probes", "relearning")


def comparison(changed: str) -> Comparison:
    control = changed.startswith(("benign", "noise", "reseeded"))
    role = "filtered" if changed == "filtered" else "control" if control else "unlearned"
    harmless = changed.startswith("benign")
    return Comparison(f"base__to__{changed}", "base", changed, changed, role, harmless)


def claims(
    signature: Signature, key: str, reference: str, label: str = "base__to__npo"
) -> list[str]:
    """What is said of a measure against `base` or `filtered`: `above`, `below` or `same`."""
    said = getattr(MEASURES[key], f"against_{reference}")
    own = [s for s in signature.sentences if (s.comparison, s.key) == (label, key) and s.axis]
    return [
        name
        for name in ("above", "below", "same")
        for sentence in own
        if said and sentence.claim == getattr(said, name)
    ]


class Study:
    """An outroot with `base`, `filtered` and other models; `size` plants how far each moved."""

    def __init__(self, root: Path, changed: Sequence[str] = ("filtered", "npo"), **size: float):
        self.root = root
        self.comparisons = [comparison(name) for name in changed]
        self.size = {"filtered": 1.0, "npo": 2.0, **size}

    def noise(self, *key: object) -> np.random.Generator:
        """The same for every model: texts and questions differ, models do so only as planted."""
        return np.random.default_rng([len(str(k)) + sum(map(ord, str(k))) for k in key])

    def table(self, path: str, rows: Sequence[dict[str, Any]]) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows).to_csv(file, index=False)

    def record(self, folder: str, **arguments: Any) -> None:
        record = {
            "arguments": {"seed": 42, **arguments},
            "texts": SHA256,
            "tokens": {"forget": 300, "retain": 400},
            "inputs": [],
            "outputs": [],
        }
        (self.root / folder / "run.json").write_text(json.dumps(record))

    def everything(self) -> "Study":
        for one in self.comparisons:
            self.weights(one)
            self.states(one)
            self.sensitivity(one)
            self.latents(one)
        for model in dict.fromkeys(["base", *(one.changed for one in self.comparisons)]):
            self.probes(model)
            self.questions(model)
            self.attack(model)
        return self

    def read(self, *steps: int) -> Signature:
        """The signature of these steps, or of all."""
        scripts = [one for one in SCRIPTS if not steps or one.step.number in steps]
        return assemble(self.root, self.comparisons, [], 42, scripts)

    # ── comparisons ───────────────────────────────────────────────────────────────────────────────

    def weights(self, one: Comparison) -> None:
        """Two blocks with a matrix of each group, and an embedding; ΔW in the second block only."""
        k = self.size[one.changed]
        changes = {("embed", -1): 0.0, ("attn", 0): 0.0, ("mlp", 0): 0.0}
        changes |= {("attn", 1): 3.0 * k, ("mlp", 1): 4.0 * k}
        matrices = [
            {"name": f"{group}{layer}", "layer": layer, "group": group, "shape0": 4, "shape1": 2,
             "dW_fro": dW, "W_fro": 10.0, "dW_stable_rank": dW or None,
             "changed_fraction": float(dW > 0)}
            for (group, layer), dW in changes.items()
        ]  # fmt: skip
        self.table(f"{one.label}/param_stats/per_matrix.csv", matrices)
        layers = [
            {"layer": m["layer"], "group": m["group"], "dW_fro_layer": m["dW_fro"],
             "W_fro_layer": m["W_fro"]} for m in matrices
        ]  # fmt: skip
        self.table(f"{one.label}/param_stats/per_layer.csv", layers)
        self.record(f"{one.label}/param_stats")
        subspaces = [
            {"name": m["name"], "layer": m["layer"],
             "subspace_alignment": 0.5 if m["dW_fro"] else 1.0,
             "effective_rank": m["dW_fro"] or None, "top10_variance_ratio": m["dW_fro"] / 9 or None}
            for m in matrices
        ]  # fmt: skip
        self.table(f"{one.label}/null_space_analysis/null_space_results.csv", subspaces)
        self.record(f"{one.label}/null_space_analysis")
        energies = [("in", 0.6, 0.75, 1.0), ("out", 0.1, 0.05, 2.0), ("same", None, 0.5, 0.0)]
        columns = ("name", "nullspace_energy", "random_nullspace_energy", "update_norm")
        rows = [dict(zip(columns, line, strict=True)) for line in energies]
        self.table(f"{one.label}/mlp_nullspace/mlp_nullspace_metrics.csv", rows)
        self.record(f"{one.label}/mlp_nullspace")

    def states(self, one: Comparison) -> None:
        """Steps 4, 8, 9 and 11: every text has a value of its own, times what is planted."""
        k, label = self.size[one.changed], one.label
        rows, texts = [], []
        for split, count in TEXTS.items():
            tokens = self.noise(split).integers(1, 20, count)
            moved = k * self.noise("moved", split).uniform(0.5, 1.5, (count, STATES))
            texts += [
                {"split": split, "text": i, "tokens": int(tokens[i]),
                 "mean_dh_rel": float(moved[i, 1:].mean())} for i in range(count)
            ]  # fmt: skip
            means = (tokens[:, None] * moved).sum(0) / tokens.sum()
            rows += [
                {"layer": s, "split": split, "mean_dh_rel_residual": means[s]}
                for s in range(STATES)
            ]
        self.table(f"{label}/activation_stats/activation_stats.csv", rows)
        self.table(f"{label}/activation_stats/per_text.csv", texts)
        self.record(f"{label}/activation_stats")
        drawn = self.noise("separation").normal(k, 0.1, 1000)
        self.table(
            f"{label}/activation_separation/separation_changes.csv",
            [
                {"layer": s, "cosine_distance_change_residual": k if s else 9.0}
                for s in range(STATES)
            ],
        )
        self.table(
            f"{label}/activation_separation/separation_resamples.csv",
            [{"resample": i, "cosine_distance_change": value} for i, value in enumerate(drawn)],
        )
        self.record(f"{label}/activation_separation")
        self.table(
            f"{label}/activation_covariance/covariance_metrics.csv",
            [{"layer": s, "forget_wasserstein_normalised_residual": k * s,
              "retain_wasserstein_normalised_residual": None if s == 0 else 0.5}
             for s in range(STATES)],
        )  # fmt: skip
        self.record(f"{label}/activation_covariance")
        self.projections(label, k)

    def projections(self, label: str, k: float) -> None:
        single, rows = [], []
        for name in ("mlp_out", "mlp_in"):
            means = {}
            for split, count in TEXTS.items():
                tokens = self.noise(split).integers(1, 20, count)
                value = self.noise(name, split).uniform(0.5, 0.6, count) * tokens
                value = value * (k if split == "forget" else 1.0)
                means[split] = value.sum() / tokens.sum()
                single += [
                    {"split": split, "text": i, "name": name, "proj_ratio_sum": value[i],
                     "tokens": tokens[i], "effect_sum": value[i], "effect_tokens": tokens[i]}
                    for i in range(count)
                ]  # fmt: skip
            ratio = means["forget"] / means["retain"]
            rows.append({"name": name, "selectivity_ratio": ratio, "effect_selectivity": ratio})
        self.table(f"{label}/row_space_projection/projection_metrics.csv", rows)
        self.table(f"{label}/row_space_projection/per_text.csv", single)
        self.record(f"{label}/row_space_projection")

    def sensitivity(self, one: Comparison) -> None:
        rows = []
        for model, k in (("base", 1.0), (one.changed, self.size[one.changed])):
            for split, count in TEXTS.items():
                value = self.noise("jacobian", split).uniform(1, 3, count)
                other = self.noise("jacobian", split, model).uniform(0.9, 1.1, count)
                rows += [
                    {"model": model, "data": split, "text": i, "tokens": 5,
                     "lipschitz": k * value[i], "lipschitz_logits_relative": value[i] / k,
                     "jacobian_norm_estimated": k * value[i] * other[i]}
                    for i in range(count)
                ]  # fmt: skip
        self.table(f"{one.label}/lipschitzness/per_text.csv", rows)
        self.record(f"{one.label}/lipschitzness")

    def latents(self, one: Comparison) -> None:
        """More of the forget set rises, the more is planted; as much of it falls as by chance."""
        excess = {"rose": 0.1 * self.size[one.changed], "fell": 0.0}
        rows = [
            {"direction": direction, "number": number, "dataset": split, "latents": 20,
             "over_chance": sign * excess[direction]}
            for direction in excess
            for number, (split, sign) in enumerate((("forget", 1), ("retain", -1)), 1)
        ]  # fmt: skip
        self.table(f"{one.label}/itda_diffing/shares.csv", rows)
        self.record(f"{one.label}/itda_diffing")

    # ── models ────────────────────────────────────────────────────────────────────────────────────

    def probes(self, model: str) -> None:
        plan = cross_validation.design(TEXTS["forget"], TEXTS["retain"], 5, 42)
        apart = 0.5 if model == "base" else self.size[model]
        rows, resamples = [], []
        for layer in range(STATES):
            found = self.noise("probe", layer).normal(0, 1, sum(TEXTS.values()))
            area = cross_validation.auc(found + apart * plan.labels, plan)
            rows.append({"layer": layer, "auc_residual": float(area.value)})
            resamples += [
                {"layer": layer, "resample": i, "auc_residual": v}
                for i, v in enumerate(area.resampled)
            ]
        self.table(f"{model}/linear_probes/probe_results.csv", rows)
        self.table(f"{model}/linear_probes/auc_resamples.csv", resamples)
        self.record(f"{model}/linear_probes", folds=5, C=1.0, questions="q.jsonl")

    def questions(self, model: str) -> None:
        """The base knows all; the others the less hazard, the larger what is planted.

        Two questions on each entity; the inner block that was chosen is the second.
        """
        folder, rows, single = f"{model}/linear_probes", [], []
        for layer in range(STATES):
            for domain, count in QUESTIONS.items():
                ease = self.noise(domain).uniform(0, 1, count)
                known = domain != "hazard" or model == "base"
                right = ease < (1.1 if known else 0.8 / self.size[model] + 0.05 * layer)
                entities = [f"{domain}{i // 2:02d}" for i in range(count)]
                found = entity_interval(right, entities, 42)
                ends = zip(("accuracy", "low", "high"), map(float, found), strict=True)
                at = {"layer": layer, "domain": domain, "part": "result"}
                rows.append({**at, **dict(ends)})
                single += [
                    {**at, "id": f"{domain}{i}", "entity": entities[i], "correct": int(r)}
                    for i, r in enumerate(right)
                ]
        self.table(f"{folder}/knowledge_by_layer.csv", rows)
        self.table(f"{folder}/per_question.csv", single)
        names = {"corrected": "accuracy", "corrected_low": "low", "corrected_high": "high"}
        corrected = {
            one["domain"]: {new: (one[old] - 0.25) / 0.75 for new, old in names.items()}
            for one in rows if one["layer"] == 2
        }  # fmt: skip
        self.table(f"{folder}/inside.csv", [{"domain": d, **c} for d, c in corrected.items()])
        kept = [
            {**one, "corrected": (one["correct"] - 0.25) / 0.75}
            for one in single if one["layer"] == 2
        ]  # fmt: skip
        columns = ("id", "domain", "entity", "corrected")
        kept = [{name: one[name] for name in columns} for one in kept]
        self.table(f"{folder}/inside_per_question.csv", kept)

    def attack(self, model: str) -> None:
        """Half of the facts are forgotten; the filtered model gets none back, others most, and
        half as much by harmless training."""
        count = QUESTIONS["hazard"]
        hidden = np.arange(count) % 2 == 0
        order = self.noise("attack").uniform(0, 1, count)
        entities = [f"hazard{i // 2:02d}" for i in range(count)]
        asked = [
            Question(f"q{i}", "hazard", one, "r", "heldout", "What?", ("a", "b", "c", "d"), 0)
            for i, one in enumerate(entities)
        ]
        material = Material({}, [], [], {"heldout": asked})

        def measured(step: int, share: float) -> Measured:
            back = 0.0 if model == "filtered" else share * 0.009 * step**2
            right = np.where(hidden & (model != "base"), order < back, True).astype(float)
            found = entity_interval(right, entities, 42)
            return Measured(step, {"heldout": right}, {"heldout": found, "tune": found}, {})

        base = measured(0, 0)._replace(correct={"heldout": np.ones(count)})
        options = SimpleNamespace(steps=STEPS[-1], general_floor=0.7, seed=42)
        attacks = [
            Attacked(arm, lr, {step: measured(step, share) for step in STEPS}, took)
            for arm, share, took in (("facts", 1.0, True), ("retain", 0.5, None))
            for lr in RATES
        ]
        setting = relearning_tables.Setting(base, {}, material, options)
        rows = relearning_tables.attack_rows(model, attacks, setting)
        single = relearning_tables.question_rows(material, "base", BEFORE, None, {0: base})
        for one in attacks:
            found = (one.arm, one.lr, one.measured)
            single += relearning_tables.question_rows(material, model, *found)
        self.table(f"{model}/relearning/relearning.csv", rows)
        self.table(f"{model}/relearning/per_question.csv", single)
        given = {"base": "base", "filtered": "filtered", "questions": "q.jsonl"}
        self.record(f"{model}/relearning", **given, general_floor=0.7, until=0.95)
