"""The plan: what runs, in which order, for which models, and what is complete already."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from model_diffs.core import results
from model_diffs.core.command_line import parse
from model_diffs.core.errors import BadInput
from model_diffs.core.options import Comparison, option
from model_diffs.core.step import comparison_runs, load_script, load_steps
from model_diffs.pipeline import units as process
from model_diffs.pipeline.environment import Settings
from model_diffs.pipeline.plan import Planner
from model_diffs.pipeline.studies import Dictionary, Models, Study, Texts, Unlearn
from model_diffs.pipeline.units import Unit

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "transformers", "pandas", "matplotlib", "numpy", "sklearn", "scipy")
SCRIPTS = load_steps()


def units_of(tmp_path: Path, force: bool = False, **study: Any) -> list[Unit]:
    made = {
        "models": Models("./base", filtered=("./filtered",)),
        "texts": Texts("f.txt", "r.txt"),
        **study,
    }
    settings = Settings(outroot=str(tmp_path / "outputs"))
    planner = Planner(Study("s", tmp_path / "s.toml", **made), settings, SCRIPTS)
    units = [*planner.make(), *planner.unlearn(), *planner.steps()]
    return process.with_states(process.with_planned(units), force)


def make(unit: Unit, position: int = 0) -> None:
    with results.open_run(unit.targets[position].planned):
        pass


def named(units: list[Unit], script: str) -> Unit:
    return next(unit for unit in units if unit.script.name == script)


def test_steps_run_in_the_order_of_their_numbers_and_the_report_last(tmp_path: Path) -> None:
    numbers = [unit.number for unit in units_of(tmp_path)]
    assert numbers[:-1] == sorted(numbers[:-1])
    assert units_of(tmp_path)[-1].script.name == "report.py"


def test_models_are_made_before_what_reads_them(tmp_path: Path) -> None:
    units = units_of(tmp_path, make=("create_miniature.py",), unlearn=(Unlearn("npo", "npo"),))
    assert [unit.script.name for unit in units[:2]] == ["create_miniature.py", "unlearn.py"]
    words = named(units, "collect_param_stats.py").words
    assert "./unlearned_models/base__npo" in words


def test_the_attack_is_told_which_model_never_learned(tmp_path: Path) -> None:
    words = named(units_of(tmp_path), "relearn.py").words
    assert words[words.index("--filtered") + 1] == "./filtered"
    alone = units_of(tmp_path, models=Models("./base", unlearned=("./one",)))
    assert "--filtered" not in named(alone, "relearn.py").words


def test_complete_folders_are_left_out_of_the_command(tmp_path: Path) -> None:
    models = Models("./base", unlearned=("./one", "./two"))
    units = units_of(tmp_path, models=models)
    make(named(units, "collect_param_stats.py"))
    again = named(units_of(tmp_path, models=models), "collect_param_stats.py")
    assert [one.status for one in again.targets] == ["complete", "missing"]
    words = process.narrowed(again, False)
    assert "./two" in words and "./one" not in words
    forced = named(units_of(tmp_path, models=models, force=True), "collect_param_stats.py")
    words = process.narrowed(forced, True)
    assert "./one" in words and words[-1] == "--force"


def test_what_reads_a_result_that_will_be_made_again_follows(tmp_path: Path) -> None:
    figures = named(units_of(tmp_path), "plot_param_stats.py")
    make(figures)
    again = named(units_of(tmp_path), "plot_param_stats.py")
    assert again.targets[0].status == "follows", "its table is missing and will be made first"
    make(named(units_of(tmp_path), "collect_param_stats.py"))
    again = named(units_of(tmp_path), "plot_param_stats.py")
    assert again.targets[0].status == "complete"


def test_what_reads_a_dictionary_that_will_be_trained_follows(tmp_path: Path) -> None:
    dictionary = Dictionary(str(tmp_path / "itda"), {"layer": 3})
    make(named(units_of(tmp_path, dictionary=dictionary), "diff.py"))
    units = units_of(tmp_path, dictionary=dictionary)
    assert named(units, "train_itda.py").targets[0].status == "missing"
    assert named(units, "diff.py").targets[0].status == "follows"
    make(named(units, "train_itda.py"))
    again = named(units_of(tmp_path, dictionary=dictionary), "diff.py")
    assert again.targets[0].status == "complete"


def test_a_changed_option_is_named(tmp_path: Path) -> None:
    make(named(units_of(tmp_path), "collect_activation_norms.py"))
    texts = Texts("f.txt", "r.txt", max_samples=7)
    found = named(units_of(tmp_path, texts=texts), "collect_activation_norms.py").targets[0]
    assert (found.status, found.reason) == ("stale", "--max-samples was 500, is 7")


def test_steps_are_chosen_by_number_range_and_name(tmp_path: Path) -> None:
    units = units_of(tmp_path)
    chosen = process.select(units, "1,4-6,report,linear_probe_analysis.py,mlp_nullspace")
    scripts = [unit.script.name for unit in chosen]
    assert {unit.number for unit in chosen} == {1, 4, 5, 6, 10, 13, 16}
    assert scripts[-1] == "report.py"
    assert process.select(units, "") == units


@pytest.mark.parametrize("steps", ["99", "1-", "-", "nothing", "1,,2", "9" * 30, "²", "١", "3-1"])
def test_steps_that_do_not_exist_are_refused(tmp_path: Path, steps: str) -> None:
    with pytest.raises(BadInput, match="--steps"):
        process.select(units_of(tmp_path), steps)


def test_only_steps_that_may_use_several_processes_get_the_launcher(tmp_path: Path) -> None:
    settings = Settings.of({"LAUNCHER": "accelerate launch --num_processes 2"})
    by_script = {
        unit.script.name: process.command(unit, settings.launcher, False)
        for unit in units_of(tmp_path)
    }
    assert by_script["collect_param_stats.py"][:2] == ["accelerate", "launch"]
    assert by_script["plot_param_stats.py"][0] == "python"


@pytest.mark.parametrize("one", SCRIPTS, ids=lambda one: one.name)
def test_scripts_start_light_and_explain_themselves(one: Any) -> None:
    """`--help` and a wrong flag must not wait for torch; the docstring shows two commands."""
    path = ROOT / one.name
    code = (
        "import sys; from pathlib import Path; from model_diffs.core.step import load_script; "
        f"load_script(Path({str(path)!r})); print(*[m for m in {HEAVY} if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []
    assert (one.module.__doc__ or "").count(f"uv run {one.name}") >= 2
    wrong = subprocess.run([sys.executable, path, "--nonsense"], capture_output=True, text=True)
    assert wrong.returncode == 2 and len(wrong.stderr.splitlines()) == 1
    with pytest.raises(SystemExit) as ended:
        parse(one.module.Options, ["--help"], one.module.__doc__)
    assert ended.value.code == 0


# ── options ───────────────────────────────────────────────────────────────────────────────────────


def test_two_models_of_one_name_are_refused(tmp_path: Path) -> None:
    for side in "xy":
        (tmp_path / side / "same").mkdir(parents=True)
    b = [str(tmp_path / side / "same") for side in "xy"]
    with pytest.raises(BadInput, match="share"):
        comparison_runs(parse(Comparison, ["--model-a", "./base", "--model-b", *b], ""), "step")
    with pytest.raises(BadInput, match="--outdir"):
        words = ["--model-a", "./base", "--model-b", *b, "--outdir", "d"]
        comparison_runs(parse(Comparison, words, ""), "step")


def test_where_results_go_is_not_part_of_what_they_are() -> None:
    one, two = (
        parse(Comparison, ["--model-a", "./a", "--model-b", "./b", *more], "")
        for more in (["./c", "--outroot", "x"], ["--force"])
    )
    planned, alone = (comparison_runs(chosen, "step")[0] for chosen in (one, two))
    assert planned.arguments == alone.arguments
    assert planned.folder == Path("x/a__to__b/step")


@dataclass(frozen=True, kw_only=True)
class Some(Comparison):
    """Some."""

    lr: tuple[float, ...] = option((1e-3,), "rates")
    forget_text: str = option("f", "texts")
    fast: bool | None = option(None, "speed")


def test_flags_are_accepted_in_the_spellings_of_the_source_documents() -> None:
    chosen = parse(
        Some,
        ["--model_a", "a", "--model-b=b", "--forget-data", "x_y", "--lr", "1", "2", "--no-fast"],
        "",
    )
    assert (chosen.model_a, chosen.model_b, chosen.forget_text) == ("a", ("b",), "x_y")
    assert (chosen.lr, chosen.fast) == ((1.0, 2.0), False)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lr", "x"], "'x' is not a number"),
        (["--nonsense"], "--nonsense"),
        (["--model-b"], "expected at least one argument"),
    ],
)
def test_wrong_words_are_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        parse(Some, ["--model-a", "a", "--model-b", "b", *words], "")
    said = capsys.readouterr().err
    assert left.value.code == 2 and message in said and len(said.splitlines()) == 1


def test_scripts_are_loaded_from_any_folder(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text('"""x"""\nVALUE = 3\n')
    assert load_script(tmp_path / "own.py").VALUE == 3
    with pytest.raises(BadInput, match="no such script"):
        load_script(tmp_path / "other.py")
