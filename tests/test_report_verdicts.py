"""Which measures tell unlearned models from harmless training, on tables made by hand."""

import shutil
from functools import cache
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from planted_tables import Study
from planted_tables import comparison as planted

from model_diffs.core.errors import BadInput
from model_diffs.core.script import execute
from model_diffs.core.step import load_script
from model_diffs.report import page, signature_figure, verdicts
from model_diffs.report.comparisons import comparison, with_roles
from model_diffs.report.signature import Signature

PAIRED = ("dh_forget", "separation_change", "lipschitz_forget")
EXACT = ("relative_change", "stable_rank", "covariance_forget")
# How far each moved: npo farther than harmless training, rmu as far, cb as far as noise, lat less
# far. Of two further trainings on harmless texts one moved as far as npo, the other farther.
SIZES = {"npo": 2.0, "rmu": 1.0, "cb": 1.5, "lat": 0.5, "benign": 1.0, "noise": 1.5,
         "reseeded": 0.9, "benign_agents": 2.0, "benign_far": 3.0}  # fmt: skip


def plant(study: Study) -> Study:
    for one in study.comparisons:
        study.weights(one)
        study.states(one)
        study.sensitivity(one)
    return study


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return plant(Study(tmp_path_factory.mktemp("outputs"), ["filtered", *SIZES], **SIZES))


@cache
def read(study: Study, *models: str) -> Signature:
    """The signature of some of its models; the filtered one is always there."""
    some = Study(study.root, [], **study.size)
    some.comparisons = [planted(name) for name in ("filtered", *models)]
    return some.read(1, 4, 8, 9, 12)


def separates(found: Signature, *keys: str) -> set[str]:
    return {found.verdicts[key].separates for key in keys}


def test_model_that_moved_farther_than_harmless_training_is_told_apart(study: Study) -> None:
    found = read(study, "npo", "benign", "noise")
    assert separates(found, *PAIRED, *EXACT) == {"yes"}
    assert "inside" not in found.verdicts["stable_rank"].evidence
    assert "against benign" in found.verdicts["dh_forget"].evidence
    assert not any(found.alike(one.label, key) for one in found.comparisons for key in PAIRED)


def test_model_that_moved_as_harmless_training_does_is_not(study: Study) -> None:
    """Paired measures are held against benign, exact ones against the range of the controls."""
    found = read(study, "rmu", "benign", "noise", "reseeded")
    assert separates(found, *PAIRED, *EXACT) == {"no"}
    for key in (*PAIRED, *EXACT):
        names = ("benign",) if key in PAIRED else ("reseeded", "noise")
        assert found.verdicts[key].alike == {"base__to__rmu": names}
        assert found.verdicts[key].all_alike
    said = verdicts.in_words(found, "dh_forget")
    assert said == "not told apart from controls (benign)"
    assert "inside the controls'" in found.verdicts["relative_change"].evidence


def test_noise_does_not_decide_where_the_benign_control_can(study: Study) -> None:
    found = read(study, "cb", "benign", "noise")
    assert separates(found, "dh_forget", "lipschitz_forget") == {"yes"}
    # Without intervals the largest control is in the way.
    assert separates(found, "relative_change") == {"no"}


def test_one_model_like_harmless_training_is_enough(study: Study) -> None:
    found = read(study, "npo", "rmu", "benign")
    told = found.verdicts["dh_forget"]
    assert (told.separates, [*told.alike], told.all_alike) == ("no", ["base__to__rmu"], False)
    assert verdicts.in_words(found, "dh_forget").endswith("controls: rmu (benign)")
    assert told.evidence.startswith("npo: ") and "; rmu: " in told.evidence


def test_every_harmless_training_has_to_be_told_apart(study: Study) -> None:
    """One of two is as far as npo: it refutes what the other alone would confirm."""
    found = read(study, "npo", "benign", "benign_agents")
    for key in PAIRED:
        told = found.verdicts[key]
        assert (told.separates, told.alike) == ("no", {"base__to__npo": ("benign_agents",)})
        assert "against benign," in told.evidence and "against benign_agents" in told.evidence
        assert verdicts.in_words(found, key).endswith("(benign_agents)")
    rows = {row["measure"]: row for row in verdicts.verdict_rows(found)}
    assert rows["dh_forget"]["refuted_by"] == "benign_agents"
    assert separates(read(study, "npo", "benign", "noise"), *PAIRED) == {"yes"}


