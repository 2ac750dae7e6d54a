"""Tiny models with random weights, one per architecture family, each saved with a tokenizer.

    folder = tiny_models.save("gpt_neox", tmp_path / "model", seed=1)

The tokenizer knows bytes and a few special tokens, so any text can be encoded. Llama, Mistral,
Mixtral and Gemma tokenizers put a BOS in front, the others none; GPT-NeoX and GPT-2 have no padding
token, as the originals.
"""

from pathlib import Path
from typing import Any

SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>")
VOCABULARY = 256 + len(SPECIAL_TOKENS)
HIDDEN, LAYERS, HEADS, KEY_VALUE_HEADS, INTERMEDIATE, POSITIONS = 32, 3, 4, 2, 64, 512

_PLAIN = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": INTERMEDIATE,
    "max_position_embeddings": POSITIONS,
}
_GROUPED = {**_PLAIN, "num_key_value_heads": KEY_VALUE_HEADS}
_WITH_HEAD_DIM = {**_GROUPED, "head_dim": HIDDEN // HEADS}
# family → (model_type, configuration)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt_neox": ("gpt_neox", _PLAIN),
    "llama": ("llama", _GROUPED),
    "yi": ("llama", {**_GROUPED, "rope_theta": 5e6}),
    "qwen2": ("qwen2", {**_GROUPED, "tie_word_embeddings": True}),
    "qwen3": ("qwen3", _WITH_HEAD_DIM),
    "mistral": ("mistral", _WITH_HEAD_DIM),
    "mixtral": ("mixtral", {**_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "gemma": ("gemma", _WITH_HEAD_DIM),
    "gemma2": ("gemma2", {**_WITH_HEAD_DIM, "query_pre_attn_scalar": HIDDEN // HEADS}),
    "gemma3": ("gemma3_text", {**_WITH_HEAD_DIM, "query_pre_attn_scalar": HIDDEN // HEADS}),
    "phi": ("phi", _PLAIN),
    "gpt2": (
        "gpt2",
        {"n_embd": HIDDEN, "n_layer": LAYERS, "n_head": HEADS, "n_positions": POSITIONS},
    ),
    "opt": (
        "opt",
        {
            "hidden_size": HIDDEN,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "ffn_dim": INTERMEDIATE,
            "max_position_embeddings": POSITIONS,
            "word_embed_proj_dim": HIDDEN,
        },
    ),
}
WITH_BOS = ("llama", "mistral", "mixtral", "gemma", "gemma2", "gemma3")
WITHOUT_PAD = ("gpt_neox", "gpt2")


def tokenizer(family: str = "llama") -> Any:
    """A byte-level tokenizer with the special tokens that `family` has."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate((*SPECIAL_TOKENS, *alphabet))}
    bytes_only = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_only.decoder = decoders.ByteLevel()
    if family in WITH_BOS:
        bytes_only.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", vocabulary["<bos>"])]
        )
    padding = {} if family in WITHOUT_PAD else {"pad_token": "<pad>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=bytes_only,
        bos_token="<bos>",
        eos_token="<eos>",
        model_max_length=POSITIONS,
        **padding,
    )


def config(family: str, **overrides: Any) -> Any:
    """The configuration of a tiny model of `family`."""
    from transformers import AutoConfig

    model_type, values = FAMILIES[family]
    ids = {"bos_token_id": 1, "eos_token_id": 2}
    ids |= {} if family in WITHOUT_PAD else {"pad_token_id": 0}
    return AutoConfig.for_model(
        model_type, **{"vocab_size": VOCABULARY, **ids, **values, **overrides}
    )


def build(family: str, seed: int = 0, **overrides: Any) -> Any:
    """A model of `family` in fp32 and eval mode; its weights, norms and biases are all random."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config(family, **overrides)).float()
        for parameter in model.parameters():
            # Biases start at 0 and norms at a constant: an error there would stay unseen.
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


def save(
    family: str, folder: Path, seed: int = 0, dtype: str = "float32", **overrides: Any
) -> Path:
    """Save a random model of `family` with its tokenizer into `folder`, which is returned."""
    import torch

    model = build(family, seed, **overrides).to(getattr(torch, dtype))
    model.save_pretrained(folder)
    tokenizer(family).save_pretrained(folder)
    return folder
