"""A run of either importance script: read, measure, save, print."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from model_diffs.activations.passes import Reader
from model_diffs.activations.tokens import Tokens, tokenise
from model_diffs.core import naming, results
from model_diffs.core.errors import BadInput
from model_diffs.core.options import recorded
from model_diffs.core.results import PlannedRun
from model_diffs.core.script import seed_everything
from model_diffs.data import text_datasets
from model_diffs.data.texts import Split
from model_diffs.importance import saved
from model_diffs.importance.lenses import Lens
from model_diffs.importance.measuring import Measured, measure
from model_diffs.importance.options import Options
from model_diffs.models import devices, loading
from model_diffs.models.checkpoints import Checkpoint

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Arrays = Mapping[str, np.ndarray]
"""Key → `[size]` fp32."""
HOW_TO_LOAD = [
    "from model_diffs.importance.saved import load_results",
    "results = load_results(FOLDER)  # or load_results(FOLDER / 'consolidated_results.npz')",
    "results['data']['layer_0_mean_abs'], results['metadata']",
]


@dataclass
class Dimensions:
    """What is measured of a model: which layers, and what a dimension is."""

    prefix: str
    """First word of result folders: layer_activations or sae_features."""
    layers: tuple[int, ...]
    lens_on: Callable[[torch.device], Lens]
    reads: Sequence[Path] = ()
    """Files that the lens was read from."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Where they are from, for the record."""


@dataclass
class Analysis:
    """What one run of a script found."""

    options: Options
    dimensions: Dimensions
    checkpoint: Checkpoint
    split: Split
    tokens: Tokens
    measured: Measured
    loading_seconds: float
    compute: Mapping[str, str]
    """Device and dtype."""


def layers_of(options: Options, checkpoint: Checkpoint) -> tuple[int, ...]:
    """The layers that are asked for. BadInput where the model has no such layer."""
    names = ("num_hidden_layers", "n_layer", "num_layers")
    counts = [checkpoint.config[name] for name in names if name in checkpoint.config]
    if not counts:
        raise BadInput(f"{checkpoint.model}: no num_hidden_layers in its config.json")
    every = tuple(range(int(counts[0])))
    layers = every if options.layers is None else tuple(options.layers)
    if layers[-1] not in every:
        raise BadInput(
            f"{checkpoint.model} has layers 0-{every[-1]}, and --layers asks for {layers[-1]}"
        )
    return layers


def analyse(options: Options, checkpoint: Checkpoint, dimensions: Dimensions) -> Analysis:
    """Read texts and model, and measure."""
    device = devices.pick_device(options.device)
    dtype = devices.pick_dtype(options.dtype, device)
    seed_everything(options.seed)
    started = time.perf_counter()
    split = text_datasets.read_dataset(options.dataset, options.max_samples, options.seed)
    tokenizer = loading.load_tokenizer(options.model, options.trust_remote_code)
    limit = checkpoint.config.get("max_position_embeddings") or options.max_length
    length = min(options.max_length, limit)
    tokens = tokenise(tokenizer, split.texts, length, options.keep_bos, options.skip_first)
    lens = dimensions.lens_on(device)
    model = loading.load_model(options.model, device, dtype, options.trust_remote_code)
    loading_seconds = time.perf_counter() - started
    reader, pad_id = Reader(options.model, model), tokenizer.pad_token_id
    measured = measure(reader, tokens, pad_id, lens, dimensions.layers, options)
    compute = {"device": str(device), "dtype": devices.dtype_name(dtype)}
    return Analysis(
        options, dimensions, checkpoint, split, tokens, measured, loading_seconds, compute
    )


# ── what is recorded ──────────────────────────────────────────────────────────────────────────────


def timing(analysis: Analysis) -> dict[str, Any]:
    """Seconds of each part, and how fast texts went through."""
    measured, loading_seconds = analysis.measured, analysis.loading_seconds
    totals, seconds = measured.totals, measured.seconds
    return {
        "total_seconds": loading_seconds + seconds,
        "loading_seconds": loading_seconds,
        "pass_seconds": seconds,
        "model_seconds": max(0.0, seconds - sum(measured.layer_seconds.values())),
        "layer_seconds": {f"layer_{i}": s for i, s in measured.layer_seconds.items()},
        "texts": totals.texts,
        "tokens": totals.tokens,
        "texts_per_second": totals.texts / seconds,
        "tokens_per_second": totals.tokens / seconds,
        "partial": measured.partial,
    }


