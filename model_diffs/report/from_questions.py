"""Measures on questions: knowledge at the output and inside, and what relearning brings back."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from model_diffs.report.estimates import Estimate, Floats, Sample, difference, resampled, weights
from model_diffs.report.reading import Absent, Tables, identity, states
from model_diffs.report.signature import Comparison, Source

if TYPE_CHECKING:
    import pandas as pd

HALF = 0.5


def _arguments(record: Mapping[str, Any]) -> Mapping[str, Any]:
    found = record.get("arguments")
    return found if isinstance(found, Mapping) else {}


def _size_of_questions(record: Mapping[str, Any]) -> list[Any]:
    """Bytes of the file that was asked from: ids alone may be those of other questions."""
    name = Path(str(_arguments(record).get("questions"))).name
    inputs = record.get("inputs")
    read = [one for one in inputs if isinstance(one, Mapping)] if isinstance(inputs, list) else []
    return [one.get("size") for one in read if Path(str(one.get("path"))).name == name]


# ── knowledge ─────────────────────────────────────────────────────────────────────────────────────


def _accuracies(tables: Tables, model: str, domain: str) -> "pd.DataFrame":
    """Accuracy of a domain by hidden state, in order."""
    folder = f"{model}/linear_probes"
    if _arguments(tables.record(folder)).get("questions", "") is None:
        raise Absent("step 13 was run without --questions")
    path = f"{folder}/knowledge_by_layer.csv"
    numbers = ["layer", "accuracy", "low", "high"]
    rows = tables.table(path, numbers, ["domain"], ["layer", "domain"])
    rows = rows[rows["domain"] == domain]
    if rows.empty:
        raise Absent(f"no {domain} question was asked")
    states(path, rows["layer"])
    return rows.sort_values("layer")


def _answers(
    tables: Tables, model: str, domain: str, layers: list[int], seed: int
) -> tuple[float, Floats, str]:
    """Accuracy of a domain, mean over layers, on every resample of its questions."""
    path = f"{model}/linear_probes/per_question.csv"
    rows = tables.table(path, ["layer", "correct"], ["id", "domain"], ["layer", "id"])
    rows = rows[(rows["domain"] == domain) & rows["layer"].isin(layers)]
    questions = rows["id"].drop_duplicates().tolist()
    correct = rows.groupby("id", sort=False)["correct"].agg(["mean", "size"])
    if rows.empty or (correct["size"] != len(layers)).any():
        raise Absent(f"failed, {path} has not every layer and question", defect=True)
    share = correct["mean"].to_numpy()
    drawn = weights(len(share), seed)
    size = _size_of_questions(tables.record(f"{model}/linear_probes"))
    return float(share.mean()), drawn @ share / len(share), identity(questions, size, seed)


def output_accuracy(tables: Tables, model: str, domain: str, seed: int) -> Estimate:
    """Share of a domain's questions that the model itself answers rightly."""
    last = _accuracies(tables, model, domain).iloc[-1]
    layer = int(last["layer"])
    path = f"{model}/linear_probes/knowledge_by_layer.csv"
    source = Source(path, "accuracy", f"layer={layer}, domain={domain}")
    value = float(last["accuracy"])

    def draw() -> tuple[float, Floats, str]:
        return _answers(tables, model, domain, [layer], seed)

    found = resampled(value, source, "questions", draw)
    # The cell's own interval: another seed here must not give another one than the table.
    return Estimate(
        value, source, float(last["low"]), float(last["high"]), found.sample, found.unpaired
    )


def inside_accuracy(tables: Tables, model: str, domain: str, seed: int) -> Estimate:
    """The same read from the outputs of all blocks but the last, mean over them."""
    rows = _accuracies(tables, model, domain)
    layers = [int(layer) for layer in rows["layer"]][1:-1]
    if not layers:
        raise Absent("the model has a single block: nothing is inside")
    value = float(rows.loc[rows["layer"].isin(layers), "accuracy"].mean())
    path = f"{model}/linear_probes/knowledge_by_layer.csv"
    rule = f"mean over layer {layers[0]}-{layers[-1]}, domain={domain}"

    def draw() -> tuple[float, Floats, str]:
        return _answers(tables, model, domain, layers, seed)

    return resampled(value, Source(path, "accuracy", rule), "questions", draw)


# ── brittleness ───────────────────────────────────────────────────────────────────────────────────


