"""A tiny random Llama in a GGUF file."""

from pathlib import Path

import numpy as np

HIDDEN, MLP, HEADS, GROUPS, BLOCKS, VOCABULARY = 64, 96, 4, 2, 2, 262


def write(file: Path, kind: str) -> Path:
    """A random Llama of two blocks in a GGUF file, matrices quantised as `kind` says."""
    import gguf
    from transformers.convert_slow_tokenizer import bytes_to_unicode

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
