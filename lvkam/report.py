"""Reports: one HTML file that says what was run and shows what was learnt, or several runs side by side.

Pictures are data URIs, curves inline SVG, and the generator goes along in numbers (`lvkam.page_model`): the file needs
nothing else. The templates escape every text, so that nothing that came from a file is taken for markup.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jinja2

from lvkam.data import Samples
from lvkam.errors import DataError
from lvkam.exhibits import (
    COLOURS,
    MOST_COMPONENTS,
    MOST_OPEN,
    coordinate_name,
    function_groups,
    look_at,
    loss_charts,
    page_data,
    percent,
    prior_charts,
    reconstructions,
    shared_loss_charts,
    sheet,
    traversal_charts,
    traversal_strips,
)
from lvkam.experiment import tell
from lvkam.features import FeaturesError
from lvkam.inference import ESTIMATORS, caution, evaluate_checkpoint, load_split
from lvkam.quality import METRICS
from lvkam.run_folder import check_files, checkpoint_of
from lvkam.sources import is_path
from lvkam.summary import (
    Run,
    comparison_table,
    key_figures,
    lead,
    load_run,
    metric_groups,
    nll_words,
    run_facts,
)
from lvkam.writing import WriteError, write_text

Metrics = Literal["all", "nll", "none"]

PRIORS_COMPARED = 6
"""Coordinates of each run."""

NO_DATA = "the data cannot be had, or do not fit: name the data with --data, or their folder with --data-dir"
NO_CLASSIFIER = (
    "the classifier whose features they need cannot be had: --metrics nll does without it, and XDG_CACHE_HOME "
    "names another folder to keep it in"
)
"""What the page says; standard error has the reason, with the folders, which are nobody else's business."""


def write_report(
    path: Path,
    output: Path,
    *,
    metrics: Metrics = "all",
    data: str | None = None,
    data_dir: Path | None = None,
    seed: int | None = None,
    overwrite: bool = False,
    say: Callable[[str], None] = tell,
) -> Path:
    """Write the report of a checkpoint, or of a run folder's, as one HTML file.

    Args:
        path: checkpoint or run folder.
        output: the HTML file.
        metrics: what to measure on test data: everything, the likelihood alone, or nothing.
        data: name or path of the test data; the test split of the model's own data set if None.
        data_dir: where to look for the data first.
        seed: of all draws; the run's own if None.
        overwrite: whether a file that is there may be replaced.
        say: told how it goes on.

    Returns:
        The file.

    Raises:
        CheckpointError: no checkpoint.
        DataError: `data` cannot be had, or does not fit. Where the model's own data set cannot, or what metrics need
            besides, the report says so.
        OutputError: the file is there already, or cannot be written.
    """
    check_files([output], overwrite, checkpoint_of(path))
    run = load_run(path)
    test = _test_data(run, data, data_dir, say)
    figures, problem = _measure(run, test, metrics, data, data_dir, seed, say)
    say(f"{run.name}: looking at what was learnt")
    context = _describe(run, test, figures, run.checkpoint.seed if seed is None else seed)
    render_page(output, "report.html", {**context, "problem": problem, "wanted": metrics})
    return output


def write_comparison(
    paths: Sequence[Path],
    output: Path,
    *,
    metrics: Metrics = "nll",
    data: str | None = None,
    data_dir: Path | None = None,
    seed: int | None = None,
    overwrite: bool = False,
    say: Callable[[str], None] = tell,
) -> Path:
    """Write one HTML file about several runs; arguments and errors are those of `write_report`."""
    for path in paths:
        check_files([output], overwrite, checkpoint_of(path))
    runs = [load_run(path) for path in paths]
    if len({run.name for run in runs}) < len(runs):  # folders of one name lie in different ones
        folder = os.path.commonpath([path.absolute().parent for path in paths])
        runs = [run._replace(name=os.path.relpath(path, folder)) for run, path in zip(runs, paths, strict=True)]
    shown, all_figures, problems = [], [], []
    for index, run in enumerate(runs):
        test = None if metrics == "none" else _test_data(run, data, data_dir, say)
        figures, problem = _measure(run, test, metrics, data, data_dir, seed, say)
        all_figures.append(figures)
        problems += [] if problem is None else [f"{run.name}: {problem}"]
        say(f"{run.name}: looking at what was learnt")
        subject, samples, _ = look_at(run, run.checkpoint.seed if seed is None else seed)
        shown.append(
            {
                "name": run.name,
                "style": f"c{index % COLOURS}" + " dashed" * (index >= COLOURS),
                "samples": sheet(run, samples),
                "is_table": run.is_table,
                "note": nll_words(figures) if figures else "",
                "priors": prior_charts(run, subject, PRIORS_COMPARED),
            }
        )
    context = {
        "title": " · ".join(dict.fromkeys(run.data_name for run in runs)),
        "runs": shown,
        "table": comparison_table(runs, all_figures),
        "problems": problems,
        "loss": shared_loss_charts([(run, of["style"]) for run, of in zip(runs, shown, strict=True)]),
    }
    render_page(output, "compare.html", context)
    return output


