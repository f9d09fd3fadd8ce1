"""Tables and pictures of the cells of `benchmarking.quality`: medians over seeds, with their range."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes

from benchmarking.harness import Report, Row
from benchmarking.quality_cells import CONTROLS, Cells, Place, Record, place_of
from lvkam.plots import BLUE, GREEN, ORANGE, PURPLE, collage

OURS, VAE = "LV-KAM", "VAE"
MODELS = {VAE: ORANGE, "VAE-bf16": PURPLE, OURS: BLUE, "LEBM": GREEN}
LOWER_BY, AFTER = 0.2, 45.0
"""Nats by which LV-KAM's NLL is to be lower than the VAE's, after so many seconds; after others, no higher."""
NOTES = (
    "Each figure is the median over the seeds, with the lowest and the highest in brackets; of images not to trust, "
    "it is the highest. NLL is in nats, of the first test images, by which settings were chosen too, the VAE's and "
    "LV-KAM's; +- is its standard error, that of the estimate alone, the images held fixed. VAE: samples of its "
    "encoder. LEBM: samples about each image's posterior, the error of log Z included. LV-KAM: samples of its prior, "
    "which err to its disadvantage where few explain an image; and annealing, on the first of these images.",
    "KID, FID, precision, recall and coverage compare samples with as many real test images, the same for all "
    "models, on the features of a classifier. Seconds are those of training steps; kernels that are compiled were so "
    "before. LV-KAM's products are in bfloat16 where the processor has units for it; VAE and LEBM are in single "
    "precision, not compiled; VAE-bf16 is the same VAE in bfloat16, compiled. They drew with initial weights, an MLP "
    "being as fast with any.",
)


class Group(NamedTuple):
    """Cells of all models and seeds, trained equally long on the same images."""

    data: str
    size: int
    seconds: float

    @property
    def head(self) -> Row:
        return {"data": self.data, "size": self.size, "s": f"{self.seconds:g}"}


Runs = dict[str, dict[int, Record]]
"""Records by model and seed."""


def grouped(records: Sequence[Record]) -> dict[Group, Runs]:
    """Without the controls; in order of data, size and seconds."""
    found: dict[Group, Runs] = {}
    for record in records:
        place = place_of(record)
        if place.model != CONTROLS:
            group = Group(place.data, place.size, place.seconds)
            found.setdefault(group, {}).setdefault(place.model, {})[place.seed] = record
    # the small images first, and MNIST before FMNIST
    return dict(sorted(found.items(), key=lambda item: (item[0].size, item[0].data != "MNIST", item[0][0], item[0][2])))


def spread(values: Sequence[float], digits: int) -> str:
    """Median, and range if there are several."""
    middle = f"{np.median(values):.{digits}f}"
    return middle if len(values) < 2 else f"{middle} [{min(values):.{digits}f}, {max(values):.{digits}f}]"


def of(runs: dict[int, Record], key: str) -> list[float]:
    return [record[key] for record in runs.values() if key in record]


def likelihoods(groups: dict[Group, Runs]) -> list[Row]:
    rows: list[Row] = []
    for group, models in groups.items():
        for model in filter(models.__contains__, MODELS):
            runs = models[model]
            row: Row = {
                **group.head, "model": model, "seeds": len(runs), "NLL": spread(of(runs, "nll"), 2),
                "+-": round(float(np.median(of(runs, "nll stderr"))), 4),
                "ESS": spread(of(runs, "ess"), 0), "images not to trust": int(max(of(runs, "images not to trust"))),
                "NLL of the first": spread(of(runs, "nll of the first"), 2),
            }  # fmt: skip
            if annealed := of(runs, "nll annealed"):
                row |= {
                    "annealed": spread(annealed, 2),
                    "annealed +-": round(float(np.median(of(runs, "nll annealed stderr"))), 4),
                }
            rows.append(row)
    return rows


def trainings(groups: dict[Group, Runs]) -> list[Row]:
    rows: list[Row] = []
    for group, models in groups.items():
        for model in filter(models.__contains__, MODELS):
            runs = models[model]
            pairs = zip(of(runs, "training seconds"), of(runs, "steps"), strict=True)
            row: Row = {
                **group.head, "model": model, "steps": spread(of(runs, "steps"), 0),
                "ms a step": spread([1e3 * seconds / steps for seconds, steps in pairs], 2),
                "parameters": int(np.median(of(runs, "parameters"))),
                "of them decoder": int(np.median(of(runs, "decoder parameters"))),
                "compiled": {True: "yes", False: "no"}[next(iter(runs.values()))["compiled"]],
            }  # fmt: skip
            rows.append(row)
    return rows


def qualities(groups: dict[Group, Runs], controls: Sequence[Record]) -> list[Row]:
    digits = {"kid": 4, "fid": 2, "precision": 3, "recall": 3, "coverage": 3}
    rows: list[Row] = []
    for record in controls:
        for name, figures in record["sets"].items():
            head: Row = {"data": record["data"], "size": record["size"], "s": "", "model": name}
            rows.append(head | {metric: f"{figures[metric]:.{n}f}" for metric, n in digits.items()})
    for group, models in groups.items():
        for model in filter(models.__contains__, MODELS):
            figures = {metric: spread(of(models[model], metric), n) for metric, n in digits.items()}
            rows.append({**group.head, "model": model, **figures})
    return rows


def speeds(groups: dict[Group, Runs]) -> list[Row]:
    """Images drawn a second, by data set and size: how long a model was trained matters little."""
    found: dict[tuple[str, int], dict[str, list[float]]] = {}
    for group, models in groups.items():
        for record in models.get(OURS, {}).values():
            for name, speed in record["images a second"].items():
                found.setdefault((group.data, group.size), {}).setdefault(name, []).append(speed)
    return [
        {"data": data, "size": size, "model": name, "images a second": spread(values, 0)}
        for (data, size), models in found.items()
        for name, values in models.items()
    ]


def paired(models: Runs, key: str) -> list[float]:
    """LV-KAM's less the VAE's, of the same seeds."""
    ours, theirs = models.get(OURS, {}), models.get(VAE, {})
    return [ours[seed][key] - theirs[seed][key] for seed in ours if seed in theirs]


def differences(groups: dict[Group, Runs]) -> list[Row]:
    digits = {"nll": 2, "kid": 4, "fid": 2, "precision": 3, "recall": 3, "coverage": 3}
    return [
        {**group.head, **{key: spread(paired(models, key), n) for key, n in digits.items()}}
        for group, models in groups.items()
        if paired(models, "nll")
    ]


def targets(groups: dict[Group, Runs]) -> list[Row]:
    """What the project set itself, by medians over the seeds."""
    rows: list[Row] = []

    def judge(group: Group, what: str, most: float, measured: float) -> None:
        verdict = "met" if measured <= most else "missed"
        rows.append({
            **group.head, "target": what, "seeds": len(paired(groups[group], "nll")), "at most": most,
            "measured": round(measured, 4), "verdict": verdict,
        })  # fmt: skip

    for group, models in groups.items():
        if not paired(models, "nll"):
            continue
        lower_by = -LOWER_BY if group.seconds == AFTER else 0.0
        judge(group, "NLL, less the VAE's", lower_by, float(np.median(paired(models, "nll"))))
        judge(group, "KID, less the VAE's", 0.0, float(np.median(paired(models, "kid"))))
        judge(group, "coverage, the VAE's less LV-KAM's", 0.0, -float(np.median(paired(models, "coverage"))))
        judge(group, "parameters, less the VAE's", 0, float(np.median(paired(models, "parameters"))))
        drawn = [record["images a second"] for record in models[OURS].values()]
        ratios = [speed[VAE] / max(speed[OURS], speed.get(f"{OURS}, compiled", 0.0)) for speed in drawn]
        judge(group, "drawing, the VAE decoder's speed over LV-KAM's", 1.0, float(np.median(ratios)))
    return rows


# pictures


def draw_nll(axes: Axes, groups: dict[Group, Runs]) -> None:
    """Against seconds: medians, and a dot for each seed. Where the LEBM's lies far above, the legend tells it."""
    near = [value for models in groups.values() for m in (OURS, VAE) for value in of(models.get(m, {}), "nll")]
    margin = 0.15 * (max(near) - min(near) or 1) if near else 0.0
    for model, colour in MODELS.items():
        runs = {group.seconds: of(models[model], "nll") for group, models in groups.items() if model in models}
        if not runs:
            continue
        medians = [float(np.median(values)) for values in runs.values()]
        above = bool(near) and min(medians) > max(near) + margin
        label = f"{model}, above: {', '.join(f'{m:.1f}' for m in medians)}" if above else model
        axes.plot(list(runs), medians, color=colour, label=label)
        for seconds, values in runs.items():
            axes.plot([seconds] * len(values), values, "o", color=colour, markersize=4)
    if near:
        axes.set_ylim(min(near) - margin, max(near) + margin)
    first = next(iter(groups))
    ticks = sorted({group.seconds for group in groups})
    axes.set(
        xscale="log",
        xlabel="seconds of training",
        ylabel="test NLL (nats)",
        title=f"{first.data} {first.size}x{first.size}",
    )
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.legend(fontsize=8)


