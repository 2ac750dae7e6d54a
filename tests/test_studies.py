"""Study files: typed, roles of models, one clear line for whatever is wrong, nothing evaluated."""

from pathlib import Path

import pytest

from model_diffs.core.errors import BadInput
from model_diffs.core.step import load_steps
from model_diffs.pipeline import studies
from model_diffs.pipeline.environment import Settings, with_environment
from model_diffs.pipeline.plan import Planner
from model_diffs.pipeline.studies import read_study
from model_diffs.pipeline.units import command

SMALL = """
[models]
base = "org/base"
filtered = "org/filtered"
control = ["./benign"]
unlearned = "org/cb"
[texts]
forget = "f.txt"
retain = "r.txt"
[unlearn.rmu-strong]
method = "rmu"
lr = 1e-3
layer-id = "1,2"
[unlearn.npo]
role = "control"
compare = false
"""


def write(folder: Path, text: str) -> str:
    path = folder / "study.toml"
    path.write_text(text)
    return str(path)


def test_reads_models_roles_texts_and_entries(tmp_path: Path) -> None:
    study = read_study(write(tmp_path, SMALL))
    assert study.base == "org/base"
    assert study.roles == {
        "org/filtered": "filtered",
        "./benign": "control",
        "org/cb": "unlearned",
    }
    strong, npo = study.unlearn
    assert (strong.name, strong.method, strong.role, strong.compare) == (
        "rmu-strong",
        "rmu",
        "unlearned",
        True,
    )
    assert strong.arguments == {"lr": 1e-3, "layer_id": "1,2"}
    assert (npo.method, npo.role, npo.compare) == ("npo", "control", False)
    assert list(study.made()) == [
        "./unlearned_models/org_base__rmu-strong",
        "./unlearned_models/org_base__npo",
    ]


def test_several_seeds_give_one_model_each(tmp_path: Path) -> None:
    study = read_study(write(tmp_path, "seeds = [42, 1337]\n" + SMALL))
    folders = list(study.made())
    assert folders[:2] == [
        "./unlearned_models/org_base__rmu-strong__seed42",
        "./unlearned_models/org_base__rmu-strong__seed1337",
    ]


@pytest.mark.parametrize("name", ["miniature", "deep-ignorance"])
def test_shipped_studies_are_read_and_their_options_exist(name: str) -> None:
    study = with_environment(read_study(name), {})
    planner = Planner(study, Settings(), load_steps())
    units = [*planner.make(), *planner.unlearn(every=True), *planner.steps()]
    assert len(units) > 12
    assert units[-1].script.name == "report.py"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("filtered =", "filterd ="), "unknown key filterd; did you mean filtered?"),
        (('forget = "f.txt"', "forget = 3"), "models.forget|texts.forget = 3: not a text"),
        (('filtered = "org/filtered"', 'filtered = "org/base"'), "org/base is named twice"),
        (('unlearned = "org/cb"', 'unlearned = "org/filtered"'), "org/filtered is named twice"),
        (('role = "control"', 'role = "victim"'), "'victim': one of filtered, control, unlearned"),
        (('method = "rmu"', 'method = "rm"'), "rm is no method"),
        (('base = "org/base"', ""), "names no base"),
        (("[texts]", "[text]"), "unknown key text; did you mean texts?"),
        (("[models]", "models = 3\n[models2]"), "models = 3: not a table"),
        (("[unlearn.rmu-strong]", '[unlearn."../x"]'), "not a name for a folder"),
        (("[models]", "[models"), "not a TOML file"),
        (('forget = "f.txt"', 'forget = "a\\tb"'), "a tab or line break"),
        (("compare = false", 'compare = "no"'), "not true or false"),
        (("[texts]", "[dictionary]\nlayer = 3\n[texts]"), "dictionary.folder is missing"),
    ],
)
def test_wrong_studies_are_refused_in_one_line(
    tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    assert change[0] in SMALL
    path = write(tmp_path, SMALL.replace(*change, 1))
    with pytest.raises(BadInput) as refused:
        read_study(path)
    said = str(refused.value)
    assert any(part in said for part in message.split("|")) and "\n" not in said


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("[unlearn.npo]\nlrr = 1e-3", "unknown key lrr; did you mean lr?"),
        ('[unlearn.npo]\nlr = "fast"', "unlearn.npo.lr = 'fast': not a number"),
        ('[steps.4]\nmax-samples = "many"', "steps.4.max-samples = 'many': not an integer"),
        ("[steps.4]\nmax-sample = 3", "unknown key max_sample"),
        ("[steps.99]\nx = 3", "no step of that number"),
    ],
)
def test_wrong_options_of_scripts_are_refused_in_one_line(
    tmp_path: Path, lines: str, message: str
) -> None:
    base = '[models]\nbase = "org/base"\nfiltered = "org/filtered"\n'
    study = read_study(write(tmp_path, base + lines))
    with pytest.raises(BadInput, match=r"study\.toml") as refused:
        planner = Planner(study, Settings(), load_steps())
        list(planner.unlearn()), list(planner.steps())
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x7fELF\x02\x01\x00\xd0", "not a TOML file"),
        (b"#!/bin/sh\nset -e\ntouch x\n", "not a TOML file"),
        (b"a = " + b"[" * 5000, "not a TOML file"),
        (b"seeds = [" + b"9" * 5000 + b"]", "not a TOML file"),
        (None, "a folder, not the file of a study"),
    ],
    ids=["binary", "shell", "nested", "long", "folder"],
)
def test_what_is_no_study_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "study.toml"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(BadInput, match=message):
        read_study(str(path))
    with pytest.raises(BadInput, match="no such study"):
        read_study("x" * 5000)