def render_page(output: Path, template: str, context: dict[str, Any]) -> None:
    """Write a page of one of the `templates`."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lvkam"), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    page = environment.get_template(template).render(version=importlib.metadata.version("lvkam"), **context)
    write_text(output, page)


def _test_data(run: Run, data: str | None, data_dir: Path | None, say: Callable[[str], None]) -> Samples | None:
    """The first test data, or None where there are none; data asked for by name must be there."""
    count = None if data is not None and is_path(data) else ESTIMATORS["importance"][0]
    try:
        return load_split(run.path, run.loaded, data, count, data_dir)
    except DataError as error:
        if data is not None:
            raise
        say(f"warning: no figures of test data: {error}")
        return None


def _measure(
    run: Run,
    test: Samples | None,
    metrics: Metrics,
    data: str | None,
    data_dir: Path | None,
    seed: int | None,
    say: Callable[[str], None],
) -> tuple[dict[str, Any] | None, str | None]:
    """Figures of test data, and why there are none or not all."""
    if metrics == "none":
        return None, None
    if test is None:
        return None, f"No figures of test data: {NO_DATA}"
    say(f"{run.name}: measuring on test data")
    evaluate = partial(evaluate_checkpoint, run.path, seed=seed, data_dir=data_dir, loaded=run.loaded)
    figures = evaluate(data=test)
    if metrics == "nll":
        return figures, None
    try:
        return figures | evaluate(data=data, metrics=METRICS), None
    except (DataError, FeaturesError, WriteError) as error:
        say(f"warning: no metrics but the likelihood: {error}")
        return figures, f"No metrics but the likelihood: {NO_DATA if isinstance(error, DataError) else NO_CLASSIFIER}"


def _describe(run: Run, test: Samples | None, figures: dict[str, Any] | None, seed: int) -> dict[str, Any]:
    """What the template shows of a run."""
    subject, samples, latents = look_at(run, seed)
    page = page_data(run, subject, latents)
    movable = subject.order if page["generator"] else page["frames"]["coordinates"]
    return {
        "title": run.data_name,
        "run_name": run.name,
        "lead": lead(run),
        "cards": key_figures(run, figures),
        "caution": caution(figures),
        "facts_of_run": run_facts(run),
        "is_table": run.is_table,
        "samples": sheet(run, samples),
        "real": None if test is None else sheet(run, test.x.numpy()),
        "reconstructions": None if test is None or run.is_table else reconstructions(run, subject, test.x),
        "log": run.log,
        "loss": loss_charts(run.log) if run.log else [],
        "image_size": None if run.is_table else run.shape[:2],
        "coordinates": [(q, coordinate_name(q), percent(subject.activities[q])) for q in movable],
        "is_live": page["generator"] is not None,
        "priors": prior_charts(run, subject),
        "num_open": MOST_OPEN,
        "num_components": run.config.prior.num_components,
        "num_drawn": min(MOST_COMPONENTS, run.config.prior.num_components),
        "traversals": [] if run.is_table else traversal_strips(run, subject, latents[0]),
        "traversal_charts": traversal_charts(run, subject, latents[0]) if run.is_table else [],
        "functions": function_groups(subject),
        "metrics": metric_groups(figures.get("metrics", []) if figures else []),
        "config": run.shown_config.to_ini(),
        "page": page,
    }