def by_images(groups: dict[Group, Runs]) -> dict[tuple[str, int], dict[Group, Runs]]:
    """Groups of one data set and size together."""
    found: dict[tuple[str, int], dict[Group, Runs]] = {}
    for group, models in groups.items():
        found.setdefault((group.data, group.size), {})[group] = models
    return found


def panels(groups: dict[Group, Runs]) -> list[dict[Group, Runs]]:
    """What is drawn side by side; images that were trained with for one time alone only if there are no others."""
    found = list(by_images(groups).values())
    return [part for part in found if len(part) > 1] or found


def save_sheets(cells: Cells, groups: dict[Group, Runs], report: Report) -> None:
    """Samples side by side, a sheet for each data set and size: after 45 s, or the longest time there is."""
    for (data, size), part in by_images(groups).items():
        group = next((group for group in part if group.seconds == AFTER), list(part)[-1])
        shown = [("real test images", cells.samples(Place(CONTROLS, data, size, 0.0, 0)))]
        for model in (VAE, "LEBM", OURS):
            if runs := part[group].get(model):
                seed = min(runs)
                samples = cells.samples(Place(model, data, size, group.seconds, seed))
                shown.append((f"{model}, {group.seconds:g} s, seed {seed}: NLL {runs[seed]['nll']:.2f}", samples))
        collage(shown).savefig(report.folder / f"{report.name}-samples-{data}-{size}.png", dpi=90)


def summarise(cells: Cells, report: Report) -> None:
    """All tables and pictures of what there is."""
    groups = grouped(cells.records)
    controls = [record for record in cells.records if record["model"] == CONTROLS]
    unknown = "some of it on a machine that was not recorded"
    report.machines = sorted({record.get("machine", unknown) for record in cells.records})
    report.notes += NOTES
    for record in controls:
        accuracy = f"{100 * record['accuracy']:.1f} % of the test images right"
        report.notes.append(f"{record['data']} {record['size']}x{record['size']}: {record['features']}, {accuracy}")
    for heading, rows in (
        ("likelihood", likelihoods(groups)),
        ("training", trainings(groups)),
        ("samples", qualities(groups, controls)),
        ("drawing", speeds(groups)),
        ("LV-KAM less VAE, paired by seed", differences(groups)),
        ("targets", targets(groups)),
    ):
        if rows:
            report.add(heading, rows)
    report.write(*(partial(draw_nll, groups=part) for part in panels(groups)))
    save_sheets(cells, groups, report)
