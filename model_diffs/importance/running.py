"""A run of either importance script: read, measure, save, print."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from model_diffs.activations.passes import Reader
from model_diffs.activations.tokens import tokenise
from model_diffs.core import naming, results
from model_diffs.core.errors import BadInput
from model_diffs.core.options import recorded
from model_diffs.core.results import PlannedRun
from model_diffs.core.script import seed_everything
from model_diffs.data import text_datasets
from model_diffs.importance import saved
from model_diffs.importance.lenses import Lens
from model_diffs.importance.measuring import Measured, measure
from model_diffs.importance.options import Options
from model_diffs.models import configuration, devices, loading
from model_diffs.models.checkpoints import Checkpoint

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Arrays = Mapping[str, np.ndarray]
"""Key → `[size]` fp32."""
About = dict[str, Any]
"""What metadata.json and the npz say; keys are those of docs/importance.md."""
HOW_TO_LOAD = [
    "from model_diffs.importance.saved import load_results",
    "results = load_results(FOLDER)  # or load_results(FOLDER / 'consolidated_results.npz')",
    "results['data']['layer_0_mean_abs'], results['metadata']",
]


def layers_of(options: Options, checkpoint: Checkpoint) -> tuple[int, ...]:
    """The layers that are asked for. BadInput where the model has no such layer."""
    count = configuration.blocks(checkpoint.model, checkpoint.config)
    layers = tuple(range(count) if options.layers is None else options.layers)
    if layers[-1] >= count:
        has = f"{checkpoint.model} has layers 0-{count - 1}"
        raise BadInput(f"{has}, and --layers asks for {layers[-1]}")
    return layers


def analyse(
    options: Options,
    checkpoint: Checkpoint,
    layers: Sequence[int],
    lens_on: Callable[[torch.device], Lens],
    facts: Mapping[str, Any],
) -> tuple[Measured, About, list[Path]]:
    """Measure. Also the metadata that all powers share, and the files of the texts."""
    device = devices.pick_device(options.device)
    dtype = devices.pick_dtype(options.dtype, device)
    started = time.perf_counter()
    tokenizer = loading.load_tokenizer(options.model, options.trust_remote_code)
    chat, once = text_datasets.chat_of(tokenizer), options.drop_repeated
    split = text_datasets.read_dataset(
        options.dataset, options.max_samples, options.seed, chat, once
    )
    length = min(options.max_length, tokenizer.model_max_length)
    tokens = tokenise(tokenizer, split.texts, length, options.keep_bos, options.skip_first)
    lens = lens_on(device)
    model = loading.load_for(options, options.model, options.device_map)
    loading_seconds = time.perf_counter() - started
    reader, pad_id = Reader(options.model, model), tokenizer.pad_token_id
    measured = measure(reader, tokens, pad_id, lens, layers, options)
    config = {
        **recorded(options),
        "model_name": options.model,
        "num_samples": options.max_samples,
        "normalization_mode": options.normalize_gradients,
        "layers": list(layers),
        **facts,
        "device": str(device),
        "dtype": devices.dtype_name(dtype),
        "texts": split.identity(),
        "left_out": tokens.left_out,
    }
    del config["model"], config["max_samples"]
    about = metadata(options, measured, config, timing(measured, loading_seconds))
    return measured, about, text_datasets.files_of(split)


# ── what is recorded ──────────────────────────────────────────────────────────────────────────────


def metadata(
    options: Options, measured: Measured, config: Mapping[str, Any], seconds: Mapping[str, Any]
) -> About:
    """What all powers share; each adds its own power and statistics."""
    return {
        "model_name": options.model,
        "aggregate_by": options.aggregate_by,
        "aggregation_mode": options.aggregation_mode,
        "power": None,
        "normalization_mode": options.normalize_gradients,
        "dimension_sizes": {f"layer_{i}": m.shape[1] for i, m in measured.means.items()},
        "partial": measured.partial,
        "texts": measured.texts,
        "tokens": measured.tokens,
        "predictions": measured.predictions,
        "mean_loss": measured.mean_loss,
        "analysis_config": config,
        "layer_statistics": {},
        "timing": seconds,
        "how_to_load": HOW_TO_LOAD,
    }


def timing(measured: Measured, loading_seconds: float) -> dict[str, Any]:
    """Seconds of each part, and how fast texts went through."""
    seconds = measured.seconds
    return {
        "total_seconds": loading_seconds + seconds,
        "loading_seconds": loading_seconds,
        "pass_seconds": seconds,
        "model_seconds": max(0.0, seconds - sum(measured.layer_seconds.values())),
        "layer_seconds": {f"layer_{i}": s for i, s in measured.layer_seconds.items()},
        "texts": measured.texts,
        "tokens": measured.tokens,
        "texts_per_second": measured.texts / seconds,
        "tokens_per_second": measured.tokens / seconds,
        "partial": measured.partial,
    }


def timing_text(stats: Mapping[str, Any]) -> str:
    """The timing, a number per line."""
    numbers = {k: v for k, v in stats.items() if k not in ("layer_seconds", "partial")}
    lines = ["INTERRUPTED: of the texts that were finished"] if stats["partial"] else []
    for name, value in {**numbers, **stats["layer_seconds"]}.items():
        lines.append(f"{name.replace('_', ' '):<20} {value:12,.2f}")
    return "\n".join(lines) + "\n"


def statistics(values: np.ndarray) -> dict[str, float]:
    """Of one array: mean, std, max, sum of absolute values."""
    exact = values.astype(np.float64)
    found = {"mean": exact.mean(), "std": exact.std(), "max": exact.max()}
    return {**found, "sum_abs": np.abs(exact).sum()}


def figures(
    options: Options, of: str, layers: Sequence[int], partial: bool, data: Arrays
) -> Iterator[tuple[str, "Figure"]]:
    """Names and figures: per array a histogram and a scatter plot, and both modes side by side."""
    from model_diffs.importance.figures import KINDS, Shown, draw

    interrupted = ", INTERRUPTED" if partial else ""
    title = f"{naming.model_label(options.model)}, {options.aggregate_by} of {of}{interrupted}"
    by_ending: dict[str, list[Shown]] = {}
    for mode, how, ending in saved.asked(options):
        arrays = {i: data[key] for i in layers if (key := f"layer_{i}_{mode}{ending}") in data}
        if arrays:
            label = mode if how == "none" else f"{mode}, normalised by {how}"
            by_ending.setdefault(ending, []).append(Shown(label, mode, arrays))
    for ending, shown in by_ending.items():
        plots = [(f"_{s.heading}{ending}_{kind}", [kind], [s]) for s in shown for kind in KINDS]
        if len(shown) > 1:
            plots.append((f"{ending}_combined", list(KINDS), shown))
        for name, kinds, several in plots:
            common = [layer for layer in layers if all(layer in one.layers for one in several)]
            for layer in (*common, None):
                which = "all layers" if layer is None else f"layer {layer}"
                figure = draw(f"{title}, {which}", kinds, several, layer)
                yield which.replace(" ", "_") + name, figure


def print_summary(about: About, data: Arrays) -> None:
    """A line per array: how it is spread, and its largest dimensions."""
    if about["power"] is not None:
        print(f"power {about['power']}")
    loss = "" if about["mean_loss"] is None else f", mean loss {about['mean_loss']:.4f} nats"
    texts = f"{about['texts']:,} texts, {about['tokens']:,} tokens"
    print(f"{about['model_name']}: {about['aggregate_by']} of {texts}{loss}")
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


def save(
    options: Options,
    checkpoint: Checkpoint,
    prefix: str,
    reads: Sequence[Path],
    about: About,
    data: Arrays,
    several: bool,
) -> list[Path]:
    """A folder, a consolidated file, or both, of one power (of `several`); what was written."""
    config, power, written = about["analysis_config"], about["power"], []
    if options.save_outputs:
        layers, label = config["layers"], naming.model_label(options.model)
        folder = saved.result_folder(options, prefix, layers, power)
        with results.open_run(PlannedRun(folder, label, config)) as run:
            for key, values in data.items():
                np.save(run.path / f"{key}_gradients.npy", values, allow_pickle=False)
            saved.write_consolidated(run.path / saved.CONSOLIDATED, data, about)
            run.document("metadata", about)
            run.document("timing_stats", about["timing"])
            (run.path / "timing_summary.txt").write_text(timing_text(about["timing"]))
            of = "SAE features" if prefix.startswith("sae") else options.read_at
            for name, figure in figures(options, of, layers, about["partial"], data):
                run.figure(name, figure)
            run.reads(*checkpoint.files, *reads)
            run.record(models={label: checkpoint.identity()}, partial=about["partial"])
        written.append(folder)
    if options.save_consolidated:
        path = saved.consolidated_path(options.save_consolidated, power if several else None)
        saved.write_consolidated(path, data, about)
        written.append(path)
    return written


def run(
    options: Options,
    checkpoint: Checkpoint,
    prefix: str,
    layers: Sequence[int],
    lens_on: Callable[[torch.device], Lens],
    reads: Sequence[Path] = (),
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Measure, save what is asked for, a folder per power, and print.

    `prefix` is the first word of result folders, `reads` the lens's files, `facts` what they are.
    Leaves with 130 where interrupted. Raises BadInput, when the rest is saved, for what could not
    be normalised.
    """
    seed_everything(options.seed)
    measured, about, text_files = analyse(options, checkpoint, layers, lens_on, facts or {})
    if not results.is_main_process():
        return
    means = {layer: measured.means[layer].numpy() for layer in layers}
    made, refused = list[tuple[About, Arrays]](), list[str]()
    for power in options.power or (None,):
        data, left_out = saved.variants(means, options, power)
        refused += left_out
        config = {**about["analysis_config"], "power": power}
        spread = {key: statistics(values) for key, values in data.items()}
        of_power = {"power": power, "analysis_config": config, "layer_statistics": spread}
        if data:
            made.append(({**about, **of_power}, data))
    # Saved before anything is printed: the reader of the output may have gone.
    files, several = [*reads, *text_files], len(made) > 1
    written = []
    for of_power, arrays in made:
        written += save(options, checkpoint, prefix, files, of_power, arrays, several)
    for of_power, arrays in made:
        print_summary(of_power, arrays)
    for path in written:
        print(path)
    if measured.partial:
        print(
            f"interrupted after {measured.texts} of {measured.asked_texts} texts: what was "
            "finished is above, and marked partial where it was saved",
            file=sys.stderr,
        )
        sys.exit(130)
    if refused:
        others = f"; so it is with {len(refused) - 1} more" if len(refused) > 1 else ""
        raise BadInput(f"{refused[0]}{others}. What could be normalised is above")
