"""What each setting of a quality preset is worth: the preset with one thing changed at a time, in the same seconds.

Each variant is trained for the preset's `max_seconds` with each seed, variants in turn within a seed, on the threads
there are; the machine should have nothing else to do. Test NLL of the first 1,000 test images by 20,000 prior samples;
differences from the preset are paired by seed. Runs that are there already are not repeated, so that it can be stopped.
With the defaults it takes over an hour, so that `run_benchmarks.sh` leaves it out.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from tqdm import tqdm

from benchmarking.harness import Row, begin, option_parser
from cli.main import keep_freed_memory
from lvkam import load_config, run_experiment
from lvkam.build import load_checkpoint
from lvkam.errors import InputError
from lvkam.inference import evaluate_checkpoint
from lvkam.interruption import Interrupted
from lvkam.writing import write_text

PRESET = Path(__file__).parents[1] / "config" / "mnist_quality.ini"
VARIANTS: dict[str, tuple[str, ...]] = {
    "the preset": (),
    "1 sample carries gradient": ("TRAINING.gradient_samples=1",),
    "2 samples carry gradient": ("TRAINING.gradient_samples=2",),
    "4 samples carry gradient": ("TRAINING.gradient_samples=4",),
    "16 samples carry gradient": ("TRAINING.gradient_samples=16",),
    "all samples carry gradient": ("TRAINING.gradient_samples=all",),
    "8 samples drawn by weight": ("TRAINING.gradient_selection=resampled",),
    "2048 samples from the first step on": ("TRAINING.initial_sample_size=none",),
    "1024 samples at the end": ("TRAINING.MC_expectation_sample_size=1024",),
    "4096 samples at the end": ("TRAINING.MC_expectation_sample_size=4096",),
    "batches of 256": ("TRAINING.batch_size=256",),
    "batches of 1024": ("TRAINING.batch_size=1024",),
    "constant rate": ("OPTIMIZER.schedule=constant",),
    "constant rate of 0.005": ("OPTIMIZER.schedule=constant", "OPTIMIZER.learning_rate=0.005"),
    "half the rate": ("OPTIMIZER.learning_rate=0.015",),
    "no warm-up": ("OPTIMIZER.warmup_steps=0",),
    "prior at the generator's rate": ("OPTIMIZER.prior_rate=1",),
    "prior left uniform": ("OPTIMIZER.prior_rate=0",),
    "Gaussian reference density": (
        "MIX_PRIOR.π_0=gaussian", "MIX_PRIOR.grid_range=-3, 3", "KAN_LIKELIHOOD.grid_range=-3, 3",
    ),
    "hidden grids on [0, 1]": ("KAN_LIKELIHOOD.hidden_grid_range=none",),
    "grids updated as in the reference": (
        "GRID_UPDATING.update_llhood_grid=true", "GRID_UPDATING.update_prior_grid=true",
    ),
    "6 grid intervals": ("MIX_PRIOR.grid_size=6", "KAN_LIKELIHOOD.grid_size=6"),
    "28 grid intervals, hidden width 64": (
        "MIX_PRIOR.grid_size=28", "KAN_LIKELIHOOD.grid_size=28", "KAN_LIKELIHOOD.expert_widths=15, 64",
    ),
    "10 latent coordinates": ("MIX_PRIOR.layer_widths=5, 10", "KAN_LIKELIHOOD.expert_widths=10, 128"),
    "half the likelihood": ("KAN_LIKELIHOOD.generator_variance=1",),
    "single precision": ("TRAINING.precision=fp32",),
    "30 temperatures": ("THERMODYNAMIC_INTEGRATION.num_temps=30",),
    "30 temperatures, resampled": (
        "THERMODYNAMIC_INTEGRATION.num_temps=30", "THERMODYNAMIC_INTEGRATION.resampler=systematic",
    ),
}  # fmt: skip
"""Name and what is changed."""


def run_of(folder: Path, preset: Path, name: str, seed: int, overrides: list[str], data_dir: Path | None) -> Path:
    """The run folder of a variant, trained now if it has not been."""
    run = folder / f"{name.replace(' ', '_').replace(',', '')}_{seed}"
    config = load_config(preset, [*VARIANTS[name], *overrides, f"TRAINING.seed={seed}"])
    run_experiment(config, run, resume=(run / "config.ini").exists(), data_dir=data_dir, say=lambda _: None)
    return run


def figures(run: Path, quick: bool, data_dir: Path | None) -> dict[str, Any]:
    """NLL and its error, steps and parameters of a finished run, kept beside it once they are known."""
    kept = run / "figures.json"
    if kept.exists() and kept.stat().st_mtime >= (run / "ckpt.h5").stat().st_mtime:
        return json.loads(kept.read_text(encoding="utf-8"))
    loaded = load_checkpoint(run / "ckpt.h5")
    images, samples = (100, 1000) if quick else (1000, 20000)
    found = evaluate_checkpoint(run / "ckpt.h5", images, samples, seed=1, data_dir=data_dir, loaded=loaded)
    parameters = sum(p.numel() for p in loaded.model.parameters())
    found |= {"steps": loaded.checkpoint.iteration, "parameters": parameters}
    write_text(kept, json.dumps(found))
    return found


def main() -> None:
    title = "What each setting of a quality preset is worth"
    parser = option_parser("ablations", title)
    parser.add_argument("--preset", type=Path, default=PRESET, metavar="FILE.ini")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--only", nargs="+", default=list(VARIANTS), choices=list(VARIANTS), metavar="NAME")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="SECTION.key=value")
    parser.add_argument("--data-dir", type=Path)
    options = parser.parse_args()
    report = begin("ablations", f"{title}: {options.preset.name}", options)
    overrides = [*options.overrides, "TRAINING.num_generated_samples=144"]
    seeds, names = options.seeds, ["the preset", *(name for name in options.only if name != "the preset")]
    if options.quick:
        overrides, seeds = [*overrides, "TRAINING.max_seconds=1", "TRAINING.compile=false"], seeds[:1]
    keep_freed_memory()
    nll = {name: np.full(len(seeds), np.nan) for name in names}
    measured: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    pairs = [(index, name) for index in range(len(seeds)) for name in names]
    for index, name in tqdm(pairs, desc="ablations", disable=not sys.stderr.isatty()):
        try:
            run = run_of(report.folder / "ablations", options.preset, name, seeds[index], overrides, options.data_dir)
            found = figures(run, options.quick, options.data_dir)
        except InputError as error:
            parser.error(str(error))
        except (KeyboardInterrupt, Interrupted) as stop:
            print("interrupted; the same command goes on", file=sys.stderr)
            sys.exit(stop.exit_status if isinstance(stop, Interrupted) else 130)
        measured[name].append(found)
        nll[name][index] = found["nll_nats"]
        print(f"{name}, seed {seeds[index]}: {nll[name][index]:.3f}, {found['steps']} steps", flush=True)
    rows: list[Row] = []
    for name in names:
        worse = nll[name] - nll["the preset"]
        rows.append({
            "changed": name,
            "test NLL (nats)": round(float(np.median(nll[name])), 3),
            "worse by": round(float(np.median(worse)), 3),
            "from": round(float(worse.min()), 3),
            "to": round(float(worse.max()), 3),
            "steps": int(np.median([found["steps"] for found in measured[name]])),
            "parameters": int(measured[name][0]["parameters"]),
        })  # fmt: skip
    report.add(f"medians over the seeds {', '.join(map(str, seeds))}; differences are paired by seed", rows)

    def draw(axes: Axes) -> None:
        worse = [nll[name] - nll["the preset"] for name in names[1:]]
        places = np.arange(len(worse))
        axes.axvline(0, color="0.6", linewidth=1)
        axes.barh(places, [float(np.median(w)) for w in worse], color="#0072B2", alpha=0.5)
        for place, w in zip(places, worse, strict=True):
            axes.plot(w, np.full(len(w), place), ".", color="#0072B2", markersize=4)
        axes.set_yticks(places, names[1:], fontsize=6)
        axes.set_ylim(len(worse) - 0.5, -0.5)
        axes.set_xlabel("nats worse than the preset, in the same seconds")

    report.write(draw)


if __name__ == "__main__":
    main()
