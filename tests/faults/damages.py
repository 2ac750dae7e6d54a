"""Random damages to everything that a study reads or wrote, and every script run on what is left.

    python tests/faults/damages.py --count 500 --seed 0

A trial copies a sound study, damages it once, and starts a script on it in a fork. The script may
do its work or refuse it in one line; it must not raise, hang, change anything where it refuses, or
count a result as complete of which an input or output differs. Seed and counts are printed.
"""

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent), str(HERE)]

import forked  # noqa: E402
from sound_study import COMMANDS, SECONDS, build, contents  # noqa: E402

STATUSES = {"check_experiment.py": (0, 1, 2), "infer.py": (0, 1, 2)}
QUICK = ("create_datasets.py", "collect_param_stats.py", "plot_param_stats.py", "infer.py",
         "collect_activation_norms.py", "plot_activation_norms.py", "check_experiment.py",
         "analyze_mlp_vs_attn.py", "pipeline")  # fmt: skip
"""Enough for the fast tests: every kind of file is read and written by one of them."""


# ── damages ───────────────────────────────────────────────────────────────────────────────────────

ODD_VALUES = (None, [], {}, [[[]]], "", "x", "-1", "../../x", "\0", "\ud800", -1, 0, 2**70, 1e308,
              True, float("nan"), {"x": [1]})  # fmt: skip
ODD_NAMES = ("b c", "ü", "$(touch executed)", "[x]*", "-b", "a\nb", "b" * 200, "é\u0301", "%s{0}")


def _truncate(path: Path, draw: random.Random) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: draw.choice([0, draw.randrange(len(data) + 1), len(data) - 1])])


