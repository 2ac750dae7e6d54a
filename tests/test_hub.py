"""What a hub gives and refuses, through its real client and a hub of this machine."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tiny_models
from hub_answers import LARGE, TOKEN
from loopback_hub import LoopbackHub, use
from pyarrow import parquet

from model_diffs.core.errors import BadInput
from model_diffs.data.text_datasets import POOL, read_dataset
from model_diffs.models import files
from model_diffs.models.checkpoints import Checkpoint
from model_diffs.unlearning import pushing

ROOT = Path(__file__).parent.parent


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        use(hub, monkeypatch, tmp_path / "cache")
        yield hub


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save("llama", tmp_path_factory.mktemp("saved") / "model")


# ── models ────────────────────────────────────────────────────────────────────────────────────────


def test_model_is_downloaded_by_name_and_revision(hub: LoopbackHub, saved: Path) -> None:
    """Only what a model is loaded from; its weights come by a redirect."""
    assert (saved / "model.safetensors").stat().st_size > LARGE
    content = {file.name: file.read_bytes() for file in saved.iterdir()}
    extra = {"onnx/model.onnx": b"1" * 10_000, "training_args.bin": b"2", "README.md": b"3"}
    first = hub.put("org/model", {**content, **extra})
    folder = files.resolve("org/model")
    assert folder.name == first
    assert {file.name for file in folder.iterdir()} == set(content)
    assert (folder / "model.safetensors").read_bytes() == content["model.safetensors"]
    changed = content["config.json"].replace(b'"vocab_size": 259', b'"vocab_size": 300')
    second = hub.put("org/model", {**content, "config.json": changed}, revision="step-2")
    assert Checkpoint.open("org/model@step-2").config["vocab_size"] == 300
    assert Checkpoint.open("org/model@step-2").identity()["commit"] == second
    served = hub.served
    files.resolve.cache_clear()
    assert files.resolve("org/model") == folder
    assert hub.served == served, "nothing twice"


def test_connection_that_breaks_half_way_is_taken_up_again(
    hub: LoopbackHub, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunk = 4096  # what the client writes at a time, and loses of what had come
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", chunk)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    hub.put("org/model", saved)
    hub.broken["model.safetensors"] = 2
    folder = files.resolve("org/model")
    weights = (saved / "model.safetensors").read_bytes()
    assert (folder / "model.safetensors").read_bytes() == weights
    # Each time half of the rest had come, and was not asked for again.
    whole = sum(file.stat().st_size for file in saved.iterdir())
    assert whole <= hub.served <= whole + 2 * chunk
    asked = [one for one in hub.asked if one.startswith("GET /large/")]
    assert sum(one.endswith("/model.safetensors") for one in asked) == 3


@pytest.mark.parametrize(
    ("state", "token", "words"),
    [
        ("absent", "", r"neither on this disk nor \(publicly\) on the hub"),
        ("private", "", r"nor \(publicly\) on the hub; set HF_TOKEN"),
        ("gated", "", "access is gated; accept its terms on the hub and set HF_TOKEN"),
        ("wrong token", "hf_wrong", "(refuses access; check HF_TOKEN|set HF_TOKEN)"),
        ("revision", "", "the hub has no such revision"),
        ("limited", "", "rate limit is reached"),
        ("file", "", "no config.json; this is not a model folder|no weights"),
    ],
)
def test_refusals_of_the_hub_are_one_line(
    hub: LoopbackHub, saved: Path, monkeypatch: pytest.MonkeyPatch, state: str, token: str,
    words: str,
) -> None:  # fmt: skip
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    name = "org/model" if state != "revision" else "org/model@none"
    if state != "absent":
        hub.put("org/model", {"README.md": b"nothing"} if state == "file" else saved)
    hub.private.update(["org/model"] if state == "private" else [])
    hub.gated.update(["org/model"] if state == "gated" else [])
    hub.limited["org/model"] = 1000 if state == "limited" else 0
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(BadInput, match=words) as refused:
        Checkpoint.open(name)
    assert "\n" not in str(refused.value) and (TOKEN not in str(refused.value))
    if state in ("private", "gated"):
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        assert Checkpoint.open(name).weights > 0


def test_script_reads_a_model_of_the_hub_that_the_environment_names(
    hub: LoopbackHub, saved: Path, tmp_path: Path
) -> None:
    """A process of its own, told by HF_ENDPOINT alone; a name that is not there is status 2."""
    hub.put("org/model", saved)
    (tmp_path / "texts.txt").write_text("The river at Ava is wide.\nBread and salt.\n")
    place = {"HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT), "HF_ENDPOINT": hub.url}
    words = ["--dataset", "texts.txt", "--device", "cpu", "--layers", "1"]

    def run(name: str) -> subprocess.CompletedProcess[str]:
        script = str(ROOT / "important_acts_ftrs" / "layer_gradient_analysis.py")
        inherited = {k: v for k, v in os.environ.items() if k != "HF_HUB_CACHE"}
        return subprocess.run(
            [sys.executable, script, "--model_name", name, *words], cwd=tmp_path,
            env={**inherited, **place}, capture_output=True, text=True,
        )  # fmt: skip

    done = run("org/model")
    assert done.returncode == 0, done.stderr
    assert "layer_1_mean_abs: 32 dimensions" in done.stdout
    absent = run("org/other")
    assert (absent.returncode, absent.stderr.count("\n")) == (2, 1)


# ── data sets ─────────────────────────────────────────────────────────────────────────────────────


def test_a_large_data_set_is_read_no_further_than_asked(hub: LoopbackHub, tmp_path: Path) -> None:
    """Ten million tokens of four characters in eight files; 100 texts from the first thousand."""
    texts, length = 20_000, 2_000
    letters = np.random.default_rng(0).integers(97, 123, texts * length // 8, dtype=np.uint8)
    content = {}
    for shard in range(8):
        rows = np.roll(letters, shard).reshape(-1, length)
        file = tmp_path / "one.parquet"
        table = pa.table({"text": [row.tobytes().decode() for row in rows]})
        parquet.write_table(table, file, row_group_size=1000, compression="none")
        content[f"data/train-{shard:05}-of-00008.parquet"] = file.read_bytes()
    whole = sum(map(len, content.values()))
    assert whole > texts * length
    hub.put("org/large", content, kind="datasets")
    found = read_dataset("org/large", 100, seed=1)
    assert len(set(found.texts)) == 100 and all(len(text) == length for text in found.texts)
    needed = 100 * POOL * length
    print(f"{hub.served:,} of {whole:,} bytes served for {needed:,}")
    assert hub.served < 4 * needed < whole / 4
    assert found.texts == read_dataset("org/large", 100, seed=1).texts
    assert found.texts != read_dataset("org/large", 100, seed=2).texts


def test_refusals_of_a_data_set_are_one_line(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BadInput, match=r"^org/absent: ") as refused:
        read_dataset("org/absent")
    assert "\n" not in str(refused.value)
    hub.put("org/gated", {"data.jsonl": b'{"text": "a"}\n'}, kind="datasets")
    hub.gated.add("org/gated")
    with pytest.raises(BadInput, match=r"^org/gated: "):
        read_dataset("org/gated")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert read_dataset("org/gated").texts == ["a"]


# ── uploads ───────────────────────────────────────────────────────────────────────────────────────


def test_model_is_pushed_and_comes_back_as_it_was(
    hub: LoopbackHub, saved: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    with pytest.raises(BadInput, match="HF_TOKEN"):
        pushing.push(saved, "me/forgot")
    assert ("models", "me/forgot") not in hub.revisions
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    pushing.push(saved, "me/forgot")
    assert "me/forgot" in capsys.readouterr().out
    assert "me/forgot" in hub.private, "nobody else sees it until its owner says so"
    back = files.resolve("me/forgot")
    for file in saved.iterdir():
        assert (back / file.name).read_bytes() == file.read_bytes()
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(BadInput, match=f"{saved.name} is saved, but me/forgot: .*pushing"):
        pushing.push(saved, "me/forgot")
    with pytest.raises(BadInput, match="'here' is no org/name"):
        pushing.check_name("here")
