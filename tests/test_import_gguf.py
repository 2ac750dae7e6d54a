"""GGUF files as model folders: the weights are those that the file format defines."""

from pathlib import Path

import pytest
import tiny_gguf
from llama_by_hand import largest_difference

from model_diffs.core.errors import BadInput
from model_diffs.core.script import execute
from model_diffs.core.step import SCRIPTS, load_script
from model_diffs.models import files
from model_diffs.models.checkpoints import Checkpoint

pytest.importorskip("gguf", reason="the extra gguf is not installed")


@pytest.mark.parametrize("kind", ["F32", "Q8_0", "Q4_1"])
def test_logits_are_those_of_the_files_weights(tmp_path: Path, kind: str) -> None:
    file, folder = tiny_gguf.write(tmp_path / "tiny.gguf", kind), tmp_path / "tiny"
    script = load_script(SCRIPTS / "import_gguf.py")
    execute(script, ["--file", str(file), "--outdir", str(folder)])
    difference, spread = largest_difference(file, folder)
    assert difference < 1e-4 * spread
    stored = Checkpoint.open(str(folder))
    assert {one.dtype for one in stored.entries.values()} == {"F32"}
    # A second time nothing is done.
    before = (folder / "run.json").stat().st_mtime_ns
    execute(script, ["--file", str(file), "--outdir", str(folder)])
    assert (folder / "run.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("content", [b"", b"GGUF", b"not a model"])
def test_a_file_that_is_no_model_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "broken.gguf"
    file.write_bytes(content)
    words = ["--file", str(file), "--outdir", str(tmp_path / "out")]
    with pytest.raises(BadInput, match=r"broken\.gguf"):
        execute(load_script(SCRIPTS / "import_gguf.py"), words)
    assert not (tmp_path / "out").exists()


def test_a_gguf_file_given_as_a_model_says_how_to_import_it(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    for model in (tmp_path, tmp_path / "model.gguf"):
        with pytest.raises(BadInput, match=r"import_gguf\.py --file .*model\.gguf"):
            files.weight_files(files.resolve(str(model)))
