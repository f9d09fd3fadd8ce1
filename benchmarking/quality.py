"""LV-KAM beside a VAE and an energy-based prior, trained for equal seconds: `python -m benchmarking.quality`.

Likelihood on held-out images, samples compared with real ones by the same code and the same real images, speed of
drawing, and size. More than an hour; what has been measured is kept cell by cell (`cells.jsonl`), so that the same
command goes on after an interruption. `--summarise` makes tables and pictures of what is there.

The time is that of training steps: making data ready, evaluation and files are left out for all models, and so is the
compilation of LV-KAM's kernels, which a training does before its clock starts.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarking.harness import begin, interleave, option_parser
from benchmarking.quality_cells import CONTROLS, Cells, Place, Record
from benchmarking.quality_tables import summarise
from benchmarking.rivals import LEBM, VAE, FastVAE, Rival, train
from cli.main import keep_freed_memory
from lvkam import load_config, run_experiment
from lvkam.build import load_checkpoint, load_model, problem_of_compiling
from lvkam.config import Config
from lvkam.data import load_samples
from lvkam.errors import InputError
from lvkam.evidence import Evidence, annealed_log_evidence, importance_log_evidence
from lvkam.experiment import draw_samples, tell
from lvkam.inference import LOWEST_SAMPLE_SIZE
from lvkam.interruption import Interrupted
from lvkam.quality import Reals, measure_sets, real_images
from lvkam.run_folder import read_losses
from lvkam.training import random_stream

TITLE = "LV-KAM, a VAE and an energy-based prior in latent space, trained for equal seconds"
RIVALS: dict[str, type[VAE] | type[LEBM]] = {"VAE": VAE, "LEBM": LEBM, "VAE-bf16": FastVAE}
MODELS = ("VAE", "LV-KAM", "LEBM")
METRICS = ("kid", "fid", "precision", "recall", "coverage")
CONFIG = Path(__file__).parents[1] / "config"
PRESETS = {"MNIST": CONFIG / "mnist_quality.ini", "FMNIST": CONFIG / "fmnist_quality.ini"}
SIZE, LARGE = 14, ("MNIST", 28, 120.0)
NUM_TRAIN = 32_000
REAL_SEED = 1
"""Of the choice of real images: the same for all cells."""


@dataclass(frozen=True)
class Effort:
    """How much is measured of each model."""

    images: int = 1000
    """Test images, the first ones, whose evidence is estimated."""
    images_annealed: int = 100
    """Of them, by annealing."""
    samples_vae: int = 5000
    samples_lebm: int = 2000
    samples_prior: int = 20_000
    """Samples behind each estimate, the last ones shared by all images."""
    particles: int = 16
    repetitions: int = 10
    temperatures: int = 100
    compared: int = 2000
    """Samples compared with as many real images."""
    batch: int = 10_000
    rounds: int = 9
    """Of timing: so many images are drawn at a time."""


FULL = Effort()
QUICK = Effort(200, 4, 100, 100, 1000, 4, 2, 5, 200, 100, 3)


class Material(NamedTuple):
    """Images of one data set and size."""

    train: Tensor
    """(N, D)."""
    test: Tensor
    """(M, D)."""
    reals: Reals


@lru_cache(maxsize=1)
def load_material(data: str, size: int, effort: Effort, data_dir: Path | None) -> Material:
    train, test = (load_samples(data, None, (size, size), data_dir, split=split) for split in ("train", "test"))
    reals = real_images(
        test.x, train.x, data=data, image_shape=test.shape, seed=REAL_SEED, num_compared=effort.compared,
        data_dir=data_dir,
    )  # fmt: skip
    # the features of the labelled classifier alone, which are the first
    return Material(
        train.x[:NUM_TRAIN].contiguous(), test.x[: effort.images], reals._replace(features=reals.features[:1])
    )


def compare(samples: Tensor, reals: Reals) -> Record:
    """Metrics of samples (N, D), each with its interval."""
    rows = measure_sets(reals, {"samples": samples.clamp(0, 1)}, METRICS, REAL_SEED)
    values = {row.metric: row.estimate.value for row in rows}
    return values | {f"{row.metric} interval": [row.estimate.low, row.estimate.high] for row in rows}


def likelihood(evidence: Evidence, first: int) -> Record:
    """The figures of an estimate of evidence; `first`: how many of the images are annealed too."""
    ess = evidence.effective_sample_size
    return {
        "nll": -float(evidence.log_evidence.mean()),
        "nll stderr": evidence.mean_standard_error,
        "nll of the first": -float(evidence.log_evidence[:first].mean()),
        "ess": float(ess.mean()),
        "images not to trust": int((ess < LOWEST_SAMPLE_SIZE).sum()),
    }


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# the cells


def measure_controls(material: Material) -> tuple[Record, Tensor]:
    """Metrics of real images and of noise, and the real images."""
    reals = material.reals
    found = {name: compare(x, reals) for name, x in reals.controls.items()}
    return {"sets": found, "features": reals.features[0].name, "accuracy": reals.accuracy}, reals.test


def measure_rival(place: Place, material: Material, effort: Effort) -> tuple[Record, Tensor]:
    """A trained rival's figures and samples."""
    model = RIVALS[place.model](material.train.shape[1], random_stream(place.seed, "initial values"))
    training = train(model, material.train, place.seconds, random_stream(place.seed, "training"))
    num_samples = effort.samples_vae if isinstance(model, VAE) else effort.samples_lebm
    evidence = model.log_evidence(material.test, num_samples, random_stream(place.seed, "evaluation"))
    samples = model.sample(effort.compared, random_stream(place.seed, "generation"))
    figures = {
        "steps": training.steps,
        "training seconds": training.seconds,
        "compiled": isinstance(model, FastVAE),
        "parameters": count(model),
        "decoder parameters": count(model.decoder),
    }
    return figures | likelihood(evidence, effort.images_annealed) | compare(samples, material.reals), samples


