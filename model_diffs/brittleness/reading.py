"""Questions as the measures of this room ask them."""

import random
from collections.abc import Sequence

from model_diffs.core.errors import BadInput
from model_diffs.data.questions import Question


def divided(
    questions: Sequence[Question], removed: str, most: int, seed: int
) -> tuple[list[Question], list[Question]]:
    """Questions on what was removed, and at most `most` (0 = all) of each other domain.

    Raises BadInput without questions of that domain in folds `tune` and `heldout`.
    """
    hazard = [one for one in questions if one.domain == removed]
    for fold in ("tune", "heldout"):
        if not any(one.fold == fold for one in hazard):
            raise BadInput(
                f"--questions: none of domain {removed!r} is of fold {fold!r}; mark folds, or name "
                "the domain with --removed"
            )
    others: list[Question] = []
    for domain in dict.fromkeys(one.domain for one in questions if one.domain != removed):
        own = [one for one in questions if one.domain == domain]
        count = min(most or len(own), len(own))
        chosen = random.Random(f"{seed} {domain}").sample(range(len(own)), count)
        others += [own[i] for i in sorted(chosen)]
    return hazard, others