def timing_text(stats: Mapping[str, Any]) -> str:
    """The timing, a number per line."""
    numbers = {**stats, **stats["layer_seconds"]}
    del numbers["layer_seconds"], numbers["partial"]
    lines = ["INTERRUPTED: of the texts that were finished"] if stats["partial"] else []
    lines += [f"{name.replace('_', ' '):<20} {value:12,.2f}" for name, value in numbers.items()]
    return "\n".join(lines) + "\n"


def statistics(values: np.ndarray) -> dict[str, float]:
    """Of one array: mean, std, max, sum of absolute values."""
    exact = values.astype(np.float64)
    found = {"mean": exact.mean(), "std": exact.std(), "max": exact.max()}
    return {name: float(one) for name, one in {**found, "sum_abs": np.abs(exact).sum()}.items()}


def metadata(analysis: Analysis, power: float | None, data: Arrays) -> dict[str, Any]:
    """What metadata.json and the npz say of one power; keys are those of docs/importance.md."""
    options, measured, dimensions = analysis.options, analysis.measured, analysis.dimensions
    config = recorded(options)
    names = {"model_name": config.pop("model"), "num_samples": config.pop("max_samples")}
    chosen = {"layers": list(dimensions.layers), "power": power, **dimensions.facts}
    read = {"texts": analysis.split.identity(), "left_out": analysis.tokens.left_out}
    return {
        "model_name": options.model,
        "aggregate_by": options.aggregate_by,
        "aggregation_mode": options.aggregation_mode,
        "power": power,
        "normalization_mode": options.normalize_gradients,
        "dimension_sizes": {f"layer_{i}": m.shape[1] for i, m in measured.means.items()},
        "partial": measured.partial,
        "texts": measured.totals.texts,
        "tokens": measured.totals.tokens,
        "predictions": measured.totals.predictions,
        "mean_loss": measured.totals.mean_loss,
        "analysis_config": {**config, **names, **chosen, **analysis.compute, **read},
        "layer_statistics": {key: statistics(values) for key, values in data.items()},
        "timing": timing(analysis),
        "how_to_load": HOW_TO_LOAD,
    }


def figures(analysis: Analysis, data: Arrays) -> Iterator[tuple[str, "Figure"]]:
    """Names and figures: per array a histogram and a scatter plot, and both modes side by side."""
    from model_diffs.importance.figures import KINDS, Shown, draw

    options, layers = analysis.options, analysis.dimensions.layers
    of = "SAE features" if analysis.dimensions.prefix.startswith("sae") else options.site
    partial = ", INTERRUPTED" if analysis.measured.partial else ""
    title = f"{naming.model_label(options.model)}, {options.aggregate_by} of {of}{partial}"
    by_ending: dict[str, list[Shown]] = {}
    for mode, how, ending in saved.asked(options.aggregation_mode, options.normalize_gradients):
        arrays = {i: data[key] for i in layers if (key := f"layer_{i}_{mode}{ending}") in data}
        if arrays:
            label = mode if how == "none" else f"{mode}, normalised by {how}"
            by_ending.setdefault(ending, []).append(Shown(label, mode, arrays))
    for ending, shown in by_ending.items():
        drawn = [
            (f"_{one.heading}{ending}_{kind}", [kind], [one]) for one in shown for kind in KINDS
        ]
        if len(shown) > 1:
            drawn.append((f"{ending}_combined", list(KINDS), shown))
        for name, kinds, several in drawn:
            common = [layer for layer in layers if all(layer in one.layers for one in several)]
            for layer in (*common, None):
                which = "all layers" if layer is None else f"layer {layer}"
                figure = draw(f"{title}, {which}", kinds, several, layer)
                yield which.replace(" ", "_") + name, figure


