"""How differently two models predict the next token, token by token; one model is in memory.

Of the base the states that meet its head wait in main memory, for the tokens that count, and its
head on the device. The logits of both models are formed for some tokens at a time and never kept.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from model_diffs.activations.passes import SplitPass
from model_diffs.activations.tokens import TokenBatch
from model_diffs.core.errors import BadInput
from model_diffs.evaluation.logit_lens import Head
from model_diffs.models import loading
from model_diffs.models.devices import gather_over_processes

LOGITS = 1 << 26
"""Logits of each model at a time."""
SHOWN = 20
"""Tokens of a split whose context is told: those whose predictions changed most."""


class Predictor:
    """A model as it predicts: the states before its head, and the head."""

    def __init__(self, model: Any) -> None:
        self.model, self.head = model, Head.of(model)

    @torch.inference_mode()
    def states(self, at: TokenBatch) -> Tensor:
        """`[n, d]`: of the tokens that count, what meets the head."""
        kept: list[Tensor] = []

        def keep(_: Any, args: tuple[Tensor, ...]) -> Tensor:
            kept.append(args[0][at.counted.to(args[0].device)])
            return kept[0][:1]  # the head has no work to do

        with loading.hooks() as handles:
            handles.append(self.head.module.register_forward_pre_hook(keep))
            self.model(**at.batch._asdict(), use_cache=False)
        return kept[0]


@dataclass
class Base:
    """What is kept of the base once it was read: it is let go before a changed model is loaded."""

    head: Head
    states: dict[str, list[Tensor]] = field(default_factory=dict)
    """Of each split, by batch of this process, on the CPU."""


def read_base(model: Any, sample: Sequence[SplitPass]) -> Base:
    """The states of the base on all texts of this process, and its head."""
    predictor = Predictor(model)
    found = Base(predictor.head)
    for one in sample:
        batches = one.batches("KL divergence, base")
        found.states[one.split.name] = [predictor.states(at).cpu() for at in batches]
    return found


@torch.inference_mode()
def divergence(p_states: Tensor, base: Head, q_states: Tensor, changed: Head) -> list[Tensor]:
    """Of each token `[n]`: KL(base || changed) in nats, and the token that each ranks first."""
    rows = max(1, LOGITS // base.vocabulary)
    parts: list[list[Tensor]] = []
    for p_part, q_part in zip(p_states.split(rows), q_states.split(rows), strict=True):
        p = base(p_part.to(q_part.device)).float().log_softmax(-1)
        q = changed(q_part).float().log_softmax(-1)
        first, other = p.argmax(-1), q.argmax(-1)
        q = torch.sub(p, q, out=q)
        kl = p.exp_().mul_(q).sum(-1)
        parts.append([kl, first, other])
    return [torch.cat(one) for one in zip(*parts, strict=True)]


def compared(base: Base, changed: Predictor, tokenizer: Any, one: SplitPass) -> pd.DataFrame:
    """A row per token that counts; `context` only where the largest values are.

    Processes share the batches and all get all rows. Raises BadInput for logits that are not
    finite.
    """
    found = []
    for at, states in zip(one.batches("KL divergence"), base.states[one.split.name], strict=True):
        kl, first, other = divergence(states, base.head, changed.states(at), changed.head)
        row = torch.tensor(at.rows)[at.places[:, 0].cpu()]
        columns = (row, at.places[:, 1], kl, first, other)
        names = ("row", "position", "kl", "base", "changed")
        found.append(pd.DataFrame({n: x.tolist() for n, x in zip(names, columns, strict=True)}))
    every = gather_over_processes(found)
    table = pd.concat(every, ignore_index=True).assign(split=one.split.name, context="")
    if table["kl"].isna().any():
        raise BadInput(f"logits on the {one.split.name} set are not finite: check the weights")
    for index, token in table.nlargest(SHOWN, "kl").iterrows():
        ids = one.tokens.ids[token["row"]][: token["position"] + 1]
        table.loc[index, "context"] = tokenizer.decode(ids[-15:])
    texts = one.tokens.documents[table["row"]]
    return table.assign(text=texts, agreement=table["base"] == table["changed"])
