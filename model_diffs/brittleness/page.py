"""The study as one page: what was found, every measure, and what was left out."""

import base64
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from model_diffs.core.errors import BadInput
from model_diffs.core.tables import read_table
from model_diffs.report import page as report_page
from model_diffs.report.formatting import NO_VALUE, number

TEMPLATES = Path(__file__).parent / "templates"
TABLES = ("primary", "measures", "states")
IMAGE = "brittleness.png"
ADVICE = "run predict_brittleness.py first"


def read(folder: Path) -> dict[str, pd.DataFrame]:
    """The tables of a result of `predict_brittleness.py`. BadInput where one is missing or
    damaged; without `states`, which a table of all models does not have, it is empty."""
    ends = ["value", "low", "high", "p", "p_family", "worlds", "models"]
    names: dict[str, tuple[str, ...]] = {"target": (), "statistic": (), "part": ()}
    rhos = ["rho", "partial_rho", "partial_rho_low", "partial_rho_high"]
    others = ["z_reseeded", "z_benign", "auroc_deep"]
    found = {
        "primary": read_table(
            folder / "primary.csv", ADVICE, [], ends, names
        ),
        "measures": read_table(
            folder / "measures.csv", ADVICE, ["models", "informative"], [*rhos, *others],
            {"measure": ()},
        ),
        "states": pd.DataFrame(columns=["world", "model", "status"]),
    }  # fmt: skip
    primary = found["primary"]
    own = {*primary.loc[primary["target"] == primary["target"].iloc[0], "statistic"]}
    if lacking := sorted({"rho", "rho_baseline", "gain"} - own):
        raise BadInput(f"{folder / 'primary.csv'} has no {', '.join(lacking)}; {ADVICE}")
    if (folder / "states.csv").is_file():
        whose: dict[str, tuple[str, ...]] = {"model": (), "status": ()}
        found["states"] = read_table(folder / "states.csv", ADVICE, ["world"], [], whose)
    return found


def _text(value: float) -> str:
    return NO_VALUE if pd.isna(value) else number(float(value), "share")[0]


def _p(value: float) -> str:
    return NO_VALUE if pd.isna(value) else f"{value:.4f}"


def _interval(low: float, high: float) -> str:
    return NO_VALUE if pd.isna(low) else f"{_text(low)} to {_text(high)}"


def sentence(primary: pd.DataFrame) -> str:
    """The registered result in one sentence."""
    target = primary["target"].iloc[0]
    own = primary[primary["target"] == target].set_index("statistic")
    rho, gain = own.loc["rho"], own.loc["gain"]
    baseline = _text(own.loc["rho_baseline", "value"])
    said = (
        f"{rho['models']:.0f} models of {rho['worlds']:.0f} {rho['part']} worlds: the signature "
        "orders them by what the attack brings back with a rank correlation of "
        f"{_text(rho['value'])} ({_interval(rho['low'], rho['high'])}), strength alone "
        f"with {baseline}; the difference is {_text(gain['value'])} "
        f"({_interval(gain['low'], gain['high'])})"
    )
    if "confirmed" not in own.index:
        return f"{said}. No verdict: not all locked worlds are attacked."
    verdict = "confirmed" if own.loc["confirmed", "value"] == 1 else "not confirmed"
    return f"{said}. By the rule registered beforehand: {verdict}."


def _primary_rows(primary: pd.DataFrame) -> list[dict[str, Any]]:
    rows: list[Any] = primary[primary["statistic"] != "confirmed"].to_dict("records")
    return [
        {**one, "value": _text(one["value"]), "interval": _interval(one["low"], one["high"]),
         "p": _p(one["p"]), "p_family": _p(one["p_family"]),
         "worlds": f"{one['worlds']:.0f}", "models": f"{one['models']:.0f}"}
        for one in rows
    ]  # fmt: skip


def _measure_rows(measures: pd.DataFrame) -> list[dict[str, Any]]:
    return [
        {"measure": one["measure"], "informative": bool(one["informative"]),
         "interval": _interval(one["partial_rho_low"], one["partial_rho_high"]),
         "auroc_deep": _text(one["auroc_deep"]), "models": f"{one['models']:.0f}",
         **{key: _text(one[key]) for key in ("rho", "partial_rho", "z_reseeded", "z_benign")}}
        for one in measures.to_dict("records")
    ]  # fmt: skip


def render(tables: dict[str, pd.DataFrame], image: bytes, notices: list[str]) -> str:
    """The page as HTML, with its figure inside.

    `notices`: what a reader has to know beside the result, such as that the registered document has
    changed.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    style = (report_page.TEMPLATES / "page.css").read_text(encoding="utf-8")
    states = tables["states"]
    attacked = states["status"].eq("attacked")
    return environment.get_template("brittleness.html.j2").render(
        policy=f"default-src 'none'; img-src data:; style-src {report_page.policy_hash(style)}; "
        "base-uri 'none'; form-action 'none'",
        style=Markup(style),  # a file of this package
        said=sentence(tables["primary"]),
        notices=notices,
        image=f"data:image/png;base64,{base64.b64encode(image).decode('ascii')}",
        primary=_primary_rows(tables["primary"]),
        measures=_measure_rows(tables["measures"]),
        states=states[~attacked].to_dict("records"),
        attacked=int(attacked.sum()),
    )
