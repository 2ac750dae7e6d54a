"""Models and tokenizers: loaded, placed, fed, and read layer by layer."""

import gc
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from model_diffs.core.errors import BadInput
from model_diffs.core.options import Compute
from model_diffs.models import architectures, configuration, files
from model_diffs.models.anatomy import Anatomy
from model_diffs.models.checkpoints import Checkpoint
from model_diffs.models.devices import DTYPES, all_agree, free_memory, pick_device, pick_dtype
from model_diffs.models.held import hold

transformers_logging.disable_progress_bar()
Loaded = TypeVar("Loaded")
UNLIMITED = 10**9  # positions of a model that names no limit

# ── models ────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def bad_input(message: str) -> Iterator[None]:
    """Turn what transformers raises for unusable files into one line, and its own lines into none.

    What it would log is in the error, or said by the caller.
    """
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(transformers_logging.CRITICAL)
    try:
        yield
    except Exception as error:  # a damaged configuration, tokenizer or weight can raise any
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BadInput(f"{message}: {first_line}") from error
    finally:
        transformers_logging.set_verbosity(verbosity)


def load_model(
    model: str,
    device: torch.device,
    dtype: torch.dtype,
    trust_remote_code: bool = False,
    device_map: str | None = None,
    held: bool = False,
) -> nn.Module:
    """A causal language model in evaluation mode on `device`.

    With `held` it gets no gradients, and weights that are stored in half precision stay so while it
    computes in fp32: every number is the same, with half the memory. With `device_map` `auto`,
    accelerate spreads its blocks over accelerators, memory and disk. Raises BadInput where the
    folder or hub model is missing, corrupt, lacks weights, or needs code of its own without
    `trust_remote_code`.
    """
    if held and dtype == torch.float32 and not device_map:
        narrow = load_narrow(model, device, trust_remote_code).requires_grad_(False)
        hold(narrow)
        return narrow
    return _load(model, device, dtype, trust_remote_code, device_map)


def _load(
    model: str,
    device: torch.device,
    dtype: torch.dtype,
    trust_remote_code: bool,
    device_map: str | None = None,
) -> nn.Module:
    folder = Checkpoint.open(model).folder  # reports bad files in one line
    with bad_input(f"{model} cannot be loaded"):
        loaded, report = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            low_cpu_mem_usage=True,
            output_loading_info=True,
            local_files_only=True,
            device_map=device_map,
        )
    missing = sorted(report.get("missing_keys") or [])
    if missing:
        raise BadInput(f"{model} lacks {len(missing)} weights, such as {missing[0]}")
    unused = sorted(filter(architectures.is_weight, report.get("unexpected_keys") or []))
    if unused:
        says = f"{len(unused)} stored tensors are not used, such as {unused[0]}"
        print(f"warning: {model}: {says}", file=sys.stderr)
    return (loaded if device_map else loaded.to(device)).eval()


def load_narrow(model: str, device: torch.device, trust_remote_code: bool = False) -> nn.Module:
    """A model in the half precision that all its weights are stored in, for `held.hold`; in fp32
    where they are not, or where widening would not give what loading in fp32 gives."""
    half = Checkpoint.open(model).half
    if half:
        loaded = _load(model, device, DTYPES[half], trust_remote_code)
        # Constants that are not stored are rounded too: Gemma's scale of embeddings.
        if not any(one.is_floating_point() and one.itemsize < 4 for one in loaded.buffers()):
            return loaded
        del loaded
    return _load(model, device, torch.float32, trust_remote_code)


def load_for(options: Compute, model: str, device_map: str | None = None) -> nn.Module:
    """`load_model` with a script's `--device --dtype --trust-remote-code`."""
    device = pick_device(options.device)
    dtype = pick_dtype(options.dtype, device)
    return load_model(model, device, dtype, options.trust_remote_code, device_map)


def fit_together(
    stored: Sequence[Checkpoint],
    wanted: str,
    device: torch.device,
    dtype: torch.dtype,
    extra: int = 0,
) -> bool:
    """Whether models run side by side: as `wanted` (`yes`, `no`) says, or with `auto` if all their
    weights and `extra` bytes take less than half of the free memory."""
    if wanted != "auto" or len(stored) == 1:
        return wanted != "no"
    weights = sum(one.weights for one in stored)
    return all_agree(weights * dtype.itemsize + extra < free_memory(device) / 2)


def one_by_one(
    load: Callable[[str], Loaded], names: Sequence[str], use: Callable[[Loaded], None]
) -> None:
    """`use` each model in turn; its memory is released before the next one is loaded."""
    for name in names:
        use(load(name))
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


