"""A run of either importance script: read, measure, print, save."""

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model_diffs.activations import passes
from model_diffs.core import arguments, naming, results
from model_diffs.core.errors import BadInput
from model_diffs.data import text_datasets
from model_diffs.data.texts import Split
from model_diffs.importance import importance_options as options_
from model_diffs.importance import saved
from model_diffs.importance.lenses import Lens
from model_diffs.importance.measuring import Measured, Settings, measure
from model_diffs.models import devices
from model_diffs.models import loading as models
from model_diffs.models.checkpoints import Checkpoint

KINDS = ("histogram", "scatter")


@dataclass
class Analysis:
    """What one run of a script found, and what it was asked."""

    options: argparse.Namespace
    prefix: str
    """First word of its folders: layer_activations or sae_features."""
    layers: tuple[int, ...]
    checkpoint: Checkpoint
    split: Split
    tokens: passes.Tokens
    measured: Measured
    loading_seconds: float
    reads: Sequence[Path]
    """Files that the result depends on, beside the model's and the texts'."""
    settings: Mapping[str, Any]
    """What was decided in the run: device, dtype, where dictionaries were found."""


def block_count(checkpoint: Checkpoint) -> int:
    """Blocks of a model, from its config.json."""
    for name in ("num_hidden_layers", "n_layer", "num_layers"):
        if isinstance(checkpoint.config.get(name), int):
            return int(checkpoint.config[name])
    raise BadInput(f"{checkpoint.model}: no num_hidden_layers in its config.json")


def analyse(
    options: argparse.Namespace,
    prefix: str,
    layers: tuple[int, ...],
    checkpoint: Checkpoint,
    lens_on: Callable[[torch.device], Lens],
    reads: Sequence[Path] = (),
    **settings: Any,
) -> Analysis:
    """Read texts and model, and measure. `lens_on` gives the lens on a device."""
    device = devices.pick_device(options.device)
    dtype = devices.pick_dtype(options.dtype, device)
    arguments.seed_everything(options.seed)
    started = time.perf_counter()
    split = text_datasets.read_dataset(options.dataset, options.num_samples, options.seed)
    tokenizer = models.load_tokenizer(options.model_name, options.trust_remote_code)
    limit = checkpoint.config.get("max_position_embeddings") or options.max_length
    tokens = passes.tokenise(
        *(tokenizer, split.texts, min(options.max_length, limit)),
        *(options.keep_bos, options.skip_first),
    )
    lens = lens_on(device)
    model = models.load_model(options.model_name, device, dtype, options.trust_remote_code)
    reader = passes.Reader(options.model_name, model)
    loading = time.perf_counter() - started
    what = Settings(
        *(layers, options.site, options.aggregate_by == "gradients"),
        *(options.batch_size, options.seed),
    )
    measured = measure(reader, tokens, tokenizer.pad_token_id, lens, what)
    settings |= {"device": str(device), "dtype": devices.dtype_name(dtype)}
    return Analysis(
        *(options, prefix, layers, checkpoint, split, tokens, measured, loading, reads, settings)
    )


# ── what is said of it ────────────────────────────────────────────────────────────────────────────


def timing(analysis: Analysis) -> dict[str, Any]:
    """Seconds of each part, and how fast texts went through."""
    measured = analysis.measured
    totals, seconds = measured.totals, measured.seconds
    in_layers = sum(measured.layer_seconds.values())
    return {
        "total_seconds": analysis.loading_seconds + seconds,
        "loading_seconds": analysis.loading_seconds,
        "pass_seconds": seconds,
        "model_seconds": max(0.0, seconds - in_layers),
        "layer_seconds": {f"layer_{i}": s for i, s in measured.layer_seconds.items()},
        "texts": totals.texts,
        "tokens": totals.tokens,
        "texts_per_second": totals.texts / seconds,
        "tokens_per_second": totals.tokens / seconds,
        "partial": measured.partial,
    }


