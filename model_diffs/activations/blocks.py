"""Models block by block in lockstep: in memory are one block and the states of a chunk of texts.

The states of a chunk enter the first block of each model; then each block in turn is read from the
model's files, all states are pushed through, and its weights are let go. All models of a comparison
are at the same block, so that changes of states need no cache on disk. The numbers are those of the
models side by side.
"""

from collections.abc import Sequence

from torch import Tensor

from model_diffs.activations.memory import SHARE
from model_diffs.activations.passes import Finished, SplitPass
from model_diffs.activations.skeleton import Skeleton
from model_diffs.activations.tokens import TokenBatch
from model_diffs.core.progress import progress
from model_diffs.models import devices


def run_by_blocks(
    models: Sequence[Skeleton], passes: Sequence[SplitPass], finished: Finished
) -> None:
    """All models over each split, block by block; `finished` as in `passes.run_side_by_side`."""
    for one in passes:
        concerned = [model for model in models if one.concerns(model.name)]
        for chunk in _chunks(one, concerned) if concerned else ():
            _carry(one, concerned, chunk)
        finished(one, [model.name for model in models])


def _chunks(one: SplitPass, models: Sequence[Skeleton]) -> list[list[TokenBatch]]:
    """This process's batches, as many together as a part of the free memory holds the states of."""
    width = models[0].anatomy.embedding.weight.shape[1]
    # Twice: at the end there are those before and after the final norm.
    per_token = 2 * width * models[0].dtype.itemsize * len(models)
    most = SHARE * devices.free_memory(one.device) / per_token
    chunks: list[list[TokenBatch]] = []
    tokens = 0
    for at in one.batches(None):
        tokens += at.batch.input_ids.numel()
        if not chunks or tokens > most:
            chunks.append([])
            tokens = at.batch.input_ids.numel()
        chunks[-1].append(at)
    return chunks


def _carry(one: SplitPass, models: Sequence[Skeleton], chunk: Sequence[TokenBatch]) -> None:
    """A chunk of texts through all blocks of all models."""
    flows = [model.enter(chunk) for model in models]

    def hand_over(state: int, of: Sequence[Sequence[Tensor | None]]) -> None:
        for place, at in enumerate(chunk):
            states: dict[str, Tensor] = {}
            for model, own in zip(models, of, strict=True):
                hidden = own[place]
                assert hidden is not None
                one.receiver(model.name, at, states)(state, hidden)

    blocks = len(models[0].anatomy.blocks)
    for index in progress(range(blocks), f"blocks {one.split.name}", unit="block"):
        hand_over(index, [[flow.hidden for flow in own] for own in flows])
        for model, own in zip(models, flows, strict=True):
            block = model.anatomy.blocks[index]
            with model.filled(block):
                for flow in own:
                    flow.advance(index, block)
    for model, own in zip(models, flows, strict=True):
        model.leave(own, chunk)
    hand_over(blocks, [[flow.normed for flow in own] for own in flows])
    hand_over(blocks + 1, [[flow.hidden for flow in own] for own in flows])
    for model in models:
        one.check(model.name)