# ── tokenizers and batches ────────────────────────────────────────────────────────────────────────


def load_tokenizer(model: str, trust_remote_code: bool = False) -> Any:
    """The model's tokenizer, padding on the right, with a pad token (the end of text if none).

    Its `model_max_length` is the longest sequence that the model takes.
    """
    folder = files.resolve(model)
    positions = configuration.positions(files.read_config(folder))
    with bad_input(f"{model} has no usable tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=trust_remote_code, local_files_only=True
        )
    if tokenizer.pad_token_id is None:
        # Padding is masked by the attention mask, so any token serves.
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    tokenizer.padding_side = "right"
    tokenizer.model_max_length = positions or UNLIMITED
    return tokenizer


def common_tokenizer(models: Sequence[str], trust_remote_code: bool = False) -> Any:
    """The first model's tokenizer, for sequences that all models take.

    Raises BadInput where another model reads other tokens.
    """
    first = load_tokenizer(models[0], trust_remote_code)
    for model in models[1:]:
        other = load_tokenizer(model, trust_remote_code)
        check_same_tokenizer(models[0], first, model, other)
        first.model_max_length = min(first.model_max_length, other.model_max_length)
    return first


def check_same_tokenizer(model_a: str, tokenizer_a: Any, model_b: str, tokenizer_b: Any) -> None:
    """Raise BadInput where two tokenizers read the same text as different tokens."""
    probe = "A probe, 1 2 3:  it's écrit — 漢字\tand so on."
    if tokenizer_a.get_vocab() != tokenizer_b.get_vocab():
        difference = "have different tokenizers"
    elif tokenizer_a(probe)["input_ids"] != tokenizer_b(probe)["input_ids"]:
        difference = "split the same text differently (special tokens, perhaps)"
    else:
        return
    raise BadInput(
        f"{model_a} and {model_b} {difference}: states of other tokens cannot be compared"
    )


class Batch(NamedTuple):
    """Padded token ids and their mask, both `[texts, positions]`."""

    input_ids: Tensor
    attention_mask: Tensor


def pad_batch(
    sequences: Sequence[Sequence[int]], pad_id: int, device: torch.device, side: str = "right"
) -> Batch:
    """Pad token ids to one length: right for statistics, left for generation."""
    ids = [torch.tensor(sequence, dtype=torch.long) for sequence in sequences]
    mask = [torch.ones_like(one) for one in ids]
    pad = partial(pad_sequence, batch_first=True, padding_side=side)
    return Batch(pad(ids, padding_value=pad_id).to(device), pad(mask).to(device))


# ── reading layer by layer ────────────────────────────────────────────────────────────────────────


class Reached(Exception):
    """The forward pass has gone as far as it needs to."""


@contextmanager
def hooks() -> Iterator[list[Any]]:
    """A list for hook handles, all removed when the block ends, however it ends."""
    handles: list[Any] = []
    try:
        yield handles
    finally:
        for handle in handles:
            handle.remove()


def stream_states(
    anatomy: Anatomy,
    batch: Batch | Mapping[str, Any],
    receive: Callable[[int, Tensor], None],
    last: int | None = None,
    before_norm: bool = False,
) -> None:
    """Run the trunk, without its head, and hand over each hidden state as it is computed.

    `batch`: texts, or the trunk's own arguments.

    `receive(ℓ, h)` gets h `[texts, positions, hidden]`: state 0 is the input of the first block, ℓ
    the output of block ℓ−1, the last one after the final norm, as in transformers'
    `output_hidden_states`. With `last` the pass ends after that state. A state is read as the input
    of the next block, which works alike for blocks that return tensors or tuples. With
    `before_norm` one more is handed over at the end, N + 1: state N before the final norm.
    """
    final: list[Tensor] = []

    def reader(index: int) -> Callable[..., None]:
        def read(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            receive(index, args[0] if args else kwargs["hidden_states"])
            if index == last:
                raise Reached

        return read

    with hooks() as handles:
        for index, block in enumerate(anatomy.blocks):
            handles.append(block.register_forward_pre_hook(reader(index), with_kwargs=True))
        if before_norm and anatomy.final_norm is not None:
            keep = anatomy.final_norm.register_forward_pre_hook(
                lambda _, args: final.append(args[0])
            )
            handles.append(keep)
        try:
            given = batch._asdict() if isinstance(batch, Batch) else batch
            output = anatomy.trunk(**{"use_cache": False, **given})
        except Reached:
            return
    receive(len(anatomy.blocks), output[0])
    if before_norm:
        receive(len(anatomy.blocks) + 1, final[-1] if final else output[0])
