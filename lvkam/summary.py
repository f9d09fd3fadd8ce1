"""What a report says of a run: facts, key figures, measures with their controls, and what tells runs apart."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lvkam.build import LoadedModel, load_checkpoint
from lvkam.charts import intervals
from lvkam.checkpoint import Checkpoint
from lvkam.config import Config
from lvkam.model import LVKAM
from lvkam.progress import EpochRecord
from lvkam.run_folder import checkpoint_of

METRIC_NAMES = {"kid": "KID", "fid": "FID"}
"""Measures that are written otherwise than with a capital."""

ON_CARDS = ("kid", "fid", "coverage")
"""Measures among the key figures."""

NONE = "–"

Figures = Mapping[str, Any]
"""What `evaluate_checkpoint` returns."""


class Run(NamedTuple):
    """A trained model with what is known of its training."""

    name: str
    path: Path
    """Of the checkpoint."""
    loaded: LoadedModel
    log: list[EpochRecord]
    """Epoch 0 and the completed ones; empty of a model alone."""

    @property
    def checkpoint(self) -> Checkpoint:
        """As it was read."""
        return self.loaded.checkpoint

    @property
    def config(self) -> Config:
        """The run's configuration."""
        return self.loaded.config

    @property
    def model(self) -> LVKAM:
        """As it was trained, on the CPU."""
        return self.loaded.model

    @property
    def shape(self) -> tuple[int, ...]:
        """(H, W), (H, W, 3), or (D,) of a table."""
        return self.checkpoint.image_shape

    @property
    def is_table(self) -> bool:
        """Whether its data are rows of a table."""
        return self.checkpoint.standardisation is not None

    @property
    def what(self) -> str:
        """One of its data, in a word."""
        return "row" if self.is_table else "image"

    @property
    def data_name(self) -> str:
        """Of its data set; of somebody's own files without their folders."""
        return Path(self.checkpoint.dataset).name

    @property
    def shown_config(self) -> Config:
        """The configuration without the folder of its data, which is nobody else's business."""
        training = self.config.training.model_copy(update={"dataset": self.data_name})
        return self.config.model_copy(update={"training": training})

    @property
    def num_parameters(self) -> int:
        """How many numbers were learnt."""
        return sum(parameter.numel() for parameter in self.model.parameters())


def load_run(path: Path) -> Run:
    """The run of a checkpoint or a run folder; raises as `load_checkpoint`."""
    file = checkpoint_of(path)
    loaded = load_checkpoint(file)
    log = loaded.checkpoint.progress.log if loaded.checkpoint.training else []
    return Run(path.absolute().name, file, loaded, log)


# how numbers are written


def _duration(seconds: float) -> str:
    unit, length = next(((u, n) for u, n in (("s", 1), ("min", 60)) if seconds < 100 * n), ("h", 3600))
    return f"{round(seconds / length, 2):.3g} {unit}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _number(value: float | None, decimals: int | None = None) -> str:
    if value is None or not math.isfinite(value):
        return NONE
    return (f"{value:z.3g}" if decimals is None else f"{value:z.{decimals}f}").replace("-", "\N{MINUS SIGN}")


def _decimals(values: Sequence[float]) -> int:
    """With how many of them the largest value has three digits."""
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    return 3 if largest == 0 else max(0, 2 - math.floor(math.log10(largest)))


def _full_name(row: Figures) -> str:
    """Never without the features: figures of other ones do not compare."""
    name = row["metric"]
    return f"{METRIC_NAMES.get(name, name.capitalize())}({row['features']})"


def _shown(row: Figures) -> float:
    """What `lvkam evaluate` prints: without the bias that the bootstrap finds, to which the interval belongs."""
    return row["value"] if row["corrected"] is None else row["corrected"]


def _control_words(rows: Sequence[Figures], row: Figures) -> str:
    """What the best control has instead."""
    keys = ("features", "metric")
    control = next(r for r in rows if r["set"] == "real train" and all(r[key] == row[key] for key in keys))
    return f"of real training data {_number(_shown(control))}"


def nll_words(figures: Figures) -> str:
    """The negative log-likelihood with its error."""
    return f"NLL {figures['nll_nats']:.3f} ± {figures['nll_stderr']:.3f} nats"


# one run


class Card(NamedTuple):
    """A key figure."""

    name: str
    value: str
    detail: str = ""


def key_figures(run: Run, figures: Figures | None) -> list[Card]:
    """What one asks first."""
    cards = []
    if figures:
        each = f"nats {'a' if run.is_table else 'an'} {run.what}, {figures['num_images']:,} of them"
        dimension = "column" if run.is_table else "dimension"
        cards += [
            Card("Test NLL", f"{figures['nll_nats']:.2f}", f"± {figures['nll_stderr']:.3f} {each}"),
            Card(f"Bits per {dimension}", f"{figures['bits_per_dim']:.4f}", f"{math.prod(run.shape)} {dimension}s"),
            Card(
                "Effective sample size",
                f"{figures['effective_sample_size']:,.0f}",
                f"of {figures['num_samples']:,} prior samples",
            ),
        ]
        of_model = {row["metric"]: row for row in reversed(figures.get("metrics", [])) if row["set"] == "model"}
        for row in (of_model[name] for name in ON_CARDS if name in of_model):
            cards.append(Card(_full_name(row), _number(_shown(row)), _control_words(figures["metrics"], row)))
    cards.append(Card("Parameters", f"{run.num_parameters:,}"))
    if run.log:
        cards.append(Card("Training time", _duration(run.log[-1].seconds), _count(run.checkpoint.epoch, "epoch")))
    return cards