def test_a_study_that_cannot_be_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied")

    path = write(tmp_path, SMALL)
    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(BadInput, match="cannot be read: Permission denied"):
        read_study(path)


def test_a_launcher_that_does_not_exist_is_refused() -> None:
    with pytest.raises(BadInput, match="LAUNCHER=nonexistent: no such program"):
        Settings.of({"LAUNCHER": "nonexistent --processes 2"})
    assert Settings.of({"LAUNCHER": " "}).launcher == Settings().launcher


def test_values_are_never_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command substitution stays a word, in the study as in the environment."""
    monkeypatch.chdir(tmp_path)
    text = SMALL.replace('"org/filtered"', '"$(touch x)"').replace("f.txt", "`touch x`")
    study = with_environment(
        read_study(write(tmp_path, text)), {"COMPARE": "$(touch$IFS\x27x\x27) x[$(touch)]"}
    )
    units = list(Planner(study, Settings(), load_steps()).steps())
    words = [word for unit in units for word in command(unit, [], False)]
    assert "`touch x`" in words and "x[$(touch)]" in words
    assert [p.name for p in tmp_path.iterdir()] == ["study.toml"]


def test_the_environment_overrides_the_study(tmp_path: Path) -> None:
    study = read_study(write(tmp_path, SMALL))
    found = with_environment(
        study,
        {
            "BASE": "org/other",
            "COMPARE": "filtered=./f control=./c ./benign ./u",
            "UNLEARN": "npo dpo",
            "UNLEARN_SEEDS": "1 2",
            "MAX_SAMPLES": "7",
            "QUESTIONS": "q.jsonl",
        },
    )
    assert found.base == "org/other"
    assert found.roles == {
        "./f": "filtered",
        "./c": "control",
        "./benign": "control",
        "./u": "unlearned",
    }
    assert [one.name for one in found.unlearn] == ["npo", "dpo"] and found.seeds == (1, 2)
    assert all(one.compare for one in found.unlearn)
    assert found.texts.max_samples == 7 and found.questions == "q.jsonl"
    assert with_environment(study, {"UNLEARN": ""}).unlearn == ()


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"UNLEARN": "nothing"}, "neither an entry of the study nor a method"),
        ({"MAX_SAMPLES": "-1"}, "MAX_SAMPLES"),
        ({"UNLEARN_SEEDS": "x"}, "UNLEARN_SEEDS"),
        ({"BASE": "org/filtered"}, "named twice"),
    ],
)
def test_wrong_environment_is_refused(
    tmp_path: Path, environment: dict[str, str], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        with_environment(read_study(write(tmp_path, SMALL)), environment)


def test_a_study_that_does_not_exist_names_those_that_do() -> None:
    with pytest.raises(BadInput, match=r"deep-ignorance, .*miniature"):
        studies.read_study("nothing")
