"""The measures that a step declares: numbers of the signature, how they are read and worded.

    Measure("kl_forget", axis="function", table="per_text", column="kl", where={"split": "forget"},
            unit="nats", paired_by="text", above="…", below="…", same="…")

Standard library only, as `step`, which scripts import these from.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from model_diffs.core.tables import Place


@dataclass(frozen=True)
class Claims:
    """What the report says after a model's name: its number lies above or below a reference, or the
    interval of the difference does not exclude zero (that of a quotient one)."""

    above: str
    below: str
    same: str
    reference: float | None = None
    """The number of an unchanged model; None where the base has a number of its own."""
    shown: str = "{}"
    """How the number is written."""


Layers = Literal["", "states", "inside", "last", "early", "middle", "late", "blocks"]


@dataclass(frozen=True)
class Measure:
    """A number of the signature: where the step left it and how the report words it."""

    key: str
    """Column of signature.csv; the interval's ends are `<key>_low` and `<key>_high`."""
    axis: str
    """Section of the report that it belongs to (`report/axes.py`)."""
    table: str
    """Table of the step that holds it."""
    column: str
    where: Mapping[str, str] = field(default_factory=dict)
    """Rows of the table: column → cell; `{base}` and `{changed}` stand for the models' labels."""
    unit: str = "ratio"
    """How it is written: `ratio`, `share`, `accuracy`, `change`, `rank`, `steps` or `nats`."""
    label: str = ""
    """Heading in table and figure, whole words; the key where empty."""
    meaning: str = ""
    """One sentence: what the number is."""

    # ── how rows become one number: their mean, unless something here says otherwise ──
    layers: Layers = ""
    """`states`: hidden states 1 to N, the outputs of all blocks; `inside`: all but the last;
    `last`: state N; `early`, `middle`, `late`: a third of them; `blocks`: matrices of blocks, whose
    layer is at least 0."""
    weights: tuple[str, ...] | None = None
    """Columns whose product weights a row; rows of weight 0 are left out. None: `tokens` where
    the rows are texts and have that column, else all rows alike."""
    weights_from: str = ""
    """Table of the comparison, `folder/table`, with the weights by `name`."""
    relative_to: str = ""
    """Column to divide by, reduced over the same rows with the same weights."""
    norm: bool = False
    """Root of the sum of squares, √Σc², in place of the mean."""
    over: Mapping[str, str] = field(default_factory=dict)
    """The number of the rows of `where` divided by that of the rows with these cells instead."""
    less_base: bool = False
    """Minus the base's number (steps that measure models one by one)."""
    undefined: str = ""
    """Why there may be no number: no such row, nothing to divide by, an empty cell."""
    may_be_empty: bool = False
    """Cells may be empty: of rows of weight 0, or where the number is undefined."""
    compute: "Callable[[Place, Measure], Any] | None" = None
    """A computation of its own in place of all this: an `Estimate` of `stats`. Raises Absent."""
    computed: str = ""
    """How, for the table in docs/signature.md."""

    # ── intervals ──
    paired_by: Literal["", "text", "question", "entity", "resample"] = ""
    """What is resampled: rows of a text or question (`text`, `id`), all questions of an `entity`
    together, or, for `resample`, texts that the step has resampled itself."""
    kept: str = ""
    """Table with the values per text, question (`entity` too) or resample; empty: `table`."""
    kept_column: str = ""
    """Its column; empty: `column`."""
    options: tuple[str, ...] = ()
    """Options of the step that must be equal for two numbers to be compared."""

    # ── words ──
    unchanged: float | None = None
    """The number of a model identical to the base; None where it is undefined or the base has a
    number of its own."""
    of_base: bool = False
    """The base has a number of its own."""
    logarithmic: bool = False
    """Distances between numbers are ratios."""
    above: str = ""
    below: str = ""
    same: str = ""
    """Said beside the filtered model's number (see `Claims`); empty: nothing is concluded."""
    against_base: Claims | None = None
    """What is said against the base; None where the number cannot lie on both sides of it."""

    @property
    def heading(self) -> str:
        return self.label or self.key.replace("_", " ")

    @property
    def against_filtered(self) -> Claims | None:
        return Claims(self.above, self.below, self.same) if self.above else None
