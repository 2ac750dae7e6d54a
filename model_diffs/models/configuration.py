"""What a config.json must be for anything else to read it, and what it says of the model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model_diffs.core.errors import BadInput

# Of these the outer part of a multimodal configuration speaks for its language model too.
_INHERITED = ("tie_word_embeddings", "quantization_config")
_POSITIONS = ("max_position_embeddings", "n_positions")
# Whole numbers above 0 wherever they are given; null is "as the family does it".
_SIZES = (
    *("vocab_size", "hidden_size", "n_embd", "num_hidden_layers", "n_layer"),
    *("num_attention_heads", "n_head", "num_key_value_heads", "intermediate_size", "n_inner"),
    *("ffn_dim", "head_dim", "num_local_experts", *_POSITIONS),
)


def language_model(path: Path, content: Any) -> dict[str, Any]:
    """The configuration of the language model in what the config.json at `path` holds.

    Raises BadInput, naming the key, where it is no configuration or a size is no whole number.
    """
    if not isinstance(content, dict):
        raise BadInput(f"{path} holds no configuration: copy the model again")
    config = content
    if "text_config" in content:
        config = content["text_config"]
        if not isinstance(config, dict):
            raise BadInput(f"{path}: text_config is no configuration: copy the model again")
        config = {**{key: content[key] for key in _INHERITED if key in content}, **config}
    if not isinstance(config.get("model_type", ""), str):
        raise BadInput(f"{path}: model_type is {config['model_type']!r}: a name is expected")
    for key in _SIZES:
        size = config.get(key)
        # bool is an int in Python, but `true` is no size.
        if size is not None and (type(size) is not int or size < 1):
            raise BadInput(f"{path}: {key} is {size!r}: a whole number above 0 is expected")
    return config


def positions(config: Mapping[str, Any]) -> int | None:
    """The longest sequence that a model takes, in tokens, where its configuration says so."""
    return next((config[key] for key in _POSITIONS if config.get(key)), None)


def blocks(model: str, config: Mapping[str, Any]) -> int:
    """Number of decoder blocks. BadInput where the configuration does not say."""
    names = ("num_hidden_layers", "n_layer", "num_layers")
    count = next((int(config[name]) for name in names if name in config), 0)
    if not count:
        raise BadInput(f"{model}: no num_hidden_layers in its config.json")
    return count


def check_not_quantised(model: str, config: Mapping[str, Any]) -> None:
    """Raise BadInput for a configuration of quantised weights (bitsandbytes, GPTQ, AWQ, …)."""
    settings = config.get("quantization_config")
    if settings:
        method = settings.get("quant_method") if isinstance(settings, Mapping) else None
        raise BadInput(
            f"{model} is quantised ({method or 'quantization_config in its config.json'}) and "
            "cannot be compared: give the model that it was made from"
        )