def _method(config: Config) -> str:
    settings = config.thermodynamic
    if settings.num_temps <= 1:
        return "importance sampling"
    return f"thermodynamic integration, {settings.num_temps} temperatures"


def lead(run: Run) -> str:
    """The model in a sentence."""
    prior = run.config.prior
    widths = " → ".join(map(str, (*run.config.generator.widths, math.prod(run.shape))))
    return (
        f"{_method(run.config).capitalize()}; {prior.latent_dim} latent coordinates, each a mixture of "
        f"{prior.num_components} over a {prior.reference_density} density; generator {widths}."
    )


def run_facts(run: Run) -> list[tuple[str, str]]:
    """What was run, on what, and where."""
    config, checkpoint = run.config, run.checkpoint
    training, generator, optimizer = config.training, config.generator, config.optimizer
    size = _count(run.shape[0], "column") if run.is_table else "×".join(map(str, run.shape))
    likelihood = f"{generator.likelihood}, output {generator.output_activation}"
    if training.binarize != "none":
        likelihood += f"; of bits ({training.binarize}), comparable with published nats of bits at the same size"
    elif generator.likelihood == "bernoulli":
        likelihood += "; of grey values a cross-entropy, which does not compare with densities"
    else:
        likelihood += f", standard deviation {generator.likelihood_std:g}"
    functions = (
        f"{generator.spline_function} of degree {generator.spline_degree} on {generator.grid_size} intervals, "
        f"base {generator.base_activation}"
    )
    epochs = _count(checkpoint.epoch, "epoch")
    facts = [
        ("Data", f"{run.data_name}, {size}, {_count(training.num_train, run.what)}"),
        ("Method", f"{_method(config)}; {_count(training.num_samples, 'sample')}, batches of {training.batch_size}"),
        ("Likelihood", likelihood),
        ("Functions", functions),
        ("Optimizer", f"{optimizer.type}, learning rate {optimizer.learning_rate:g}, {optimizer.schedule} schedule"),
        ("Trained", f"{epochs}, {_count(checkpoint.iteration, 'step')}, seed {checkpoint.seed}"),
    ]
    if known := checkpoint.training:
        device = "GPU" if known["training/on_gpu"] else f"CPU, {_count(int(known['training/threads']), 'thread')}"
        facts.append(("On", f"{device}, kernels {'' if known['training/compiled'] else 'not '}compiled"))
    written = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.path.stat().st_mtime))
    facts.append(("File", f"{run.path.name} of {written}, lvkam {checkpoint.lvkam_version}"))
    return facts


def metric_groups(rows: Sequence[Figures]) -> list[dict[str, Any]]:
    """Rows by kind of features and by measure, with their intervals on one scale for each measure."""
    groups: dict[tuple[str, str], list[Figures]] = {}
    for row in rows:
        groups.setdefault((row["features"], row["metric"]), []).append(row)
    found: dict[str, list[dict[str, Any]]] = {}
    for (features, _), members in groups.items():
        noise = [n for n, row in enumerate(members) if row["set"] == "noise"]  # beside which all others look alike
        ends = [(row["low"], _shown(row), row["high"]) for row in members]
        decimals = _decimals([_shown(row) for n, row in enumerate(members) if n not in noise])
        shown = [
            {
                "set": row["set"],
                "kind": row["set"] if row["set"] in {"model", "noise"} else "",
                "value": _number(_shown(row), decimals),
                "interval": NONE
                if row["low"] is None
                else f"{_number(row['low'], decimals)} to {_number(row['high'], decimals)}",
                "places": place,
            }
            for row, place in zip(members, intervals(ends, noise), strict=True)
        ]
        found.setdefault(features, []).append({"title": _full_name(members[0]), "rows": shown})
    return [{"features": features, "measures": measures} for features, measures in found.items()]


# several


def comparison_table(runs: Sequence[Run], figures: Sequence[Figures | None]) -> list[tuple[str, list[str]]]:
    """Rows of figures, then of the keys of the configuration in which the runs differ; a value for each run."""
    rows = [
        ("data", [run.data_name for run in runs]),
        ("test NLL (nats)", [f"{of['nll_nats']:.3f} ± {of['nll_stderr']:.3f}" if of else NONE for of in figures]),
        ("bits per dimension", [f"{of['bits_per_dim']:.4f}" if of else NONE for of in figures]),
    ]
    measured = [
        {_full_name(row): row for row in (of or {}).get("metrics", []) if row["set"] == "model"} for of in figures
    ]
    for key in dict.fromkeys(key for of in measured for key in of):
        rows.append((key, [_number(_shown(of[key])) if key in of else NONE for of in measured]))
    rows += [
        ("parameters", [f"{run.num_parameters:,}" for run in runs]),
        ("training time", [_duration(run.log[-1].seconds) if run.log else NONE for run in runs]),
        ("epochs", [str(run.checkpoint.epoch) for run in runs]),
    ]
    configs = [run.shown_config.to_dict() for run in runs]
    for section, keys in configs[0].items():
        for key in keys:
            values = [_setting(config[section][key]) for config in configs]
            if len(set(values)) > 1:
                rows.append((f"{section}.{key}", values))
    return rows


def _setting(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
