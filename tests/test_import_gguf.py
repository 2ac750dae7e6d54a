"""GGUF files as model folders: the weights are those that the file format defines."""

from pathlib import Path

import numpy as np
import pytest
from llama_by_hand import largest_difference

from model_diffs.core.errors import BadInput
from model_diffs.core.script import execute
from model_diffs.core.step import SCRIPTS, load_script
from model_diffs.models import files
from model_diffs.models.checkpoints import Checkpoint

gguf = pytest.importorskip("gguf", reason="the extra gguf is not installed")
HIDDEN, MLP, HEADS, GROUPS, BLOCKS, VOCABULARY = 64, 96, 4, 2, 2, 262


def write_tiny(file: Path, kind: str) -> Path:
    """A random Llama of two blocks in a GGUF file, matrices quantised as `kind` says."""
    random, quantised = np.random.default_rng(0), gguf.GGMLQuantizationType[kind]
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(BLOCKS)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(GROUPS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(VOCABULARY)
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    tokens = ["<pad>", "<bos>", "<eos>", "<unk>", *bytes_to_unicode().values(), "ab", "abc"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 4 + [1] * 258)
    writer.add_token_merges(["a b", "ab c"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    shapes = {"token_embd": (VOCABULARY, HIDDEN)}
    for number in range(BLOCKS):
        narrow = HIDDEN // HEADS * GROUPS
        shapes |= {
            f"blk.{number}.attn_q": (HIDDEN, HIDDEN),
            f"blk.{number}.attn_k": (narrow, HIDDEN),
            f"blk.{number}.attn_v": (narrow, HIDDEN),
            f"blk.{number}.attn_output": (HIDDEN, HIDDEN),
            f"blk.{number}.ffn_gate": (MLP, HIDDEN),
            f"blk.{number}.ffn_up": (MLP, HIDDEN),
            f"blk.{number}.ffn_down": (HIDDEN, MLP),
        }
    for name, shape in shapes.items():
        values = random.normal(0, 0.3, shape).astype(np.float32)
        writer.add_tensor(f"{name}.weight", gguf.quantize(values, quantised), raw_dtype=quantised)
    norms = [f"blk.{number}.{part}_norm" for number in range(BLOCKS) for part in ("attn", "ffn")]
    for name in (*norms, "output_norm"):
        writer.add_tensor(f"{name}.weight", random.uniform(0.5, 2, HIDDEN).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.mark.parametrize("kind", ["F32", "Q8_0", "Q4_1"])
def test_logits_are_those_of_the_files_weights(tmp_path: Path, kind: str) -> None:
    file, folder = write_tiny(tmp_path / "tiny.gguf", kind), tmp_path / "tiny"
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