def test_what_lies_between_two_harmless_trainings_is_not_told_apart(study: Study) -> None:
    found = read(study, "npo", "benign", "benign_far")
    for key in PAIRED:
        told = found.verdicts[key]
        assert (told.separates, told.alike) == ("no", {"base__to__npo": ("benign", "benign_far")})


def test_models_on_both_sides_of_harmless_training_have_no_sign_in_common(study: Study) -> None:
    found = read(study, "npo", "lat", "benign", "noise")
    for key in (*PAIRED, "relative_change"):
        told = found.verdicts[key]
        assert (told.separates, told.alike, told.both_sides) == ("no", {}, True)
        assert verdicts.in_words(found, key) == verdicts.BOTH_SIDES
        assert told.evidence.startswith(verdicts.BOTH_SIDES)
    assert separates(read(study, "lat", "benign", "noise"), *PAIRED) == {"yes"}, "all below"


def test_a_refutation_counts_beside_a_control_without_a_number(
    study: Study, tmp_path: Path
) -> None:
    shutil.copytree(study.root, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy/base__to__benign/activation_stats")
    for model, verdict in (("rmu", "unknown"), ("npo", "no")):
        found = read(Study(tmp_path / "copy", [], **SIZES), model, "benign", "benign_agents")
        assert found.verdicts["dh_forget"].separates == verdict
        assert "benign has no number" in found.verdicts["dh_forget"].evidence


def test_verdict_is_unknown_without_what_it_needs(study: Study, tmp_path: Path) -> None:
    alone = read(study, "npo")
    assert separates(alone, *(one.key for one in alone.measures)) == {"unknown"}
    assert verdicts.NO_CONTROL in alone.notes
    one = read(study, "npo", "benign")
    assert separates(one, *EXACT) == {"unknown"}, "a range needs two controls"
    assert separates(one, "dh_forget") == {"yes"}
    none = read(study, "benign")
    assert none.verdicts["dh_forget"].evidence == "no unlearned model has a number"
    shutil.copytree(study.root, tmp_path / "copy")
    record = tmp_path / "copy/base__to__benign/activation_stats/run.json"
    record.write_text(record.read_text().replace('"sha256": "forget"', '"sha256": "others"'))
    again = read(Study(tmp_path / "copy", [], **SIZES), "npo", "benign")
    assert separates(again, "dh_forget") == {"unknown"}
    assert "pairs" in again.verdicts["dh_forget"].evidence


def test_rows_of_the_table_are_the_measures(study: Study) -> None:
    found = read(study, "npo", "benign", "noise")
    rows = verdicts.verdict_rows(found)
    assert [row["measure"] for row in rows] == [one.key for one in found.measures]
    assert all(tuple(row) == verdicts.COLUMNS and row["evidence"] for row in rows)
    assert not any(row["refuted_by"] for row in rows if row["verdict"] != "no")


def test_harmless_controls_are_those_named_else_by_benign_else_all() -> None:
    named = ["npo", "harmless", "other"]
    pairs = [comparison(f"base__to__{name}", "base", name) for name in named]
    roles = with_roles(pairs, control=["harmless", "other"])
    assert [one.short for one in roles] == ["npo", "harmless", "other"], "controls stand last"
    assert [one.short for one in verdicts.harmless_of(roles)] == ["harmless", "other"]
    said = with_roles(pairs, control=["other"], harmless=["harmless"])
    assert {one.short: one.role for one in said}["harmless"] == "control"
    assert [one.short for one in verdicts.harmless_of(said)] == ["harmless"]
    with pytest.raises(BadInput, match="--harmless nobody: no such changed model"):
        with_roles(pairs, harmless=["nobody"])
    again = with_roles([*pairs, comparison("base__to__x", "base", "base__benign__seed1")],
                       control=["harmless", "base__benign__seed1"])  # fmt: skip
    assert [one.short for one in verdicts.harmless_of(again)] == ["benign__seed1"]
    by_name = {one.short: one.role for one in with_roles(again)}
    assert by_name["benign__seed1"] == "control" and by_name["harmless"] == "unlearned"


def test_exact_numbers_stand_beside_those_of_the_controls(study: Study) -> None:
    said = {
        s.comparison: s.evidence for s in read(study, "npo", "benign", "noise").sentences
        if s.axis == "magnitude" and s.claim == "without interval"
    }  # fmt: skip
    assert "0.45 (filtered 0.22, benign 0.22, noise 0.34)" in said["base__to__npo"]
    assert "0.22 (filtered 0.22)" in said["base__to__benign"]


def row_of(html: str, key: str) -> str:
    return html.partition(f'<tr data-measure="{key}"')[2].partition("</tr>")[0]


def test_page_greys_what_is_not_told_apart_and_says_so(study: Study) -> None:
    row = row_of(page.render(read(study, "rmu", "benign", "noise"), b"", study.root), "dh_forget")
    assert row.startswith(' class="unlike"') and verdicts.ALIKE in row
    assert row.count("value alike") == 1, "the unlearned model's, no control's"
    row = row_of(page.render(read(study, "npo", "benign", "noise"), b"", study.root), "dh_forget")
    assert row and "alike" not in row


@pytest.mark.parametrize(("seeds", "once"), [((1,), True), ((1, 2), False)])
def test_page_says_which_models_were_trained_once(
    tmp_path: Path, seeds: tuple[int, ...], once: bool
) -> None:
    names = {f"npo__seed{seed}": 1.0 + seed / 10 for seed in seeds}
    some = plant(Study(tmp_path, ["filtered", *names], **names))
    html = page.render(some.read(1, 4), b"", tmp_path)
    headings = [part.partition("</h3>")[0] for part in html.split("<h3>")[1:]]
    for short in names:
        own = [one for one in headings if f">{short}<" in one]
        assert own and all(("one training seed" in one) == once for one in own)
    assert all("one training seed" in one for one in headings if ">filtered<" in one)
    assert ("Over training seeds" in html) != once
    if not once:
        table = html.partition("Over training seeds")[2].partition("</table>")[0]
        assert "npo, 2 seeds" in table and "0.26 ± 0.016" in table


def test_figure_shows_controls_dashed_and_says_what_is_like_harmless_training(study: Study) -> None:
    found = read(study, "npo", "rmu", "benign", "noise")
    figure = signature_figure.draw(found)
    panels = dict(zip((one.key for one in found.measures), figure.axes, strict=False))
    panel = panels["dh_forget"]
    # One of two models is like it: its mark is faint, and the panel is not greyed.
    assert "harmless" not in panel.get_title("left")
    assert "like controls" in panels["changed_share"].get_title("left")
    marks = {
        float(line.get_ydata()[0]): line for line in panel.lines if line.get_marker() != "None"
    }
    assert [marks[row].get_alpha() for row in range(5)] == [1, 1, 0.25, 1, 1]
    dashed = [bool(one.get_linestyle()[0][1]) for one in panel.collections[-5:]]
    assert dashed == [False, False, False, True, True]
    plt.close(figure)


def test_script_writes_the_verdicts(study: Study, tmp_path: Path) -> None:
    script = load_script(Path(__file__).parents[1] / "report.py")
    models = [study.root / one.changed for one in study.comparisons]
    for path in [study.root / "base", *models]:
        path.mkdir(exist_ok=True)
    controls = ["benign", "benign_agents", "benign_far", "noise", "reseeded"]
    words = ["--outroot", str(study.root), "--outdir", str(tmp_path / "report")]
    words += ["--model-a", str(study.root / "base"), "--model-b", *map(str, models)]
    words += ["--filtered", "filtered", "--control", *controls]
    execute(script, [*words, "--harmless", "benign", "benign_agents"])
    table = pd.read_csv(tmp_path / "report/measures.csv").set_index("measure")
    assert tuple(table.reset_index().columns) == verdicts.COLUMNS
    assert table.loc["dh_forget", "verdict"] == "no" and "rmu" in table.loc["dh_forget", "evidence"]
    assert table.loc["dh_forget", "refuted_by"] == "benign, benign_agents"
    order = pd.read_csv(tmp_path / "report/signature.csv")["changed"].tolist()
    assert order == ["filtered", "cb", "lat", "npo", "rmu", *controls]
