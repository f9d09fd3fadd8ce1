"""The report of a sweep: its trials, Optuna's own pictures of the search, and what the best one draws."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from matplotlib import pyplot
from matplotlib.figure import Figure
from optuna.trial import TrialState
from optuna.visualization import matplotlib as pictures
from PIL import Image

from lvkam.errors import InputError
from lvkam.exhibits import data_uri
from lvkam.experiment import tell
from lvkam.plots import drawn
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
    context = {
        "title": folder.absolute().name,
        "best": best,
        "columns": list(rows[0]),
        "rows": rows,
        "counts": {
            state: sum(row["State"] == state for row in rows) for state in dict.fromkeys(r["State"] for r in rows)
        },
        "samples": data_uri(Image.open(trial_folder(folder, best.number) / "generated_images.png")),
        "plots": [(title, *drawn_plot) for title in PLOTS if (drawn_plot := _plot(study, title, say))],
        "config": (folder / BEST).read_text(encoding="utf-8"),
    }
    render_page(output, "sweep.html", context)
    return output


def _plot(study: optuna.Study, title: str, say: Callable[[str], None]) -> tuple[str, str] | None:
    """A picture and what it shows; None where there are too few trials for it."""
    draw, note = PLOTS[title]
    finished = [t for t in study.get_trials(deepcopy=False) if t.state == TrialState.COMPLETE]
    if len({trial.values[0] for trial in finished}) < FEWEST:
        say(f"{title}: not drawn, of fewer than {FEWEST} different results")
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # as all its pictures by matplotlib are
        axes = np.atleast_1d(draw(study)).flat[0]
    figure: Figure = axes.figure
    figure.set_size_inches(9, 5)
    picture = data_uri(drawn(figure))
    pyplot.close(figure)
    return picture, note
