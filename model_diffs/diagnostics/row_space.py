"""Do the inputs that an MLP matrix sees lie where its change reads?

For dW = Σ σᵢ uᵢ vᵢᵀ the projector onto its k leading right singular vectors is P, and with R = UᵀdW
(one row per singular value that counts) ‖dW x‖ = ‖R x‖ exactly, since U's columns span what dW
writes. R has at most min(out, in) rows, so ‖dW x‖ costs less than the matrix itself.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from model_diffs.activations.passes import SplitPass
from model_diffs.activations.sums import Place
from model_diffs.core.errors import BadInput
from model_diffs.core.progress import progress
from model_diffs.diagnostics import subspaces
from model_diffs.models import loading
from model_diffs.models.anatomy import Anatomy, Mlp
from model_diffs.models.architectures import Matrix
from model_diffs.models.checkpoints import Checkpoint, match
from model_diffs.models.devices import sum_over_processes

INPUT_COMPONENTS = ("mlp_in", "mlp_gate")
# Singular values below this share of the largest add less than that to ‖dW x‖.
_NOISE = 1e-6
SHARE = 0.5

# ── a change ──────────────────────────────────────────────────────────────────────────────────────


class Reads(NamedTuple):
    """Where a change dW [out, in] reads."""

    V_k: Tensor
    """[k, in] fp32, orthonormal rows: the leading right singular vectors."""
    R: Tensor
    """[r, in]: ‖R x‖ = ‖dW x‖."""

    @property
    def k(self) -> int:
        """Number of right singular vectors."""
        return len(self.V_k)


def reads_of(dW: Tensor, top_k: int, dtype: torch.dtype) -> Reads | None:
    """Leading right singular vectors (k at most dW's numerical rank) and R; None for dW = 0.

    R = UᵀdW is formed in fp64 and stored in `dtype`: U's columns are one side of the decomposition
    of dW where dW is wide; where it is tall, R = ΣVᵀ needs no U.
    """
    if not bool(dW.any()):
        return None
    found = subspaces.decompose(dW)
    rank = max(1, int((found.sigma > _NOISE * found.sigma[0]).sum()))
    small = found.small[:, :rank]
    V_k = subspaces.leading_bases(found, min(top_k, found.rank)).right.T
    if dW.shape[0] >= dW.shape[1]:
        R = (small * found.sigma[:rank]).T
    else:
        R = torch.cat([part @ small for part in subspaces.row_parts(dW.T, small.device)]).T
    return Reads(V_k.float().contiguous(), R.to(dtype).contiguous())


@dataclass
class Target:
    """A matrix of the base's MLPs, with where each comparison's change of it reads."""

    matrix: Matrix
    reads: dict[str, Reads]
    """By changed model; models that leave this matrix as it is are missing."""
    W: Tensor | None = None
    """[out, in]; only of experts, whose own module sees a part of the tokens."""


class Change(NamedTuple):
    """All changes against one base."""

    targets: list[Target]
    unchanged: dict[str, int]
    """Matrices without a change, by changed model."""
    expert_outputs_left_out: int


def read_changes(
    base: Checkpoint,
    changed: Sequence[Checkpoint],
    top_k: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Change:
    """Decompose the change of every MLP matrix, matrix by matrix.

    Experts' output matrices are left out: what they see depends on the routing. Raises BadInput,
    naming the tensor, where checkpoints cannot be subtracted or hold NaN or Inf.
    """
    names = [match(base, other) for other in changed]
    experts = {m.layer for m in subspaces.mlp_matrices(base) if is_expert(m)}
    targets, left_out = [], 0
    unchanged = {other.model: 0 for other in changed}
    bar = progress(subspaces.mlp_matrices(base), "changes of MLPs", unit="matrix")
    for matrix in bar:
        bar.set_postfix_str(matrix.name)
        if matrix.layer in experts and matrix.component not in INPUT_COMPONENTS:
            left_out += 1
            continue
        W_A = base.matrix(matrix).float()
        reads: dict[str, Reads] = {}
        for other, name_in_other in zip(changed, names, strict=True):
            W_B = other.matrix(matrix, name_in_other[matrix.tensor]).float()
            found = reads_of((W_B - W_A).to(device), top_k, dtype)
            if found is None:
                unchanged[other.model] += 1
            else:
                reads[other.model] = Reads(*(part.cpu() for part in found))
        if reads:
            W = W_A.to(dtype) if matrix.layer in experts else None
            targets.append(Target(matrix, reads, W))
    return Change(targets, unchanged, left_out)


def settle(targets: Sequence[Target], device: torch.device) -> None:
    """Move what a pass needs to `device` where half of its free memory holds it.

    Elsewhere it stays in main memory and is copied over for each batch.
    """
    if device.type != "cuda":
        return
    held = [part for t in targets for reads in t.reads.values() for part in reads]
    held += [t.W for t in targets if t.W is not None]
    if sum(part.nbytes for part in held) > SHARE * torch.cuda.mem_get_info(device)[0]:
        return
    for target in targets:
        for changed, reads in target.reads.items():
            target.reads[changed] = Reads(*(part.to(device) for part in reads))
        target.W = None if target.W is None else target.W.to(device)


def is_expert(matrix: Matrix) -> bool:
    """Whether a matrix belongs to one expert of several."""
    return matrix.expert is not None or ".experts." in matrix.name


# ── a pass ────────────────────────────────────────────────────────────────────────────────────────

RATIO, NORM, TOKENS, EFFECT, EFFECT_TOKENS = range(5)


@dataclass
class Sums:
    """Per-document sums of every target and comparison, `[documents, 5]` fp64 on the CPU each.

    ‖P x‖/‖x‖, ‖P x‖, tokens with x ≠ 0, ‖dW x‖/‖W x‖, tokens with W x ≠ 0.
    """

    documents: int
    columns: dict[tuple[str, str], Tensor] = field(default_factory=dict)

    def add(self, name: str, changed: str, values: Tensor, place: Place) -> None:
        """Add per-token `values` `[n, 5]` of a matrix to their documents."""
        key = (name, changed)
        if key not in self.columns:
            self.columns[key] = torch.zeros(self.documents, 5, dtype=torch.float64)
        per_document = place.membership.cpu().double() @ values.double().cpu()
        self.columns[key][place.documents.cpu()] += per_document

    def totals(self, targets: Sequence[Target]) -> dict[tuple[str, str], np.ndarray]:
        """Summed over processes, which all come here with the same targets."""
        return {
            (t.matrix.name, changed): sum_over_processes(
                self.columns[t.matrix.name, changed]
            ).numpy()
            for t in targets
            for changed in t.reads
        }


def token_values(x: Tensor, Wx: Tensor, reads: Reads) -> Tensor:
    """What `Sums` adds up, per token: x `[n, in]`, Wx `[n, out]` without bias → `[n, 5]` fp32.

    Where x is zero (as behind a ReLU) a direction is not defined, and the token does not count.
    """
    norm = torch.linalg.vector_norm(x.float(), dim=1)
    inside = torch.linalg.vector_norm(x.float() @ reads.V_k.to(x.device).T, dim=1)
    R = reads.R.to(x.device, non_blocking=True)
    moved = torch.linalg.vector_norm((x.to(R.dtype) @ R.T).float(), dim=1)
    size = torch.linalg.vector_norm(Wx.float(), dim=1)
    seen, written = norm > 0, size > 0

    def ratio(part: Tensor, whole: Tensor) -> Tensor:
        return torch.where(whole > 0, part / whole, torch.zeros_like(part))

    columns = [ratio(inside, norm), inside, seen.float(), ratio(moved, size), written.float()]
    return torch.stack(columns, 1)


def _flat(x: Tensor, place: Place) -> Tensor:
    """The counted tokens of `[B, positions, d]` or, as OPT has it, `[B · positions, d]`."""
    counted = place.counted.to(x.device)
    return x.reshape(*counted.shape, -1)[counted]


class Watcher:
    """Forward hooks on the base's MLPs that fill sums as a pass goes on."""

    def __init__(self, anatomy: Anatomy, targets: Sequence[Target]) -> None:
        self.targets: dict[tuple[int, str], list[Target]] = {}
        for target in targets:
            key = (target.matrix.layer, target.matrix.component)
            self.targets.setdefault(key, []).append(target)
        self.anatomy = anatomy
        self.sums = Sums(0)
        self.place: Place | None = None

    def register(self, handles: list[Any]) -> None:
        """Hook every module that a target needs; raises BadInput where one is not there."""
        wanted = set(self.targets)
        for mlp in self.anatomy.mlps:
            for module, components, dense in _sources(mlp):
                found = {c: self.targets.get((mlp.layer, c), []) for c in components}
                if any(found.values()):
                    handles.append(module.register_forward_hook(self._hook(found, dense)))
                    wanted -= {(mlp.layer, c) for c in components}
        if wanted:
            layer, component = min(wanted)
            raise BadInput(f"block {layer}: no live module for its {component} matrix was found")

    def _hook(self, found: Mapping[str, list[Target]], dense: bool) -> Callable[..., None]:
        def read(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            assert self.place is not None
            x = _flat(args[0], self.place)
            if not bool(torch.isfinite(x).all()):
                name = next(targets[0] for targets in found.values() if targets).matrix.name
                raise BadInput(
                    f"NaN or Inf in the inputs of {name}: try --dtype fp32, or check the weights"
                )
            Wx = _flat(output, self.place) if dense else None
            bias = getattr(module, "bias", None)
            if Wx is not None and isinstance(bias, Tensor):
                Wx = Wx - bias
            for targets in found.values():
                for target in targets:
                    self._add(target, x, Wx)

        return read

    def _add(self, target: Target, x: Tensor, Wx: Tensor | None) -> None:
        assert self.place is not None
        if Wx is None:
            assert target.W is not None
            Wx = x @ target.W.to(x.device).T
        elif target.matrix.rows is not None:  # one of two matrices that a fused module holds
            Wx = Wx[:, slice(*target.matrix.rows)]
        for changed, reads in target.reads.items():
            values = token_values(x, Wx, reads)
            self.sums.add(target.matrix.name, changed, values, self.place)


def _sources(mlp: Mlp) -> list[tuple[nn.Module, tuple[str, ...], bool]]:
    """Modules whose input certain components see, and whether their output is W x."""
    if mlp.experts:
        return [(mlp.input_module, INPUT_COMPONENTS, False)]
    return [(m.module, tuple(m.component.split("+")), True) for m in mlp.matrices]


@torch.inference_mode()
def watch(
    anatomy: Anatomy, targets: Sequence[Target], passes: Sequence[SplitPass]
) -> dict[str, dict[tuple[str, str], np.ndarray]]:
    """One pass of the base over each split: the totals by split, then by matrix and comparison.

    Raises BadInput for inputs that are not finite.
    """
    watcher = Watcher(anatomy, targets)
    found = {}
    with loading.hooks() as handles:
        watcher.register(handles)
        for one in passes:
            watcher.sums = Sums(len(one.tokens.ids))
            for at in one.batches("MLP inputs"):
                watcher.place = at.place
                loading.stream_states(anatomy, at.batch, lambda state, hidden: None)
            found[one.split.name] = watcher.sums.totals(targets)
    return found