def _flip(path: Path, draw: random.Random) -> None:
    data = bytearray(path.read_bytes() or b"x")
    # Half of the flips hit the head, where the structure is.
    most = min(len(data), 64) if draw.random() < 0.5 else len(data)
    data[draw.randrange(most)] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def _swap(path: Path, draw: random.Random) -> None:
    near = path.parent if draw.random() < 0.5 else Path()
    other = draw.choice(sorted(one for one in near.rglob(f"*{path.suffix}") if one.is_file()))
    first, second = path.read_bytes(), other.read_bytes()
    path.write_bytes(second)
    other.write_bytes(first)


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every container and key of a JSON value."""
    keys = list(value) if isinstance(value, dict) else range(len(value))
    own = [(value, key) for key in keys]
    inner = [_places(value[key]) for key in keys if isinstance(value[key], dict | list)]
    return own + [place for one in inner for place in one]


def _odd_json(path: Path, draw: random.Random) -> None:
    lines = path.suffix == ".jsonl"
    try:
        text = path.read_text()
        value = [json.loads(line) for line in text.splitlines()] if lines else json.loads(text)
        container, key = draw.choice(_places(value))
    except (ValueError, TypeError, IndexError):
        return _flip(path, draw)
    kind = draw.random()
    if kind < 0.2 and isinstance(container, dict):
        del container[key]
    elif kind < 0.25:
        value = draw.choice(ODD_VALUES)
        value = [value] if lines else value
    else:
        container[key] = draw.choice(ODD_VALUES)
    found = "\n".join(map(json.dumps, value)) if lines else json.dumps(value)
    path.write_text("[" * 100_000 if draw.random() < 0.03 else found)
    return None


def _odd_cell(path: Path, draw: random.Random) -> None:
    rows = [line.split(",") for line in path.read_text().splitlines()]
    row = draw.choice(rows)
    row[draw.randrange(len(row))] = draw.choice(["", "x", "inf", "nan", "1e999", "-1", "\0", "é"])
    path.write_text("\n".join(map(",".join, rows)))


def _odd_line(path: Path, draw: random.Random) -> None:
    """A line of text or TOML that is odd, doubled or gone."""
    lines = path.read_text(errors="replace").split("\n")
    at = draw.randrange(len(lines))
    key = lines[at].partition("=")[0]
    odd = ("", "\ufeff", "\0", "[", "x" * 5000, "\t", f"{key}= -1", f"{key}= [1]", f"{key}= 'x'")
    lines[at : at + 1] = draw.choice([[], [lines[at]] * 2, [draw.choice(odd)]])
    path.write_text("\n".join(lines))


def _odd_place(path: Path, draw: random.Random) -> None:
    """Something else where the file was, or nothing."""
    path.unlink()
    kind = draw.choice(["gone", "folder", "loop", "nowhere"])
    if kind == "folder":
        path.mkdir()
    elif kind != "gone":
        path.symlink_to(path.name if kind == "loop" else "nowhere")


Damage = Callable[[Path, random.Random], None]
ANY: tuple[Damage, ...] = (_truncate, _flip, _swap, _odd_place)
BY_SUFFIX: dict[str, tuple[Damage, ...]] = {
    ".json": (*ANY, _odd_json, _odd_json, _odd_json, _odd_json),
    ".jsonl": (*ANY, _odd_json, _odd_json, _odd_line),
    ".csv": (*ANY, _odd_cell, _odd_cell, _odd_cell),
    ".txt": (*ANY, _odd_line, _odd_line),
    ".toml": (*ANY, _odd_line, _odd_line, _odd_line),
}
# What is damaged, alike often however many files there are, and which scripts look at it (or any).
TARGETS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("[ab]/config.json", ()),
    ("[ab]/*.safetensors", ()),
    ("[ab]/tokenizer*.json", ()),
    ("texts/*.txt", ()),
    ("texts/*.json", ("create_datasets.py",)),
    ("texts/*.jsonl", ("relearn.py", "elicit.py", "linear_probe_analysis.py", "unlearn.py")),
    ("study.toml", ("pipeline", "check_experiment.py")),
    ("outputs/*/param_stats/*", ("plot_param_stats.py", "plot_side_by_side.py", "report.py",
                                 "analyze_mlp_vs_attn.py", "collect_param_stats.py")),
    ("outputs/*/activation_stats/*", ("plot_activation_norms.py", "plot_side_by_side.py",
                                      "report.py", "collect_activation_norms.py")),
    ("outputs/**/run.json", ("report.py", "pipeline")),
    ("outputs/**/*.*", ("report.py", "pipeline", "relearn.py", "elicit.py", "write_predictors.py")),
    ("outputs/activation_cache/*/*", ("collect_activation_norms.py", "linear_probe_analysis.py",
                                      "activation_separation_analysis.py")),
    ("artifacts/**/*.*", ("diff.py", "train_itda.py")),
    ("sae/**/*.*", ("important_acts_ftrs/sae_gradient_analysis.py",)),
    ("unlearned_models/**/*.*", ("unlearn.py",)),
    ("worlds.*", ("predict_brittleness.py",)),
    ("files/*.gguf", ("import_gguf.py",)),
    ("tasks/*", ("evaluate.py",)),
    ("data/**/*.*", ("create_datasets.py",)),
)  # fmt: skip


def damage(place: Path, draw: random.Random) -> tuple[str, str, tuple[str, ...]]:
    """Damage one thing of a study.

    Returns what was done, the name that model `b` has now, and the scripts that look at the thing.
    """
    if draw.random() < 0.05:
        name = draw.choice(ODD_NAMES)
        (place / "b").rename(place / name)
        return f"b is named {name!r}", f"./{name}", ()
    files: list[Path] = []
    while not files:
        pattern, scripts = draw.choice(TARGETS)
        files = sorted(path for path in place.glob(pattern) if path.is_file())
    path = draw.choice(files)
    how = draw.choice(BY_SUFFIX.get(path.suffix, ANY))
    stat, here = path.stat(), Path.cwd()
    os.chdir(place)
    try:
        how(path.relative_to(place), draw)
    except (UnicodeDecodeError, IndexError):  # no text, or empty
        _flip(path, draw)
    finally:
        os.chdir(here)
    if draw.random() < 0.5 and path.is_file():
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    return f"{how.__name__.strip('_')} {path.relative_to(place)}", "./b", scripts


# ── judging ───────────────────────────────────────────────────────────────────────────────────────


def _differing(sound: Path, place: Path, folder: Path) -> list[str]:
    """Files that the sound result in `folder` wrote and has no more, or that it read and that
    differ."""
    record = json.loads((sound / folder / "run.json").read_text())
    found = []
    for kind, parent in (("outputs", folder), ("inputs", folder.parent)):
        for entry in record[kind]:
            name = os.path.normpath(parent / entry["path"])
            was, now = sound / name, place / name
            if not now.is_file():  # what was read and is gone makes nothing stale
                found += [name] if kind == "outputs" else []
            elif was.read_bytes() != now.read_bytes():
                found.append(name)
    return found


def states(place: Path, command: Sequence[str]) -> dict[str, str]:
    """Status of each result folder that a command would fill, asked of `results.state` alone."""

    def ask() -> None:
        from model_diffs.core import results
        from model_diffs.core.command_line import parse
        from model_diffs.core.step import load_script, planned_runs

        module = load_script(forked.ROOT / command[0])
        chosen = parse(module.Options, command[1:], "")
        planned = planned_runs(module, chosen) if hasattr(module, "STEP") else []
        print(json.dumps({str(one.folder): results.state(one).status for one in planned}))

    ended = forked.call(place, command[0], ask, SECONDS)
    return json.loads(ended.out) if ended.status == 0 else {}


class Fault(NamedTuple):
    """What should not have happened."""

    kind: str
    trial: int
    damage: str
    command: str
    says: str


def judge(place: Path, sound: Path, command: Sequence[str]) -> tuple[str, str]:
    """Run a command on a damaged study: how it ended, and what of that should not be."""
    if command[0] != "pipeline":
        for folder, status in states(place, command).items():
            if status == "complete" and (differs := _differing(sound, place, Path(folder))):
                return "wrong complete", f"{folder}: {', '.join(differs)}"
    before = contents(place)
    ended = forked.run(place, command, SECONDS)
    complaint = [line for line in ended.complaint if not line.startswith("warning: ")]
    if ended.status is None:
        return "hang", ended.err[-300:]
    if "Traceback" in ended.err:
        return "traceback", " | ".join(ended.err.strip().splitlines()[-6:])
    if ended.status not in STATUSES.get(command[0], (0, 2)):
        return "status", f"{ended.status}: {ended.err[-300:]}"
    if ended.status == 2 and len(complaint) != 1:
        return "lines", ended.err[-600:]
    if (place / "executed").exists():
        return "executed", ended.out
    if ended.status == 2 and contents(place) != before:
        changed = sorted(set(contents(place).items()) ^ set(before.items()))
        return "written", f"{[name for name, _ in changed][:4]}: {ended.err}"
    return {0: "done", 1: "reported", 2: "refused"}[ended.status or 0], ""


def trial(
    number: int, seed: int, sound: Path, room: Path, scripts: Sequence[str]
) -> tuple[str, Fault | None]:
    """One damage and one command: how it ended, and the fault where there is one."""
    draw, place = random.Random(f"{seed} {number}"), room / "study"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(sound, place, symlinks=True)
    what, model_b, concerned = damage(place, draw)
    script = draw.choice([one for one in concerned if one in scripts] or [*scripts])
    command = [script, *(model_b if word == "./b" else word for word in COMMANDS[script])]
    if draw.random() < 0.5 and script not in ("pipeline",):
        for folder in states(place, command):  # made anew, from what is damaged
            shutil.rmtree(place / folder, ignore_errors=True)
        what += "; result removed"
    try:
        ended, says = judge(place, sound, command)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    if not says:
        return ended, None
    return ended, Fault(ended, number, what, " ".join(map(repr, command)), says)


def trials(
    numbers: Sequence[int], seed: int, room: Path, scripts: Sequence[str] = (*COMMANDS,)
) -> tuple[Counter[str], list[Fault]]:
    """How the trials ended, and their faults. Trial n of a seed is always the same."""
    forked.warm()
    sound, faults, ends = room / "sound", list[Fault](), Counter[str]()
    build(sound, scripts)
    for number in numbers:
        ended, fault = trial(number, seed, sound, room, scripts)
        ends[ended] += 1
        if fault:
            faults.append(fault)
            print(f"{fault.trial} {fault.kind}: {fault.damage}: {fault.command}\n    {fault.says}")
            sys.stdout.flush()
    return ends, faults


def main() -> None:
    """Print the faults, the counts and the seed; exit status 1 where there was a fault."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, nargs="*", help="numbers of trials, to look at again")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as room:
        numbers = chosen.only or range(chosen.count)
        ends, faults = trials(numbers, chosen.seed, Path(room))
    counted = ", ".join(f"{count} {ended}" for ended, count in sorted(ends.items()))
    print(f"seed {chosen.seed}: {sum(ends.values())} damages, {counted}; {len(faults)} faults")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
