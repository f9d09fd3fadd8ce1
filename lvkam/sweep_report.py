"""The report of a sweep: its trials, Optuna's own pictures of the search, and what the best one draws."""

from __future__ import annotations

import io
import re
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from matplotlib import pyplot
from matplotlib.figure import Figure
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import TrialState
from optuna.visualization import matplotlib as pictures
from PIL import Image

from lvkam.errors import InputError
from lvkam.exhibits import data_uri
from lvkam.experiment import tell
from lvkam.plots import DPI
from lvkam.report import render_page
from lvkam.run_folder import check_files
from lvkam.sweep import BEST, journal_of, load_study, locked, table_of, trial_folder, write_summary

PLOTS: dict[str, tuple[Callable[[optuna.Study], Any], str]] = {
    "Course of the search": (pictures.plot_optimization_history, "test NLL of each trial, and the lowest so far"),
    "Test NLL on the way": (
        pictures.plot_intermediate_values, "by twentieths of a training; what was above the median was given up",
    ),
    "What matters": (pictures.plot_param_importances, "share of the test NLL's variance that each setting explains"),
    "Settings one by one": (pictures.plot_slice, ""),
    "Settings together": (pictures.plot_parallel_coordinate, ""),
}  # fmt: skip
FEWEST = 2
"""Finished trials that a picture needs."""


class SweepError(InputError):
    """A sweep of which nothing can be told yet."""


def write_sweep_report(
    folder: Path, output: Path, *, overwrite: bool = False, say: Callable[[str], None] = tell
) -> Path:
    """Write one HTML file about a sweep.

    Args:
        folder: the sweep's.
        output: the HTML file.
        overwrite: whether a file that is there may be replaced.
        say: told what is missing.

    Raises:
        SweepError: no trial has come to its end yet.
        OutputError: the file is there already, or cannot be written.
    """
    check_files([output], overwrite)
    study = load_study(journal_of(folder))
    with locked(folder):
        best = write_summary(folder, study)
    if best is None:
        raise SweepError(f"{folder}: no trial has come to its end yet")
    rows = sorted(table_of(folder, study), key=lambda row: (row["State"] != "done", float(row["Test NLL"] or "inf")))
    shown = _abridged(study)
    context = {
        "title": folder.absolute().name,
        "best": best,
        "columns": list(rows[0]),
        "rows": rows,
        "counts": Counter(row["State"] for row in rows),
        "samples": data_uri(Image.open(trial_folder(folder, best.number) / "generated_images.png")),
        "plots": [(title, *drawn_plot) for title in PLOTS if (drawn_plot := _plot(shown, title, say))],
        "config": (folder / BEST).read_text(encoding="utf-8"),
    }
    render_page(output, "sweep.html", context)
    return output


def _abridged(study: optuna.Study) -> optuna.Study:
    """The same trials in memory, names and choices as short as pictures have room for."""
    trials = study.get_trials(deepcopy=True)
    long = {name for trial in trials for name in trial.params}
    short = {name: name.rpartition(".")[2] for name in long}  # TRAINING.batch_size -> batch_size
    if len(set(short.values())) < len(long):
        short = {name: name for name in long}
    abridged = optuna.create_study()
    for trial in trials:
        parts = {name: _abridge(kind, trial.params[name]) for name, kind in trial.distributions.items()}
        trial.distributions = {short[name]: kind for name, (kind, _) in parts.items()}
        trial.params = {short[name]: value for name, (_, value) in parts.items()}
        abridged.add_trial(trial)
    return abridged


def _abridge(kind: BaseDistribution, value: Any) -> tuple[BaseDistribution, Any]:
    """Choices without the keys that they set, as long as they differ: A.b=1, 2 & C.d=3 -> 1, 2 & 3."""
    if not isinstance(kind, CategoricalDistribution):
        return kind, value
    values_alone = {choice: re.sub(r"[^\s=&]+=", "", str(choice)) for choice in kind.choices}
    if len(set(values_alone.values())) < len(values_alone):
        return kind, value
    return CategoricalDistribution(list(values_alone.values())), values_alone[value]


def _plot(study: optuna.Study, title: str, say: Callable[[str], None]) -> tuple[str, str] | None:
    """A picture and what it shows; None where there are too few trials for it."""
    draw, note = PLOTS[title]
    finished = [t for t in study.get_trials(deepcopy=False) if t.state == TrialState.COMPLETE]
    if len({trial.values[0] for trial in finished}) < FEWEST:
        say(f"{title}: not drawn, of fewer than {FEWEST} different results")
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # as all its pictures by matplotlib are
        warnings.filterwarnings("ignore", "Attempting to set identical", UserWarning)  # where all trials agree
        axes = np.atleast_1d(draw(study))
    figure: Figure = axes.flat[0].figure
    figure.set_size_inches(max(9, 2.2 * axes.size), 5)
    for panel in figure.axes:
        panel.tick_params(axis="x", labelrotation=30)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=DPI, bbox_inches="tight")  # so that no label is cut off
    picture = data_uri(Image.open(png))
    pyplot.close(figure)
    return picture, note