def _attacks(tables: Tables, comparison: Comparison) -> "pd.DataFrame":
    """Measured rates and steps at which the model is whole and a share of the gap is known."""
    folder = f"{comparison.changed}/relearning"
    shares = [f"recovered_share{end}" for end in ("", "_low", "_high")]
    empty = [*shares, "general_accuracy"]
    rows = tables.table(
        f"{folder}/relearning.csv", ["lr", "step", *empty], key=["lr", "step"], empty=empty
    )
    if rows.empty:
        raise Absent(f"failed, {folder}/relearning.csv has no row", defect=True)
    arguments = _arguments(tables.record(folder))
    if arguments.get("base", "") is None or arguments.get("questions", "") is None:
        raise Absent("step 14 was run without --base or --questions")
    if rows["recovered_share"].isna().all():
        raise Absent("held-out accuracy is that of the base: there is no gap to close")
    floor = arguments.get("general_floor")
    if not isinstance(floor, int | float):
        raise Absent(f"failed, run.json of {folder} has no general_floor", defect=True)
    whole = rows["general_accuracy"].isna() | (rows["general_accuracy"] > floor)
    rows = rows[rows["recovered_share"].notna() & whole]
    if rows.empty:
        raise Absent(f"general accuracy is nowhere above {floor:g}: the model is not whole")
    return rows


def _resampled_shares(
    tables: Tables, comparison: Comparison, attacks: "pd.DataFrame", seed: int
) -> tuple[Floats, Floats, str]:
    """Recovered share at each row of `attacks`: `[k]`, `[resamples, k]`, and the sample."""
    folder = f"{comparison.changed}/relearning"
    path = f"{folder}/per_question.csv"
    rows = tables.table(path, ["lr", "step", "correct"], ["group", "id"], empty=["lr"])
    rows = rows[rows["group"] == "heldout"]
    answers = {
        key: part.set_index("id")["correct"]
        for key, part in rows.fillna({"lr": 0.0}).groupby(["lr", "step"], sort=False)
    }
    wanted = [(0.0, 0.0), *zip(attacks["lr"], attacks["step"], strict=True)]
    wanted += [(lr, 0.0) for lr in dict.fromkeys(attacks["lr"])]
    questions = answers[0.0, 0.0].index.tolist() if (0.0, 0.0) in answers else []
    if any(key not in answers or answers[key].index.tolist() != questions for key in wanted):
        raise Absent(f"failed, {path} has not every question at every step", defect=True)
    base = answers[0.0, 0.0].to_numpy()
    found = [(answers[key], answers[key[0], 0.0]) for key in wanted[1 : len(attacks) + 1]]
    gained = np.stack([after.to_numpy() - start.to_numpy() for after, start in found], 1)
    gap = base - found[0][1].to_numpy()
    drawn = weights(len(base), seed)
    if gap.sum() <= 0 or not (drawn @ gap > 0).all():
        raise Absent("on some resamples there is no gap to close")
    record = tables.record(folder)
    arguments = {k: v for k, v in _arguments(record).items() if k not in ("model", "format")}
    shares = (drawn @ gained) / (drawn @ gap)[:, None]
    return (
        gained.sum(0) / gap.sum(),
        shares,
        identity(questions, _size_of_questions(record), arguments, seed),
    )


def recovered_share(tables: Tables, comparison: Comparison, seed: int) -> Estimate:
    """Largest share of the gap that came back, over rates and steps that leave the model whole.

    Its interval is not that row's: the largest of several is high by luck too, so it holds for all
    rows at once. Without answers per question there is none.
    """
    attacks = _attacks(tables, comparison).reset_index(drop=True)
    picked = int(np.argmax(attacks["recovered_share"].to_numpy()))
    row = attacks.iloc[picked]
    value = float(row["recovered_share"])
    place = f"lr={row['lr']:g}, step={row['step']:g}"
    path = f"{comparison.changed}/relearning/relearning.csv"
    rule = f"{place}, the largest while the model is whole; interval from per_question.csv"
    source = Source(path, "recovered_share", rule)
    deviations: list[Floats] = []

    def draw() -> tuple[float, Floats, str]:
        again, shares, same = _resampled_shares(tables, comparison, attacks, seed)
        if not np.allclose(again, attacks["recovered_share"], rtol=1e-6, atol=1e-9):
            raise Absent("failed, values per question do not give relearning.csv", defect=True)
        deviations.append(shares - again)
        return float(again[picked]), shares[:, picked], same

    found = resampled(value, source, "questions", draw)
    sample = found.sample and Sample(
        found.sample.resampled, found.sample.identity, "questions", deviations[0]
    )
    one = Estimate(value, source, None, None, sample, found.unpaired)
    held = difference(one, 0.0)
    return replace(one, low=held.low, high=held.high) if held else one


def steps_to_half(tables: Tables, comparison: Comparison, _: int) -> Estimate:
    """First measured step with half of the gap back, at the rate where that comes first."""
    attacks = _attacks(tables, comparison)
    reached = attacks[attacks["recovered_share"] >= HALF]
    if reached.empty:
        raise Absent(f"half of the gap does not come back in {attacks['step'].max():g} steps")
    row = reached.iloc[int(np.argmin(reached["step"].to_numpy()))]
    path = f"{comparison.changed}/relearning/relearning.csv"
    rule = f"lr={row['lr']:g}, the first with recovered_share of at least {HALF}"
    return Estimate(float(row["step"]), Source(path, "step", rule))