class Presets:
    """LV-KAM's configurations by the data set."""

    def __init__(self, files: dict[str, Path], overrides: Sequence[str]):
        self.files, self.overrides = files, overrides
        self.compiles = problem_of_compiling() is None

    def config(self, place: Place) -> Config:
        """Raises ConfigError if it cannot be."""
        return load_config(
            self.files[place.data],
            [
                f"TRAINING.dataset={place.data}", f"TRAINING.img_resize={place.size}, {place.size}",
                f"TRAINING.seed={place.seed}", f"TRAINING.N_train={NUM_TRAIN}", "TRAINING.N_test=64",
                "TRAINING.N_epochs=1000000", f"TRAINING.max_seconds={place.seconds:g}",
                "TRAINING.num_generated_samples=100", "TRAINING.use_gpu=false",
                f"TRAINING.compile={str(self.compiles).lower()}", *self.overrides,
            ],
        )  # fmt: skip


def measure_lvkam(
    place: Place, material: Material, effort: Effort, presets: Presets, data_dir: Path | None
) -> tuple[Record, Tensor]:
    """The figures and samples of LV-KAM, trained by the library; all models' speed of drawing, measured in turn."""

    def silent(_: str) -> None:
        pass

    with tempfile.TemporaryDirectory() as temporary:
        run = run_experiment(presets.config(place), Path(temporary) / "run", data_dir=data_dir, say=silent)
        checkpoint, config, model = load_checkpoint(run / "ckpt.h5")
        compiled = load_model(run / "ckpt.h5", compile=True) if presets.compiles else None
        seconds = float(read_losses(run / "loss.csv")[-1]["Time (s)"])
    rng = random_stream(place.seed, "evaluation")
    evidence = importance_log_evidence(model, material.test, effort.samples_prior, rng)
    annealed = annealed_log_evidence(
        model, material.test[: effort.images_annealed], effort.particles, random_stream(place.seed, "evaluation"),
        num_temps=effort.temperatures, repetitions=effort.repetitions,
    )  # fmt: skip
    samples, _ = draw_samples(model, config, effort.compared, place.seed)
    samplers: dict[str, Callable[[int, torch.Generator], Tensor]] = {
        **{name: untrained(name, material).sample for name in RIVALS if name in MODELS or compiled},
        "LV-KAM": model.sample,
        **({"LV-KAM, compiled": compiled.sample} if compiled else {}),
    }  # fmt: skip
    figures = {
        "steps": checkpoint.iteration,
        "training seconds": seconds,
        "compiled": presets.compiles,
        "parameters": count(model),
        "decoder parameters": count(model.generator),
        "nll annealed": -float(annealed.log_evidence.mean()),
        "nll annealed stderr": annealed.mean_standard_error,
        "ess annealed": float(annealed.effective_sample_size.mean()),
        "images a second": drawing_speeds(samplers, effort),
    }
    return figures | likelihood(evidence, effort.images_annealed) | compare(samples, material.reals), samples


