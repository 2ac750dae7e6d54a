"""What a step says before it loads anything: what it needs, and what to do where it is too much."""

from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tiny_models
import tiny_study

from model_diffs.activations.memory import of_pass
from model_diffs.core import memory, options
from model_diffs.core.command_line import parse
from model_diffs.core.errors import BadInput
from model_diffs.core.memory import Footprint, Need, Room
from model_diffs.core.options import option
from model_diffs.core.results import PlannedRun
from model_diffs.core.step import Step, load_steps
from model_diffs.models import loading, shapes
from model_diffs.models.checkpoints import Checkpoint

GB = 1e9


@dataclass(frozen=True, kw_only=True)
class Options(options.Device):
    """A step."""

    batch_size: int = option(16, "texts")
    half: bool = option(False, "half")


def needs(chosen: Any, todo: Any) -> Need:
    return Need(device=chosen.batch_size * GB / (2 if chosen.half else 1), host=GB, passing=3 * GB)


FOOTPRINT = Footprint(needs, ({"half": True}, {"batch_size": 4}))
TODO = [PlannedRun(Path("nowhere"), "a", {}, "a")]


def module() -> ModuleType:
    made = ModuleType("a_step")
    made.STEP = Step(1, "folder", "Why?", memory=f"{__name__}:FOOTPRINT")  # type: ignore[attr-defined]
    return made


def test_memory_of_a_device_and_main_memory_are_told_apart() -> None:
    need = needs(Options(), TODO)
    assert need.on(shared=False) == Need(device=16 * GB, host=4 * GB)
    assert need.on(shared=True) == Need(device=0, host=17 * GB)  # nothing passes to a device
    assert Room(16 * GB, 4 * GB, 0).lacks(need) == []
    assert Room(15 * GB, 3 * GB, 0).lacks(need) == ["device", "host"]
    assert Room(None, 16 * GB, 0).lacks(need) == ["host"]


@pytest.mark.parametrize(
    ("given", "advice"),
    [
        ("16,4", ""),
        ("8,4", "use --half"),
        ("2,4", "use --half --batch-size 4"),
        ("1,4", "larger"),
    ],
)
def test_the_options_that_make_a_step_fit_are_named(given: str, advice: str) -> None:
    chosen = Options(memory=given)
    there = memory.room(chosen, Path())
    found = memory.problem(FOOTPRINT, chosen, TODO, there)
    assert (not found) if not advice else advice in found
    if advice.startswith("use"):  # nothing more than what is needed
        assert found.endswith(advice)


def test_what_cannot_fit_is_one_line_of_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    memory.check(module(), Options(memory="16,4"), TODO)
    assert capsys.readouterr().out == "needs about 16.00 GB of the device, 4.00 GB of main memory\n"
    with pytest.raises(BadInput, match=r"needs 16\.00 GB .* and 8\.00 GB of the device .* --half"):
        memory.check(module(), Options(memory="8,4"), TODO)


@pytest.mark.parametrize("said", ["1,2,3", "none", "0", "-1,4"])
def test_memory_is_one_or_two_numbers(said: str) -> None:
    with pytest.raises(SystemExit):
        parse(Options, ["--memory", said], None)


@pytest.mark.parametrize(
    "family", ["gpt_neox", "llama", "qwen2", "mixtral", "gemma2", "gpt2", "opt"]
)
def test_a_shape_is_the_same_from_headers_and_from_the_configuration(
    tmp_path: Path, family: str
) -> None:
    folder = tiny_models.save(family, tmp_path / "model", dtype="bfloat16")
    stored = shapes.of([str(folder)])
    for file in Checkpoint.open(str(folder)).files:
        if file.name != "config.json":
            file.unlink()
    described = shapes.of([str(folder)])
    assert stored is not None and described is not None
    for name in ("weights", "itemsize", "largest", "hidden", "vocabulary", "blocks", "heads"):
        assert getattr(stored, name) == getattr(described, name), name
    live = tiny_models.build(family)
    assert stored.weights == sum(one.numel() for one in live.parameters())
    assert (stored.blocks, stored.heads) == (tiny_models.LAYERS, tiny_models.HEADS)
    assert stored.itemsize == 2 and stored.hidden == tiny_models.HIDDEN


def test_models_that_are_not_there_are_taken_to_be_of_the_same_size(tmp_path: Path) -> None:
    folder = str(tiny_models.save("gpt_neox", tmp_path / "model"))
    assert shapes.of([folder, str(tmp_path / "to come")]) == shapes.of([folder])
    assert shapes.of([str(tmp_path / "to come")]) is None


def test_a_batch_is_as_long_as_its_longest_line(tmp_path: Path) -> None:
    shape = shapes.of([str(tiny_models.save("gpt_neox", tmp_path / "model"))])
    assert shape is not None
    (tmp_path / "t.txt").write_text("short\n" + "x" * 400 + "\n")
    assert shapes.batch_tokens(shape, [str(tmp_path / "t.txt")], 4, 512) == 4 * 100
    assert shapes.batch_tokens(shape, [str(tmp_path / "t.txt")], 4, 64) == 4 * 64
    assert shapes.batch_tokens(shape, ["not there"], 4, 2048) == 4 * tiny_models.POSITIONS


@pytest.mark.parametrize("models", [1, 2])
def test_what_does_not_fit_side_by_side_is_counted_block_by_block(
    tmp_path: Path, models: int
) -> None:
    """By --side-by-side auto where memory is too small, and where it is asked for."""
    shape = shapes.of([str(tiny_models.save("gpt_neox", tmp_path / "model"))])
    assert shape is not None
    whole = 4 * shape.weights

    def device(wanted: Any, free: float) -> float:
        chosen = options.Pass(side_by_side=wanted, memory=f"{free / GB:.9f},1", dtype="fp32")
        chosen = replace(chosen, forget_text="none", retain_text="none", max_samples=1)
        return of_pass(shape, replace(chosen, batch_size=1, max_length=1), models, True).device

    assert device("auto", 10 * whole) == device("yes", 10 * whole) > models * whole
    assert device("auto", 0.9 * whole) == device("blocks", 0.9 * whole) < whole


def test_every_step_that_loads_a_model_says_what_it_needs() -> None:
    """Those with a device do, but for what makes the miniature's models."""
    for script in load_steps():
        if script.accepts("memory"):
            assert memory.footprint(script.module) is not None, script.name


def test_a_step_that_does_not_fit_loads_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study = tiny_study.make(tmp_path)
    monkeypatch.setattr(loading, "load_model", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(BadInput, match=r"needs .* are free"):
        study.compare("collect_activation_norms.py", "--memory", "0.00001")
    assert "needs about" in capsys.readouterr().out
    assert not (tmp_path / "outputs").exists()
