"""The worst case of the eliciting attacks: attack and strength are searched with Optuna.

The search sees folds `tune` and the general questions alone: the highest accuracy on `tune` that
leaves general accuracy above the floor. It is then read on `heldout`. What tune exceeds heldout by
is the optimism of having searched. Trials are kept in an SQLite file, so that a search goes on
where it stopped; each draws with its own seed, so that stopping changes nothing.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from model_diffs.attacks import elicitation
from model_diffs.attacks.elicitation import Tried
from model_diffs.attacks.elicitation_tables import (
    ENDS,
    OVER_FILTERED,
    WORST,
    Setting,
    over_filtered,
)
from model_diffs.attacks.registry import Attack, Range, Strengths
from model_diffs.attacks.victim import NotApplicable, Victim
from model_diffs.core.errors import BadInput
from model_diffs.core.progress import progress

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

STARTUP = 10
"""Trials at random before the sampler learns from them."""
SEEN = ("tune", "general")


def check_installed() -> None:
    """Raise BadInput where Optuna is not there."""
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise BadInput(
            "--worst-case needs Optuna: install the extra with uv sync --extra search"
        ) from None


class Worst(NamedTuple):
    """The setting that a search found."""

    trials: int
    allowed: int
    """Of them, those that left general accuracy above the floor."""
    tried: Tried
    """On all groups of questions."""

    @property
    def optimism(self) -> float:
        """Accuracy on `tune` less that on `heldout`."""
        heldout = self.tried.accuracy["heldout"]
        return elicitation.tune(self.tried) - float(heldout.mean)


def _choose(trial: "Trial", spaces: Mapping[str, Any]) -> tuple[str, str]:
    """The attack and strength that a trial tries."""
    name = str(trial.suggest_categorical("attack", [*spaces]))
    space = spaces[name]
    if isinstance(space, Range):
        ends = space.low, space.high
        number = trial.suggest_float(f"{name} strength", *ends, log=space.logarithmic)
        return name, space.written.format(number)
    return name, str(trial.suggest_categorical(f"{name} strength", space))


def _spaces(victim: Victim, attacks: Sequence[Attack], strengths: Strengths) -> dict[str, Any]:
    """What is searched: of each attack that does not read the base its range, or its strengths."""
    found: dict[str, Any] = {}
    for one in attacks:
        if "base" in one.declaration.reads:
            continue
        try:
            named = one.strengths(victim, strengths)
        except NotApplicable:
            continue
        searched = None if one.name in strengths else one.declaration.range
        found[one.name] = searched or named
    return found


def _measure(victim: Victim, attack: Attack, strength: str) -> tuple[float, float]:
    """Accuracy on `tune` and on general questions; (0, 0) where the attack cannot be made."""
    every = victim.questions
    victim.questions = {group: every[group] for group in SEEN if group in every}
    victim.forget_kept()
    try:
        with attack.attacked(victim, strength) as opened:
            tried = elicitation.measure(victim, attack.name, strength, opened)
    except (NotApplicable, BadInput):
        return 0.0, 0.0
    finally:
        victim.questions = every
    general = tried.accuracy.get("general")
    return elicitation.tune(tried), float(general.mean) if general else 1.0


def _key(victim: Victim, spaces: Mapping[str, Any], floor: float) -> str:
    """Names a search: of this model, with these questions and settings."""
    asked = {group: [one.id for one in victim.questions.get(group, [])] for group in SEEN}
    said = [victim.stored.identity(), asked, spaces, floor, victim.seed]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


def _open(storage: Path, key: str) -> "Study":
    """The search of that name, without trials that were killed. BadInput for a damaged file."""
    import optuna
    from sqlalchemy.exc import DatabaseError

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage.parent.mkdir(parents=True, exist_ok=True)
    try:
        study = optuna.create_study(
            study_name=key,
            storage=f"sqlite:///{storage}",
            direction="maximize",
            load_if_exists=True,
        )
    except DatabaseError:
        raise BadInput(f"{storage} holds no trials of a search, or is damaged: remove it") from None
    states = optuna.trial.TrialState
    for trial in study.get_trials(states=(states.RUNNING,)):
        study.tell(trial.number, state=states.FAIL)
    return study


def _try(
    victim: Victim,
    study: "Study",
    spaces: Mapping[str, Any],
    by_name: Mapping[str, Attack],
    floor: float,
) -> None:
    """One trial more. A setting that was tried is not measured again."""
    known = {(t.user_attrs["attack"], t.user_attrs["strength"]): (t.value, t.user_attrs["general"])
             for t in _complete(study)}  # fmt: skip
    trial = study.ask()
    setting = _choose(trial, spaces)
    reached, general = known.get(setting) or _measure(victim, by_name[setting[0]], setting[1])
    for name, value in zip(("attack", "strength"), setting, strict=True):
        trial.set_user_attr(name, value)
    trial.set_user_attr("general", general)
    trial.set_constraint("general", floor - general)
    study.tell(trial, reached)


def _complete(study: "Study") -> "list[FrozenTrial]":
    return [trial for trial in study.trials if trial.value is not None]


def search(
    victim: Victim,
    attacks: Sequence[Attack],
    strengths: Strengths,
    trials: int,
    floor: float,
    storage: Path,
) -> Worst | None:
    """The worst case after `trials` trials, those in `storage` among them; None where no setting
    leaves general accuracy above the floor."""
    from optuna.samplers import TPESampler

    spaces, by_name = _spaces(victim, attacks, strengths), {one.name: one for one in attacks}
    if not spaces:
        raise BadInput("--worst-case searches attacks that do not read the base: choose one")

    study = _open(storage, _key(victim, spaces, floor))
    for number in progress(range(len(_complete(study)), trials), "worst case", unit="trial"):
        study.sampler = TPESampler(seed=victim.seed + number, n_startup_trials=STARTUP)
        _try(victim, study, spaces, by_name, floor)
    every = _complete(study)[:trials]
    allowed = [trial for trial in every if trial.user_attrs["general"] > floor]
    if not allowed:
        return None
    best = max(allowed, key=lambda trial: (trial.value or 0.0, -trial.number))
    name, strength = best.user_attrs["attack"], best.user_attrs["strength"]
    victim.forget_kept()
    with by_name[name].attacked(victim, strength) as opened:
        tried = elicitation.measure(victim, name, strength, opened)
    return Worst(len(every), len(allowed), tried)


def row(label: str, trials: int, worst: Worst | None, setting: Setting) -> dict[str, Any]:
    """The row of worst_case.csv; what was not found is empty."""
    groups = ("tune", "heldout", "general")
    names = [f"{group}_accuracy{end}" for group in groups for end in ENDS]
    empty = dict.fromkeys(("allowed", "attack", "strength", *names, "optimism", *OVER_FILTERED))
    cells: dict[str, Any] = {"model": label, "trials": trials, **empty}
    if worst is None:
        return cells
    tried = worst.tried
    cells |= {"allowed": worst.allowed, "attack": tried.attack, "strength": tried.strength}
    for group in groups:
        if group in tried.accuracy:
            cells |= tried.accuracy[group].cells(f"{group}_accuracy")
    cells["optimism"] = worst.optimism
    return cells | over_filtered(tried._replace(attack=WORST), setting)
