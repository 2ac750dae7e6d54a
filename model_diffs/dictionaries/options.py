"""Options of train_itda.py and diff.py. Light: both scripts import it at their top."""

from dataclasses import dataclass
from typing import Literal

from model_diffs.core.options import Compute, Run, fraction, natural, option, positive, seedable
from model_diffs.data.text_sources import WIKITEXT


@dataclass(frozen=True, kw_only=True)
class DatasetTexts:
    """Texts."""

    dataset: tuple[str, ...] = option(
        (WIKITEXT,), "text files (one sample per line), folders, or org/name[:config] of the hub"
    )
    max_samples: int = option(0, "samples per data set; 0 = all", check=natural)
    seq_len: int = option(128, "tokens per sample", check=positive)
    batch_size: int = option(16, "samples per pass", check=positive)
    max_steps: int = option(0, "batches; 0 = all", check=natural)
    drop_repeated: bool = option(False, "read texts that are there several times once")


@dataclass(frozen=True, kw_only=True)
class Training(DatasetTexts):
    """Dictionary."""

    layer: tuple[int, ...] = option(
        help="number of a block, from 0; may be repeated", check=natural, repeat=True
    )
    k: int = option(40, "steps of the pursuit", check=positive)
    max_atoms: int = option(4096, "size at which the dictionary is full", check=positive)
    fvu_threshold: float = option(
        0.1, "a token with a larger share of ‖x‖² unexplained becomes an atom", check=fraction
    )
    loss_threshold: float | None = option(
        None,
        "use the published criterion instead: squared distance of unit vectors, divided by d",
        check=positive,
    )
    keep_bos: bool = option(False, "count BOS positions as tokens")
    skip_first: int = option(0, "leave out the first N positions of a sample", check=natural)
    seed: int = option(42, "of the choice of samples", check=seedable)
    device_map: Literal["auto"] | None = option(
        None, "auto: spread a model that one device cannot hold over all devices"
    )


@dataclass(frozen=True, kw_only=True)
class SaeChoice:
    """Sparse autoencoders: which of several of a layer."""

    width: str | None = option(None, "number of features, 16384 or 16k")
    l0: str | None = option(
        None, "active features per token: the SAE that comes nearest, or small, medium, big"
    )
    trainer: str | None = option(None, "number of the trainer (dictionary_learning)")
    centred: bool | None = option(
        None,
        "whether they were trained on activations without their mean (TransformerLens' "
        "center_writing_weights), where they do not say",
    )


@dataclass(frozen=True, kw_only=True)
class Diffing(DatasetTexts, SaeChoice, Compute, Run):
    """Diffing."""

    layer: int | None = option(
        None, "layer of the dictionary, where it has one; of SAEs, which to take", check=natural
    )
    tokenizer: str = option(
        "", "model or folder whose tokenizer reads the texts; default: the base's"
    )
    contexts: int = option(5, "texts shown for each latent", check=positive)
    side_by_side: Literal["auto", "yes", "no"] = option(
        "auto", "keep all models in memory together, or one after the other"
    )
    device_map: Literal["auto"] | None = option(
        None, "auto: spread a model that one device cannot hold over all devices"
    )