def untrained(name: str, material: Material) -> Rival:
    """A rival to time: an MLP's speed does not depend on what it has learnt."""
    return RIVALS[name](material.train.shape[1], random_stream(1, "initial values"))


def drawing_speeds(samplers: dict[str, Callable[[int, torch.Generator], Tensor]], effort: Effort) -> dict[str, float]:
    """Images a second, medians of rounds in turn."""
    rng = random_stream(1, "generation")
    calls = {name: lambda sample=sample: sample(effort.batch, rng) for name, sample in samplers.items()}
    timings = interleave(calls, effort.rounds, warmup=2, longest=30)
    return {name: effort.batch / timing.median for name, timing in timings.items()}


# the run


def places(arguments: argparse.Namespace) -> list[Place]:
    """All cells in their order: models in turn, each of them first for some seed."""
    wanted = [
        (data, SIZE, seconds, seed)
        for data in arguments.datasets for seconds in arguments.seconds for seed in arguments.seeds
    ]  # fmt: skip
    if arguments.large:
        data, size, seconds = LARGE
        wanted += [(data, size, arguments.seconds[0] if arguments.quick else seconds, arguments.seeds[0])]
    found: list[Place] = []
    for data, size, seconds, seed in wanted:
        controls = Place(CONTROLS, data, size, 0.0, 0)
        found += [controls] if controls not in found else []
        first = seed % len(MODELS)
        in_turn = (*MODELS[first:], *MODELS[:first], *(name for name in RIVALS if name not in MODELS))
        found += [Place(model, data, size, seconds, seed) for model in in_turn if model in arguments.models]
    return found


def settings_of(place: Place, effort: Effort, presets: Presets) -> Record:
    """What a cell's figures depend on besides its place."""
    settings = {"threads": torch.get_num_threads(), **asdict(effort)}
    if place.model != "LV-KAM":
        return settings
    config = presets.config(place).to_ini().encode()
    return settings | {"preset": presets.files[place.data].name, "config": hashlib.sha256(config).hexdigest()[:12]}


def run(cells: Cells, todo: Sequence[Place], effort: Effort, presets: Presets, data_dir: Path | None) -> None:
    """Measure the cells that are not there yet."""
    missing = [place for place in todo if not cells.holds(place, settings_of(place, effort, presets))]
    if len(missing) < len(todo):
        tell(f"{len(todo) - len(missing)} of {len(todo)} cells are in {cells.path} already")
    for index, place in enumerate(missing, 1):
        start = time.perf_counter()
        material = load_material(place.data, place.size, effort, data_dir)
        if place.model == CONTROLS:
            figures, samples = measure_controls(material)
        elif place.model == "LV-KAM":
            figures, samples = measure_lvkam(place, material, effort, presets, data_dir)
        else:
            figures, samples = measure_rival(place, material, effort)
        cells.add(place, settings_of(place, effort, presets), figures, samples)
        said = f": NLL {figures['nll']:.2f}, KID {figures['kid']:.4f}" if "nll" in figures else ""
        tell(f"[{index}/{len(missing)}] {place}{said} ({time.perf_counter() - start:.0f} s)")


