"""Fingerprints follow the content of a model, and errors of the hub become one line."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import tiny_models
from huggingface_hub import constants, errors

from model_diffs.core.errors import BadInput
from model_diffs.models import files


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return tiny_models.save("llama", tmp_path_factory.mktemp("saved") / "model")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty hub cache, and a hub that fails the test when it is asked."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(files, "_fingerprinted", {})

    def asked(*_, **__):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("huggingface_hub.HfApi.repo_info", asked)
    return tmp_path / "hub"


def snapshot(cache, commit):
    """Put config.json of org/name at `commit`, now its main branch, into the cache."""
    folder = cache / "models--org--name"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs/main").write_text(commit)
    (folder / "snapshots" / commit).mkdir(parents=True)
    (folder / "snapshots" / commit / "config.json").write_text("{}")
    return folder / "snapshots" / commit


def test_fingerprint_is_kept_when_the_folder_moves(saved, tmp_path):
    first = Path(shutil.copytree(saved, tmp_path / "here"))
    before = files.fingerprint(str(first))
    moved = first.rename(tmp_path / "there")
    assert files.fingerprint(str(moved)) == before
    (moved / "README.md").write_text("a note")
    assert files.fingerprint(str(moved)) == before


def test_fingerprint_differs_for_another_model_of_the_same_name(saved, tmp_path):
    before = files.fingerprint(str(saved))
    other = tiny_models.save("llama", tmp_path / saved.name, seed=1)
    assert files.fingerprint(str(other)) != before
    config = Path(shutil.copytree(saved, tmp_path / "b" / saved.name)) / "config.json"
    assert files.fingerprint(str(config.parent)) == before
    config.write_text(config.read_text() + " ")
    assert files.fingerprint(str(config.parent)) != before


def test_fingerprint_is_of_the_bytes_and_not_of_their_time(saved, tmp_path):
    copy = Path(shutil.copytree(saved, tmp_path / "copy"))
    weights = copy / "model.safetensors"
    os.utime(weights, ns=(0, 1))
    assert files.fingerprint(str(copy)) == files.fingerprint(str(saved))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    os.utime(weights, ns=(0, 1))
    assert files.fingerprint(str(copy)) != files.fingerprint(str(saved))


def test_fingerprint_says_what_is_wrong_with_a_folder(saved, tmp_path):
    copy = Path(shutil.copytree(saved, tmp_path / "copy"))
    (copy / "model.safetensors").write_bytes(b"\xff" * 12)
    with pytest.raises(BadInput, match="truncated or corrupt"):
        files.fingerprint(str(copy))
    (copy / "model.safetensors").unlink()
    with pytest.raises(BadInput, match="no weights"):
        files.fingerprint(str(copy))


def test_fingerprint_of_a_cached_hub_model_asks_no_network(cache):
    snapshot(cache, "a" * 40)
    first = files.fingerprint("org/name")
    assert files.fingerprint("org/name@main") == first
    snapshot(cache, "b" * 40)
    assert files.fingerprint(f"org/name@{'b' * 40}") != first


def test_resolve_gives_the_commit_that_was_fingerprinted(cache, monkeypatch):
    folder = snapshot(cache, "a" * 40)
    files.fingerprint("org/name")
    asked = []

    def download(_, revision, **__):
        asked.append(revision)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert files._snapshot("org/name") == folder
    assert set(asked) == {"a" * 40}


def test_fingerprint_does_not_load_torch(saved):
    code = f"import sys; from model_diffs.models import files; files.fingerprint({str(saved)!r}); "
    code += "sys.exit('torch' in sys.modules or 'huggingface_hub' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def response(status):
    return httpx.Response(status, request=httpx.Request("GET", "https://huggingface.co"))


def caused(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (errors.GatedRepoError("", response=response(403)), "gated; accept its terms.*HF_TOKEN"),
        (errors.RevisionNotFoundError("", response=response(404)), "no such revision"),
        (
            errors.RepositoryNotFoundError("", response=response(404)),
            "nor .* on the hub.*give a folder",
        ),
        (errors.HFValidationError("bad name"), "nor .*on the hub"),
        (
            errors.RemoteEntryNotFoundError("", response=response(404)),
            "a file .* not on the hub",
        ),
        (errors.HfHubHTTPError("", response=response(429)), "rate limit"),
        (errors.HfHubHTTPError("", response=response(401)), "refuses access; check HF_TOKEN"),
        (
            caused(
                errors.LocalEntryNotFoundError(""),
                errors.HfHubHTTPError("", response=response(429)),
            ),
            "rate limit",
        ),
        (errors.LocalEntryNotFoundError(""), "cannot be reached; connect.*give a folder"),
        (httpx.ConnectError("no route"), "cannot be reached"),
        (ConnectionError("no route"), "cannot be reached"),
    ],
)
def test_hub_error_becomes_one_line_that_names_the_thing(error, words):
    with (
        pytest.raises(BadInput, match=f"^org/name: .*{words}") as caught,
        files.hub_errors("org/name"),
    ):
        raise error
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [OSError(28, "no space left"), KeyError("x"), BadInput("own")])
def test_other_errors_pass_through(error):
    with pytest.raises(type(error)) as caught, files.hub_errors("org/name"):
        raise error
    assert caught.value is error
