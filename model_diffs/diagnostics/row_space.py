"""Do the inputs that an MLP matrix sees lie where its change reads?

For dW = Σ σᵢ uᵢ vᵢᵀ, P is the projector onto its k leading right singular vectors. ‖dW x‖ = ‖R x‖
for every R with RᵀR = dWᵀdW, such as UᵀdW (one row per non-negligible singular value). R has at
most min(out, in) rows, so ‖dW x‖ costs no more than the matrix itself.

The input at a position depends on the tokens up to it alone. Where these also begin a text of the
other split, both splits see one and the same input, on which no change can be selective: such
positions are left out of the effects.
"""

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from model_diffs.activations.passes import SplitPass
from model_diffs.core.errors import BadInput
from model_diffs.diagnostics import subspaces
from model_diffs.models import loading
from model_diffs.models.anatomy import Anatomy
from model_diffs.models.architectures import Matrix
from model_diffs.models.checkpoints import Checkpoint, lockstep
from model_diffs.models.devices import sum_over_processes, wide
from model_diffs.stats import spectra

INPUT_COMPONENTS = ("mlp_in", "mlp_gate")
# Singular values below this share of the largest add less than that to ‖dW x‖.
_NOISE = 1e-6
# Share of the free device memory that the changes may take.
_SHARE = 0.5

# ── changes ───────────────────────────────────────────────────────────────────────────────────────


class Reads(NamedTuple):
    """Where a change dW [out, in] reads."""

    V_k: Tensor
    """[k, in] fp32, orthonormal rows: the leading right singular vectors."""
    R: Tensor
    """[r, in]: ‖R x‖ = ‖dW x‖."""


def reads_of(dW: Tensor, top_k: int, dtype: torch.dtype) -> Reads | None:
    """Leading right singular vectors (k at most dW's numerical rank) and R; None for dW = 0.

    R is formed in fp64 and stored in `dtype`. Where dW has full rank, R is dW itself, or for a tall
    one the Cholesky factor of dWᵀdW; else UᵀdW, which for a tall one is ΣVᵀ.
    """
    if not bool(dW.any()):
        return None
    squares = spectra.gram(dW)
    found = subspaces.decompose(dW, top_k, squares)
    V_k = subspaces.leading_bases(found, min(top_k, found.rank))[1].T
    tall = dW.shape[0] >= dW.shape[1]
    factor, failed = torch.linalg.cholesky_ex(squares)
    diagonal = factor.diagonal()
    if not bool(failed) and bool(diagonal.min() > _NOISE * diagonal.max()):
        R = factor.T if tall else dW
    else:
        found = subspaces.decompose(dW, None, squares)
        rank = max(1, int((found.sigma > _NOISE * found.sigma[0]).sum()))
        small = found.small[:, :rank]
        if tall:
            R = (small * found.sigma[:rank]).T
        else:
            R = torch.cat([part @ small for part in spectra.row_parts(dW.T, small.device)]).T
    return Reads(V_k.float().contiguous(), R.to(dtype).contiguous())


@dataclass
class Target:
    """An MLP matrix of the base and where each comparison's change of it reads."""

    matrix: Matrix
    reads: dict[str, Reads]
    """By changed model, without those that leave this matrix unchanged."""
    W: Tensor | None = None
    """[out, in]; only of experts, whose own module sees a part of the tokens."""


class Changes(NamedTuple):
    """All changes against one base."""

    targets: list[Target]
    """Matrices that differ in some changed model."""
    measured: int
    """Matrices compared."""
    expert_outputs_left_out: int


