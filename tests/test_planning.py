"""What pipeline.sh asks: are the folders of a script complete?"""

import subprocess
import sys
from pathlib import Path

import pytest

from model_diffs.core import arguments, results
from model_diffs.core.errors import BadInput
from model_diffs.pipeline import planning

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted(p for p in ROOT.glob("*.py") if "planned_runs" in p.read_text())
HEAVY = ("torch", "transformers", "pandas", "matplotlib", "numpy", "sklearn", "scipy")


def test_states_follow_the_folders(tmp_path: Path) -> None:
    words = ["--model-a", "./base", "--model-b", "./one", "./two", "--outroot", str(tmp_path)]
    script = str(ROOT / "collect_activation_norms.py")
    module = planning.load_script(Path(script))
    first, _ = module.planned_runs(module.parse_arguments(words))
    with results.open_run(first):
        pass
    lines = [line.split("\t") for line in planning.describe("4", script, words)]
    assert [line[:4] for line in lines] == [
        ["4", "base__to__one", "complete", "./one"],
        ["4", "base__to__two", "missing", "./two"],
    ]
    changed = planning.describe("4", script, [*words, "--max-length", "7"])
    assert changed[0].split("\t")[2:] == [
        *("stale", "./one", f"{tmp_path}/base__to__one/activation_stats"),
        "--max-length was 512, is 7",
    ]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.stem)
def test_scripts_start_light_and_explain_themselves(script: Path) -> None:
    """`--help` and a wrong flag must not wait for torch; the docstring shows two commands."""
    code = (
        "import sys; from pathlib import Path; from model_diffs.pipeline import planning; "
        f"planning.load_script(Path({str(script)!r})); "
        f"print(*[m for m in {HEAVY} if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []
    docstring = planning.load_script(script).__doc__ or ""
    assert docstring.count(f"uv run {script.name}") >= 2
    wrong = subprocess.run([sys.executable, script, "--nonsense"], capture_output=True, text=True)
    assert wrong.returncode == 2 and len(wrong.stderr.splitlines()) == 1


def test_two_models_of_one_name_are_refused(tmp_path: Path) -> None:
    parser = arguments.new_parser("")
    arguments.add_comparison(parser)
    for side in "xy":
        (tmp_path / side / "same").mkdir(parents=True)
    b = [str(tmp_path / side / "same") for side in "xy"]
    options = parser.parse_args(["--model-a", "./base", "--model-b", *b])
    with pytest.raises(BadInput, match="share"):
        arguments.comparison_runs(options, "step")
    options = parser.parse_args(["--model-a", "./base", "--model-b", *b, "--outdir", "d"])
    with pytest.raises(BadInput, match="--outdir"):
        arguments.comparison_runs(options, "step")


def test_where_results_go_is_not_part_of_what_they_are() -> None:
    parser = arguments.new_parser("")
    arguments.add_comparison(parser)
    one = parser.parse_args(["--model-a", "./a", "--model-b", "./b", "./c", "--outroot", "x"])
    two = parser.parse_args(["--model-a", "./a", "--model-b", "./b", "--force"])
    planned, alone = (arguments.comparison_runs(o, "step")[0] for o in (one, two))
    assert planned.arguments == alone.arguments
    assert planned.folder == Path("x/a__to__b/step")