# ── saving and printing ───────────────────────────────────────────────────────────────────────────


def save(analysis: Analysis, power: float | None, data: Arrays, several: bool) -> list[Path]:
    """A folder, a consolidated file, or both, of one power (of `several`); what was written."""
    options, dimensions = analysis.options, analysis.dimensions
    about, written = metadata(analysis, power, data), []
    if options.save_outputs:
        folder = saved.result_folder(options, dimensions.prefix, dimensions.layers, power)
        label = naming.model_label(options.model)
        with results.open_run(PlannedRun(folder, label, about["analysis_config"])) as run:
            for key, values in data.items():
                np.save(run.path / f"{key}_gradients.npy", values, allow_pickle=False)
            saved.write_consolidated(run.path / saved.CONSOLIDATED, data, about)
            run.document("metadata", about)
            run.document("timing_stats", about["timing"])
            (run.path / "timing_summary.txt").write_text(timing_text(about["timing"]))
            for name, figure in figures(analysis, data):
                run.figure(name, figure)
            run.reads(*analysis.checkpoint.files, *dimensions.reads)
            run.reads(*text_datasets.files_of(analysis.split))
            models = {label: analysis.checkpoint.identity()}
            run.record(models=models, partial=analysis.measured.partial)
        written.append(folder)
    if options.save_consolidated:
        path = saved.consolidated_path(options.save_consolidated, power if several else None)
        saved.write_consolidated(path, data, about)
        written.append(path)
    return written


def print_summary(analysis: Analysis, power: float | None, data: Arrays) -> None:
    """A line per array: how it is spread, and its largest dimensions."""
    totals, options = analysis.measured.totals, analysis.options
    if power is not None:
        print(f"power {power}")
    loss = "" if totals.mean_loss is None else f", mean loss {totals.mean_loss:.4f} nats"
    texts = f"{totals.texts:,} texts, {totals.tokens:,} tokens"
    print(f"{options.model}: {options.aggregate_by} of {texts}{loss}")
    for key, values in data.items():
        size = np.abs(values.astype(np.float64))
        order = np.argsort(-size, kind="stable")
        top = ", ".join(f"{i} ({values[i]:.3g})" for i in order[:3] if values[i] != 0)
        hundredth = max(1, len(values) // 100)
        share = size[order[:hundredth]].sum() / size.sum() if size.any() else 0.0
        print(
            f"{key}: {len(values):,} dimensions, {int((values != 0).sum()):,} not zero; the top "
            f"hundredth ({hundredth}) holds {share:.0%}; largest {top or 'none'}"
        )


def run(options: Options, checkpoint: Checkpoint, dimensions: Dimensions) -> None:
    """Measure, save what is asked for, a folder per power, and print.

    Leaves with 130 where interrupted. Raises BadInput, when the rest is saved, for what could not
    be normalised.
    """
    analysis = analyse(options, checkpoint, dimensions)
    if not results.is_main_process():
        return
    measured, refused = analysis.measured, list[str]()
    by_power: dict[float | None, Arrays] = {}
    mode, normalisation = options.aggregation_mode, options.normalize_gradients
    for power in options.power or (None,):
        data: dict[str, np.ndarray] = {}
        for layer in dimensions.layers:
            means = measured.means[layer].numpy()
            found, left_out = saved.variants(means, layer, mode, power, normalisation)
            data |= found
            refused += left_out
        if data:
            by_power[power] = data
    # Saved before anything is printed: the reader of the output may have gone.
    written = []
    for power, arrays in by_power.items():
        written += save(analysis, power, arrays, len(by_power) > 1)
    for power, arrays in by_power.items():
        print_summary(analysis, power, arrays)
    for path in written:
        print(path)
    if measured.partial:
        print(
            f"interrupted after {measured.totals.texts} of {len(analysis.tokens.ids)} texts: what "
            "was finished is above, and marked partial where it was saved",
            file=sys.stderr,
        )
        sys.exit(130)
    if refused:
        others = f"; so it is with {len(refused) - 1} more" if len(refused) > 1 else ""
        raise BadInput(f"{refused[0]}{others}. What could be normalised is above")