def timing_text(stats: Mapping[str, Any]) -> str:
    """The same in words."""
    lines = [
        *(["INTERRUPTED: of the texts that were finished"] if stats["partial"] else []),
        f"{stats['texts']:,} texts, {stats['tokens']:,} tokens in {stats['pass_seconds']:.2f} s: "
        f"{stats['texts_per_second']:.1f} texts/s, {stats['tokens_per_second']:,.0f} tokens/s",
        f"loading texts and model   {stats['loading_seconds']:9.2f} s",
        f"the model's own pass      {stats['model_seconds']:9.2f} s",
    ]
    for layer, seconds in stats["layer_seconds"].items():
        lines.append(f"{layer.replace('_', ' '):<25} {seconds:9.2f} s")
    return "\n".join([*lines, f"total                     {stats['total_seconds']:9.2f} s", ""])


HOW_TO_LOAD = [
    "from model_diffs.importance_results import load_results",
    "results = load_results(FOLDER)  # or load_results(FOLDER / 'consolidated_results.npz')",
    "results['data']['layer_0_mean_abs'], results['metadata']",
    "numpy.load(FOLDER / 'layer_0_mean_abs_gradients.npy')  # one array alone",
]


def metadata(
    analysis: Analysis, power: float | None, data: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """What metadata.json and the npz say of one power."""
    options, measured = analysis.options, analysis.measured
    totals = measured.totals
    config = {k: v for k, v in sorted(vars(options).items()) if k != "outroot"}
    config |= {"layers": list(analysis.layers), "power": power, **analysis.settings}
    config["texts"] = analysis.split.identity()
    config["left_out"] = analysis.tokens.left_out
    sizes = {f"layer_{i}": int(means.shape[1]) for i, means in measured.means.items()}
    loss = totals.loss / totals.predictions if totals.predictions else None
    return {
        "model_name": options.model_name,
        "aggregate_by": options.aggregate_by,
        "aggregation_mode": options.aggregation_mode,
        "power": power,
        "normalization_mode": options.normalize_gradients,
        "dimension_sizes": sizes,
        "partial": measured.partial,
        "texts": totals.texts,
        "tokens": totals.tokens,
        "predictions": totals.predictions,
        "mean_loss": loss,
        "analysis_config": config,
        "layer_statistics": {key: saved.statistics(values) for key, values in data.items()},
        "timing": timing(analysis),
        "how_to_load": HOW_TO_LOAD,
    }


def print_summary(analysis: Analysis, data: Mapping[str, np.ndarray]) -> None:
    """A line per array: how it is spread, and its largest dimensions."""
    totals = analysis.measured.totals
    what = f"{totals.texts:,} texts, {totals.tokens:,} tokens"
    if totals.predictions:
        what += f", mean loss {totals.loss / totals.predictions:.4f} nats"
    print(f"{analysis.options.model_name}: {analysis.options.aggregate_by} of {what}")
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


# ── saving ────────────────────────────────────────────────────────────────────────────────────────


def _draw(run: results.Run, analysis: Analysis, data: Mapping[str, np.ndarray]) -> None:
    from model_diffs.importance import figures as figures

    options = analysis.options
    partial = ", INTERRUPTED" if analysis.measured.partial else ""
    of = "SAE features" if analysis.prefix.startswith("sae") else options.site
    title = f"{naming.model_label(options.model_name)}, {options.aggregate_by} of {of}{partial}"
    several = options.normalize_gradients == "both"
    for how in saved.NORMALISATIONS[options.normalize_gradients]:
        norm = f"_norm_{how}" if several else ""
        shown = {}
        for mode in saved.MODES[options.aggregation_mode]:
            keys = {i: f"layer_{i}_{mode}{norm}" for i in analysis.layers}
            arrays = {i: data[key] for i, key in keys.items() if key in data}
            if not arrays:
                continue  # none could be normalised
            scale = "" if how == "none" else f", normalised by {how}"
            shown[mode] = figures.Shown(f"{mode}{scale}", mode, arrays)
        for mode, one in shown.items():
            for kind in KINDS:
                for layer in one.layers:
                    figure = figures.layer_figure(f"{title}, layer {layer}", [kind], [one], layer)
                    run.figure(f"layer_{layer}_{mode}{norm}_{kind}", figure)
                figure = figures.layers_figure(f"{title}, all layers", [kind], [one])
                run.figure(f"all_layers_{mode}{norm}_{kind}", figure)
        if len(shown) > 1:
            both = list(shown.values())
            for layer in [i for i in analysis.layers if all(i in one.layers for one in both)]:
                figure = figures.layer_figure(f"{title}, layer {layer}", KINDS, both, layer)
                run.figure(f"layer_{layer}{norm}_combined", figure)
            figure = figures.layers_figure(f"{title}, all layers", KINDS, both)
            run.figure(f"all_layers{norm}_combined", figure)


def _save(
    analysis: Analysis, folder: Path, data: Mapping[str, np.ndarray], about: Mapping[str, Any]
) -> None:
    label = naming.model_label(analysis.options.model_name)
    planned = results.PlannedRun(folder, label, about["analysis_config"])
    with results.open_run(planned) as run:
        saved.write_arrays(run.path, data)
        saved.write_consolidated(run.path / saved.CONSOLIDATED, data, about)
        run.document("metadata", about)
        run.document("timing_stats", about["timing"])
        (run.path / "timing_summary.txt").write_text(timing_text(about["timing"]), encoding="utf-8")
        _draw(run, analysis, data)
        run.reads(*analysis.checkpoint.files, *analysis.reads)
        run.reads(*text_datasets.files_of(analysis.split))
        run.record(
            models={label: analysis.checkpoint.identity()}, partial=analysis.measured.partial
        )


def _save_all(
    analysis: Analysis, by_power: Mapping[float | None, Mapping[str, np.ndarray]]
) -> list[Path]:
    """A folder, a consolidated file, or both, per power; what was written."""
    options = analysis.options
    folders = options_.result_folders(options, analysis.prefix, analysis.layers)
    written = []
    for power, data in by_power.items():
        about = json.loads(json.dumps(metadata(analysis, power, data), default=str))
        if options.save_outputs:
            _save(analysis, folders[power], data, about)
            written.append(folders[power])
        if options.save_consolidated:
            several = len(by_power) > 1
            path = options_.consolidated_path(options.save_consolidated, power, several)
            saved.write_consolidated(path, data, about)
            written.append(path)
    return written


def finish(analysis: Analysis) -> None:
    """Print, save what is asked for, a folder per power; leave with 130 where interrupted.

    Raises BadInput, when the rest is saved, for what could not be normalised.
    """
    options, measured = analysis.options, analysis.measured
    if not results.is_main_process():
        return
    by_power: dict[float | None, dict[str, np.ndarray]] = {}
    refused: list[str] = []
    for power in options.power or [None]:
        of_power = by_power[power] = {}
        for layer in analysis.layers:
            found, left_out = saved.variants(
                *(measured.means[layer].numpy(), layer, options.aggregation_mode),
                *(power, options.normalize_gradients),
            )
            of_power.update(found)
            refused += left_out
    by_power = {power: data for power, data in by_power.items() if data}
    # Saved before anything is printed: whoever reads the output may have gone.
    written = _save_all(analysis, by_power)
    for power, data in by_power.items():
        if power is not None:
            print(f"power {power}")
        print_summary(analysis, data)
    for path in written:
        print(path)
    if measured.partial:
        total = len(analysis.tokens.ids)
        print(
            f"interrupted after {measured.totals.texts} of {total} texts: what was finished is "
            "above, and marked partial where it was saved",
            file=sys.stderr,
        )
        sys.exit(130)
    if refused:
        others = f"; so it is with {len(refused) - 1} more" if len(refused) > 1 else ""
        raise BadInput(f"{refused[0]}{others}. What could be normalised is above")