# the command line


def parts(text: str) -> list[str]:
    found = [part.strip() for part in text.split(",")]
    if len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"{text!r} names one twice")
    return found


def seconds(text: str) -> list[float]:
    found = [float(part) for part in parts(text)]
    if not all(0 < value < 1e6 for value in found):
        raise argparse.ArgumentTypeError(f"{text!r}: seconds must be greater than 0, and less than a million")
    return found


def seeds(text: str) -> list[int]:
    found = [int(part) for part in parts(text)]
    if not all(0 <= value < 2**31 for value in found):
        raise argparse.ArgumentTypeError(f"{text!r}: seeds must be from 0 to {2**31 - 1}")
    return found


def names_of(known: Iterable[str]) -> Callable[[str], list[str]]:
    """Reads some of these names."""

    def names(text: str) -> list[str]:
        if unknown := [name for name in parts(text) if name not in known]:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: must be out of {', '.join(known)}")
        return parts(text)

    return names


def preset(text: str) -> tuple[str, Path]:
    name, equals, file = text.partition("=")
    if name not in PRESETS or not equals or not file:
        raise argparse.ArgumentTypeError(f"{text!r}: must be NAME=FILE.ini, NAME out of {', '.join(PRESETS)}")
    return name, Path(file)


def parser() -> argparse.ArgumentParser:
    found = option_parser("quality", TITLE)
    add = found.add_argument
    add("--data-dir", type=Path, help="where to look for the data first, laid out as torchvision does")
    add("--seconds", type=seconds, metavar="T,...", help="of training (15,45,120; 2 if --quick)")
    add("--seeds", type=seeds, metavar="N,...", help="(1,2,3; 1 if --quick)")
    add("--datasets", type=names_of(PRESETS), default=list(PRESETS), metavar="NAME,...", help=f"({','.join(PRESETS)})")
    add("--models", type=names_of(dict.fromkeys([*MODELS, *RIVALS])), default=list(MODELS), metavar="NAME,...",
        help=f"({','.join(MODELS)}); VAE-bf16: compiled and in bfloat16, as LV-KAM is")  # fmt: skip
    add("--large", action="store_true", help="MNIST at 28x28 too, with the first seed, for 120 s")
    add("--preset", type=preset, action="append", default=[], metavar="NAME=FILE.ini", help="LV-KAM's, of a data set")
    add("--set", dest="overrides", action="append", default=[], metavar="SECTION.KEY=VALUE", help="of LV-KAM's presets")
    add("--summarise", action="store_true", help="measure nothing: tables and pictures of the cells that are there")
    return found


def main() -> None:
    """Measure what is missing, and write what there is."""
    command = parser()
    arguments = command.parse_args()
    arguments.seconds = arguments.seconds or ([2.0] if arguments.quick else [15.0, 45.0, 120.0])
    arguments.seeds = arguments.seeds or ([1] if arguments.quick else [1, 2, 3])
    report = begin("quality", TITLE, arguments)
    try:
        cells = Cells(report.folder)
        if not arguments.summarise:
            keep_freed_memory()  # as `lvkam` does, and here for all models alike
            todo = places(arguments)
            presets = Presets(PRESETS | dict(arguments.preset), arguments.overrides)
            run(cells, todo, QUICK if arguments.quick else FULL, presets, arguments.data_dir)
        if not cells.records:
            raise InputError(f"{cells.path}: there are no cells to summarise")
        summarise(cells, report)
    except InputError as error:
        command.error(str(error))
    except (KeyboardInterrupt, Interrupted) as stop:  # the second by whoever stops LV-KAM's training
        tell("interrupted; the same command goes on")
        sys.exit(stop.exit_status if isinstance(stop, Interrupted) else 130)


if __name__ == "__main__":
    main()