def read_changes(
    base: Checkpoint,
    changed: Sequence[Checkpoint],
    top_k: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Changes:
    """Decompose the change of every MLP matrix, matrix by matrix.

    Experts' output matrices are left out: their inputs depend on the routing. Raises BadInput,
    naming the tensor, where checkpoints cannot be subtracted or hold NaN or Inf.
    """
    matrices = subspaces.mlp_matrices(base)
    experts = {m.layer for m in matrices if m.expert is not None or ".experts." in m.name}
    measured = [m for m in matrices if m.layer not in experts or m.component in INPUT_COMPONENTS]
    targets = []
    for matrix, stored, others in lockstep(base, changed, measured):
        W = stored.float()
        found = ((one, reads_of((B.float() - W).to(device), top_k, dtype)) for one, B in others)
        reads = {one.model: Reads(*(part.cpu() for part in new)) for one, new in found if new}
        if reads:
            targets.append(Target(matrix, reads, W.to(dtype) if matrix.layer in experts else None))
    return Changes(targets, len(measured), len(matrices) - len(measured))


def move_to_device(targets: Sequence[Target], device: torch.device) -> None:
    """Move the changes to a CUDA device where half of its free memory holds them.

    Otherwise they stay in main memory and are copied over for each batch.
    """
    if device.type != "cuda":
        return
    held = [part for t in targets for reads in t.reads.values() for part in reads]
    held += [t.W for t in targets if t.W is not None]
    if sum(part.nbytes for part in held) > _SHARE * torch.cuda.mem_get_info(device)[0]:
        return
    for target in targets:
        for changed, reads in target.reads.items():
            target.reads[changed] = Reads(*(part.to(device) for part in reads))
        target.W = None if target.W is None else target.W.to(device)


# ── inputs ────────────────────────────────────────────────────────────────────────────────────────

RATIO, NORM, TOKENS, EFFECT, EFFECT_TOKENS = range(5)
Totals = Mapping[tuple[str, str, str], np.ndarray]
"""By split, matrix and changed model `[documents, 5]` fp64, sums over tokens of ‖P x‖/‖x‖, ‖P x‖,
the number with x ≠ 0; over tokens whose prefix is in one split only, ‖dW x‖/‖W x‖, the number with
W x ≠ 0."""
Shared = Mapping[str, np.ndarray]
"""By split `[documents]`: how many leading tokens of a document also begin one of another split."""


def shared_prefixes(passes: Sequence[SplitPass]) -> Shared:
    """The longest common beginning of each document with any document of the other splits."""
    found = {}
    for one in passes:
        others = sorted(ids for other in passes if other is not one for ids in other.tokens.ids)
        # Of sorted texts, those with the longest common beginning stand beside the place of ids.
        places = [bisect_left(others, ids) for ids in one.tokens.ids]
        pairs = zip(one.tokens.ids, places, strict=True)
        beside = [(ids, others[max(0, at - 1) : at + 1]) for ids, at in pairs]
        lengths = [max((_common(ids, one) for one in near), default=0) for ids, near in beside]
        found[one.split.name] = np.array(lengths)
    return found


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common beginning."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))


def token_values(x: Tensor, Wx: Tensor, reads: Reads) -> Tensor:
    """The summands of `Totals` per token: x `[n, in]`, Wx `[n, out]` without bias → `[n, 5]` fp32.

    Tokens with x = 0 (behind a ReLU) have no direction and do not count.
    """
    norm = torch.linalg.vector_norm(x.float(), dim=1)
    inside = torch.linalg.vector_norm(x.float() @ reads.V_k.to(x.device).T, dim=1)
    R = reads.R.to(x.device, non_blocking=True)
    moved = torch.linalg.vector_norm((x.to(R.dtype) @ R.T).float(), dim=1)
    size = torch.linalg.vector_norm(Wx.float(), dim=1)
    ratio = torch.where(norm > 0, inside / norm, 0.0)
    effect = torch.where(size > 0, moved / size, 0.0)
    columns = [ratio, inside, norm > 0, effect, size > 0]
    return torch.stack([column.float() for column in columns], 1)


def _live_modules(
    anatomy: Anatomy, targets: Sequence[Target]
) -> list[tuple[nn.Module, list[Target]]]:
    """The modules whose inputs the targets need. Raises BadInput where one is missing."""
    wanted: dict[tuple[int, str], list[Target]] = {}
    for target in targets:
        wanted.setdefault((target.matrix.layer, target.matrix.component), []).append(target)
    found = []
    for mlp in anatomy.mlps:
        sources = [(module, tuple(of.split("+"))) for of, module in mlp.matrices.items()]
        # A mixture of experts has no matrices of its own.
        for module, components in sources or [(mlp.input_module, INPUT_COMPONENTS)]:
            here = [t for c in components for t in wanted.pop((mlp.layer, c), [])]
            if here:
                found.append((module, here))
    if wanted:
        layer, component = min(wanted)
        raise BadInput(f"block {layer}: no live module for its {component} matrix was found")
    return found


def _product(module: nn.Module, matrix: Matrix, output: Tensor) -> Tensor:
    """W x `[n, out]` from a module's outputs: without bias, of one matrix where two are fused."""
    bias = getattr(module, "bias", None)
    output = output if bias is None else output - bias
    return output if matrix.rows is None else output[:, slice(*matrix.rows)]


@torch.inference_mode()
def watch(
    anatomy: Anatomy, targets: Sequence[Target], passes: Sequence[SplitPass], shared: Shared
) -> Totals:
    """The totals from a pass of the base over the splits, read by hooks on its MLPs.

    Raises BadInput for inputs that are not finite.
    """
    totals: dict[tuple[str, str, str], Tensor] = {}

    def hook(here: Sequence[Target]) -> Callable[..., None]:
        def read(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            def counted(x: Tensor) -> Tensor:
                """The counted tokens of `[B, positions, d]` or, in OPT, `[B · positions, d]`."""
                mask = at.counted.to(x.device)
                return x.reshape(*mask.shape, -1)[mask]

            x, membership = counted(args[0]), at.membership.cpu().double()
            text, position = at.places.cpu().T
            own = position >= torch.from_numpy(shared[one.split.name][at.rows])[text]
            if not bool(torch.isfinite(x).all()):
                raise BadInput(
                    f"NaN or Inf in the inputs of {here[0].matrix.name}: try --dtype fp32, or "
                    "check the weights"
                )
            for target in here:
                if target.W is None:
                    Wx = _product(module, target.matrix, counted(output))
                else:
                    Wx = x @ target.W.to(x.device).T
                for changed, reads in target.reads.items():
                    values = wide(token_values(x, Wx, reads)).cpu()
                    values[:, EFFECT:] *= own[:, None]
                    key = (one.split.name, target.matrix.name, changed)
                    totals[key][at.rows] += membership @ values

        return read

    with loading.hooks() as handles:
        for module, here in _live_modules(anatomy, targets):
            handles.append(module.register_forward_hook(hook(here)))
        for one in passes:
            for target in targets:
                for changed in target.reads:
                    key = (one.split.name, target.matrix.name, changed)
                    totals[key] = torch.zeros(len(one.tokens.ids), 5, dtype=torch.float64)
            for at in one.batches("MLP inputs"):
                loading.stream_states(anatomy, at.batch, lambda state, hidden: None)
    return {key: sum_over_processes(sums).numpy() for key, sums in totals.items()}
