"""A run from start to end: data, model and training brought together, its folder written, taken up again."""

from __future__ import annotations

import copy
import hashlib
import importlib.metadata
import math
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from lvkam.build import (
    assemble_model,
    build_config_optimizer,
    build_objective,
    check_optimizer_memory,
    choose_compilation,
    choose_device,
    layers_of,
    load_model,
    model_arrays,
    optimizer_arrays,
    set_model_arrays,
    set_optimizer_arrays,
)
from lvkam.checkpoint import Checkpoint, CheckpointError, problem_of, read_checkpoint, write_checkpoint
from lvkam.config import Config, ConfigError
from lvkam.data import Dataset, TooFewImagesError, load_dataset
from lvkam.descent import FunctionOptimizer
from lvkam.errors import DataError, StoppedError
from lvkam.interruption import Interrupted, Interruption
from lvkam.model import LVKAM
from lvkam.monitoring import SHOWN_IMAGES, SHOWN_ROWS, summary_writer, watching
from lvkam.optimizers import SEARCHING
from lvkam.parallel import ALONE, World
from lvkam.plots import drawn, loss_figure
from lvkam.progress import EpochRecord, TrainingState
from lvkam.resumption import resume_point
from lvkam.run_folder import (
    JOB,
    OUTCOMES,
    RUN_FILES,
    OutputError,
    check_folder,
    default_folder,
    locked,
    picture_of,
    read_losses,
    results_in,
    save_samples,
    write_losses,
)
from lvkam.sources import dataset_error
from lvkam.training import Callbacks, is_finished, is_out_of_time, random_stream, rehearse, sample_sizes, train
from lvkam.writing import make_folder, write_picture, write_text


def load_config_dataset(config: Config, data_dir: Path | None = None) -> Dataset:
    """The images, or the table, that a configuration names.

    Raises:
        ConfigError: they cannot be had, are fewer than N_train or N_test, or another kind than the likelihood is for.
    """
    settings = config.training
    try:
        dataset = load_dataset(settings.dataset, settings.num_train, settings.num_test, settings.img_resize, data_dir)
    except TooFewImagesError as error:
        key = {"train": "N_train", "test": "N_test"}[error.split]
        message = f"at most {error.available}, the {error.split} {error.what} of {settings.dataset}"
        raise ConfigError([config.problem("TRAINING", key, message)]) from error
    except DataError as error:
        raise dataset_error(config, error) from error
    if dataset.standardisation is not None:
        problems = [
            config.problem(section, key, f"{allowed}, since {settings.dataset} is a table")
            for section, key, value, allowed in (
                ("KAN_LIKELIHOOD", "likelihood_model", config.generator.likelihood, "l2"),
                ("KAN_LIKELIHOOD", "output_activation", config.generator.output_activation, "none"),
                ("TRAINING", "img_resize", settings.img_resize or "native", "native"),
                ("TRAINING", "binarize", settings.binarize, "none"),
            )
            if value != allowed
        ]
        if problems:
            raise ConfigError(problems)
    return dataset if settings.binarize == "none" else dataset.binarised(anew=settings.binarize == "dynamic")


def check_processes(config: Config, world: World) -> None:
    """Whether several processes can train a configuration together.

    Raises:
        ConfigError: they cannot.
    """
    if world.size == 1:
        return
    problems, settings = [], config.training
    if config.optimizer.type in SEARCHING:
        allowed = f"adam, adamw, sgd or rms, with {world.size} processes"
        problems.append(config.problem("OPTIMIZER", "type", allowed))
    sizes = sample_sizes(settings.initial_sample_size or settings.num_samples, settings.num_samples)
    if settings.shard == "samples" and any(size % world.size for size in sizes):
        allowed = f"a multiple of {world.size}, the number of processes, between which shard = samples divides them"
        if len(sizes) > 1:
            allowed += f"; so must be all that it is halved to ({', '.join(map(str, sizes))})"
        problems.append(config.problem("TRAINING", "MC_expectation_sample_size", allowed))
    if problems:
        raise ConfigError(problems)


def tell(line: str) -> None:
    """Write a line to standard error, above a progress bar if there is one."""
    tqdm.write(line, file=sys.stderr)


def run_experiment(
    config: Config,
    output: Path | None = None,
    *,
    overwrite: bool = False,
    resume: bool = False,
    device: str | None = None,
    data_dir: Path | None = None,
    say: Callable[[str], None] = tell,
    interruption: Interruption | None = None,
    tensorboard: bool = False,
    world: World = ALONE,
    on_epoch: Callable[[EpochRecord], None] | None = None,
) -> Path:
    """Train a configuration from start to end and write its run folder.

    SIGINT and SIGTERM are taken meanwhile: the step is finished and the run saved before they are obeyed; a second one
    ends the process at once.

    Args:
        config: what to run.
        output: the run folder; `default_folder` if None.
        overwrite: whether another run's results in that folder may be replaced.
        resume: go on with the run in that folder, to the same bits as if it had never stopped.
        device: name of a torch device; else the configuration's `use_gpu` decides.
        data_dir: where to look for the data first.
        say: takes a line of text for the user; standard error by default.
        interruption: listens to the signals already; if None, one of its own does meanwhile.
        tensorboard: whether to write scalars and samples of each epoch for TensorBoard, into `tensorboard/` there.
        world: of several processes that train together, each calls this; the first one alone reads and writes there.
        on_epoch: told the record of epoch 0, before any training, and of each epoch that is trained.

    Returns:
        The run folder.

    Raises:
        InputError: bad configuration, data, folder or device, or no TensorBoard; nothing was written.
        FloatingPointError: a loss, gradient or energy is not finite.
        WriteError: a file could not be written; the last checkpoint is intact.
        Interrupted: by a signal; its notes say what was saved.
        PeerError: another process has failed, or is gone.
        StoppedError: the first process ends with one of the other errors.
    """
    folder, listening = output or default_folder(config), nullcontext()
    if interruption is None:
        interruption = Interruption()
        listening = interruption.listening()
    if overwrite and resume:
        raise OutputError("overwrite and resume exclude each other")
    run, saved = None, None
    say = say if world.is_first else (lambda _: None)
    with listening:
        try:
            if _goes_on(folder, world):
                overwrite, resume = False, True
            with ExitStack() as held:
                with world.together():
                    if world.is_first:  # before anything is written; under the lock once more, when it may have changed
                        check_folder(folder, overwrite or resume)
                    if tensorboard:
                        summary_writer()
                    check_processes(config, world)
                    chosen = choose_device(device, config.training.use_gpu, world.local_rank)
                    dataset = load_config_dataset(config, data_dir)
                    check_optimizer_memory(config, math.prod(dataset.image_shape))
                    if not (resume and results_in(folder)):
                        choose_compilation(config, chosen)  # before anything is written
                    if world.is_first:
                        held.enter_context(_claimed(folder, overwrite or resume, say))
                        saved = resume_point(folder, config, say) if resume else None
                saved = _of_first(saved, world)
                with world.together():
                    before = None if saved is None else bool(saved.training["training/compiled"])
                    not_compiled = choose_compilation(config, chosen, before)
                if world.total(not_compiled is not None)[0] and not_compiled is None:
                    not_compiled = "another process cannot"
                with world.together():
                    run = _Run(
                        config, folder, dataset, chosen, not_compiled, saved, interruption, say, tensorboard, world,
                        on_epoch,
                    )  # fmt: skip
                run.run()
        except Interrupted as stop:
            if not world.is_first:
                raise StoppedError("the first process says what was saved") from stop
            saved_in = f"saved in {folder / 'ckpt.h5'}", "goes on"
            done, then = saved_in if run is not None and run.is_saved else ("nothing was saved yet", "starts afresh")
            stop.add_note(f"{done}; the same command with --resume{' for --overwrite' if overwrite else ''} {then}")
            raise
    return folder


def _goes_on(folder: Path, world: World) -> bool:
    """Whether torchrun has started a job again after it had begun its run, which then goes on unasked."""
    begun, mark = False, folder / JOB
    if world.job and world.is_first:
        with suppress(OSError):  # what is wrong with the folder will be told
            if world.restarts:
                begun = mark.is_file() and mark.read_text(encoding="utf-8") == world.job
            else:  # of an earlier job, which can have had the same name
                mark.unlink(missing_ok=True)
    return bool(world.first(begun)[0])


@contextmanager
def _claimed(folder: Path, may_hold_results: bool, say: Callable[[str], None]) -> Iterator[None]:
    """Context in which a folder is there, this process's alone, and holds no results unless it may."""
    make_folder(folder)
    with locked(folder, say):
        check_folder(folder, may_hold_results)
        yield


def _of_first(saved: Checkpoint | None, world: World) -> Checkpoint | None:
    """The first process's checkpoint, in all."""
    if world.size == 1:
        return saved
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "ckpt.h5"
        if world.is_first and saved is not None:
            write_checkpoint(path, saved)
        content = world.spread_bytes(path.read_bytes() if path.exists() else b"")
        if world.is_first or not content:
            return saved
        path.write_bytes(content)
        return read_checkpoint(path)


@dataclass
class _Run:
    """One call of `run_experiment`, all checks passed and the folder locked."""

    config: Config
    folder: Path
    dataset: Dataset
    device: torch.device
    not_compiled: str | None
    saved: Checkpoint | None
    interruption: Interruption
    say: Callable[[str], None]
    tensorboard: bool
    world: World
    on_epoch: Callable[[EpochRecord], None] | None

    def __post_init__(self) -> None:
        config, dataset, saved = self.config, self.dataset, self.saved
        self.is_saved = saved is not None
        images = hashlib.sha256()
        for split in (dataset.train, dataset.test):
            images.update(split.numpy().reshape(-1).view(np.uint8).data)
        self.data_sha256 = np.frombuffer(images.digest(), np.uint8).copy()  # which torch may look at too
        if (self.world.gather(torch.from_numpy(self.data_sha256)) != torch.from_numpy(self.data_sha256)).any():
            raise DataError(f"{dataset.name}: the processes have different {dataset.what}")
        if saved is not None and (saved.training["training/data_sha256"] != self.data_sha256).any():
            raise DataError(
                f"{self.folder}: {dataset.name}: these are not the {dataset.what} that the run has been trained with"
            )
        data_dim = math.prod(dataset.image_shape)
        self.model = assemble_model(config, data_dim, compiled=self.not_compiled is None).to(self.device)
        self.optimizer = build_config_optimizer(config, self.model)
        self.objective = build_objective(config)
        self.rng = random_stream(config.training.seed, "training")

    def run(self) -> None:
        """Train, unless that is done, and write what is missing."""
        settings, folder = self.config.training, self.folder
        state = None if self.saved is None else self.saved.progress
        finished = state is not None and is_finished(state, settings)
        # the row of an epoch cut short stands in loss.csv alone: to make it again is to evaluate again
        trains = state is None or not finished or (state.cut_short and not (folder / "loss.csv").exists())
        trains = bool(self.world.first(trains)[0])
        if self.saved is not None and state is not None:
            self._restore(self.saved, state, trains)
        if not self.world.is_first:  # whatever is written, the first process writes
            if trains:
                self._train(state)
            return
        missing = self._begin(state, finished)
        self.say(
            f"{self.dataset}; "
            f"{sum(p.numel() for p in self.model.parameters())} parameters on "
            f"{_device_name(self.model)}"
            f"{f' in each of {self.world.size} processes' if self.world.size > 1 else ''}; writing to {folder}"
        )
        if {"real_images.h5", "real_images.png"} & set(missing):
            self._save_samples("real_images.h5", self.dataset.shown(settings.num_generated).numpy())
        if state is not None and finished:
            # where no epoch was completed, none was the best
            absent = ", ".join(name for name in missing if name != "best.h5" or math.isfinite(state.best_nll))
            self.say(f"finished already; {f'missing: {absent}' if absent else 'nothing is missing'}")
        if trains:
            state = self._train(state)
        elif state is not None and not state.cut_short:
            write_losses(folder / "loss.csv", state.log)
        if not (folder / "loss.png").exists():
            write_picture(folder / "loss.png", drawn(loss_figure(read_losses(folder / "loss.csv"))))
        if not all((folder / name).exists() for name in ("generated_images.h5", "generated_images.png")):
            # from the file and not compiled, as `lvkam sample` draws them: to the same bits
            model = load_model(folder / "ckpt.h5")
            of_table = self.dataset.standardisation is not None
            samples, _ = draw_samples(model, self.config, settings.num_generated, settings.seed, of_table=of_table)
            self._save_samples("generated_images.h5", samples.numpy())
        assert state is not None
        self.say(
            f"trained for {state.seconds:.0f} s; {settings.num_generated} generated {self.dataset.what} in "
            f"{folder / 'generated_images.png'}"
        )
        if math.isfinite(state.best_nll) and not (folder / "best.h5").exists():
            self.say("best.h5 is missing: only training again can make it again")

    def _save_samples(self, name: str, x: np.ndarray) -> None:
        save_samples(self.folder / name, x, self.dataset.image_shape, self.dataset.standardisation)

    def _restore(self, saved: Checkpoint, state: TrainingState, trains: bool) -> None:
        """Bring model, optimiser and random numbers to where the run was saved."""
        training = saved.training
        if self.not_compiled is None and trains:
            self.say("kernels compiled as when the run began: its first step is taken again for that")
            self._rehearse()
        set_model_arrays(self.model, saved.arrays)
        prefix = "training/optimizer/"
        states = {name.removeprefix(prefix): a for name, a in training.items() if name.startswith(prefix)}
        set_optimizer_arrays(self.model, self.optimizer, states)
        try:
            for stream in (state.epoch_stream, state.stream):  # the first one is only tried
                self.rng.set_state(torch.from_numpy(stream))
        except RuntimeError as error:
            raise CheckpointError(f"{self.folder / 'ckpt.h5'}: no state of random numbers: {error}") from error
        threads = int(training["training/threads"])
        if threads != torch.get_num_threads():
            self.say(
                f"warning: trained on {threads} threads so far, on {torch.get_num_threads()} now: "
                "results may differ in their last bits (OMP_NUM_THREADS sets how many)"
            )
        for name, now, words in (
            ("compiled", self.not_compiled is None, ("without compiled kernels", "with compiled kernels")),
            ("on_gpu", self.device.type == "cuda", ("on a CPU", "on a GPU")),
            ("bfloat16", _is_bfloat16(self.model), ("in single precision", "in bfloat16")),
        ):
            if training[f"training/{name}"] != now:
                self.say(f"warning: trained {words[not now]} so far, {words[now]} now: results may differ by rounding")
        if saved.lvkam_version != importlib.metadata.version("lvkam"):
            self.say(f"warning: trained by lvkam {saved.lvkam_version} so far: results may differ")

    def _begin(self, state: TrainingState | None, finished: bool) -> list[str]:
        """Make the folder this run's; what is missing in it."""
        # What is there belongs to this run only if it is finished; the end of a training that goes on will differ.
        stale = () if finished else OUTCOMES if self.saved is not None else RUN_FILES
        for name in stale:
            (self.folder / name).unlink(missing_ok=True)
        missing = [name for name in RUN_FILES if not (self.folder / name).exists()]
        write_text(self.folder / "config.ini", self.config.to_ini())
        if self.world.job:
            write_text(self.folder / JOB, self.world.job)
        if state is not None and "ckpt.h5" in missing:  # it goes on from another one
            self._save("ckpt.h5", state)
        return missing

    def _rehearse(self) -> None:
        """Take the first step of a new run, by which kernels are compiled; whatever it changes is to be restored."""
        throwaway = build_config_optimizer(self.config, self.model)
        rehearse(self.model, self.objective, throwaway, self.dataset, self.config, self.rng, self.world)

    def _train(self, state: TrainingState | None) -> TrainingState:
        if state is not None:
            if self.world.is_first:
                write_losses(self.folder / "loss.csv", state.log)
            self.say(f"going on after {state.epoch} epochs and {state.batches} batches, iteration {state.iteration}")
        elif self.not_compiled is None:
            self.say("kernels are compiled before the training's clock starts, about half a minute the first time")
            first, stream = copy.deepcopy(self.model.state_dict()), self.rng.get_state()
            self._rehearse()
            self.model.load_state_dict(first)
            self.rng.set_state(stream)
        if self.not_compiled is not None:
            self.say(f"kernels not compiled: {self.not_compiled}")
        settings, since = self.config.training, None if state is None else state.epoch
        if not self.world.is_first:
            return self._take_steps(Callbacks.none(), state)

        with watching(self.folder, self._picture, settings.gen_every, since, tensorboard=self.tensorboard) as watch:

            def log(records: Sequence[EpochRecord]) -> None:
                self._log(records)
                is_last = records[-1].epoch == settings.num_epochs or is_out_of_time(records[-1], settings)
                watch(records, self.optimizer.param_groups[0]["lr"], is_last)
                if self.on_epoch is not None:
                    self.on_epoch(records[-1])

            callbacks = Callbacks(
                on_epoch=log,
                on_checkpoint=lambda state: self._save("ckpt.h5", state),
                on_best=lambda state: self._save("best.h5", state),
                say=self.say,
            )
            state = self._take_steps(callbacks, state)
        if state.skipped_grid_updates:
            self.say(f"warning: {state.skipped_grid_updates} grid updates of layers were skipped")
        if isinstance(self.optimizer, FunctionOptimizer) and self.optimizer.failures:
            self.say(
                f"warning: {self.optimizer.failures} steps found nothing acceptable since the training was started"
            )
        return state

    def _take_steps(self, callbacks: Callbacks, state: TrainingState | None) -> TrainingState:
        return train(
            self.model, self.objective, self.optimizer, self.dataset, self.config, self.rng, callbacks, state,
            self.interruption, self.world,
        )  # fmt: skip

    def _picture(self) -> Image.Image:
        """Samples of the model as it stands, always of the same random numbers."""
        # of a twin, not compiled, as `lvkam sample` draws them: kernels that met other sizes amid a training could
        # round its later steps differently
        twin = assemble_model(self.config, math.prod(self.dataset.image_shape), compiled=False)
        set_model_arrays(twin, model_arrays(self.model))
        of_table = self.dataset.standardisation is not None
        shown, seed = SHOWN_ROWS if of_table else SHOWN_IMAGES, self.config.training.seed
        samples, _ = draw_samples(twin, self.config, shown, seed, of_table=of_table)
        return picture_of(samples.numpy(), self.dataset.image_shape, self.dataset.standardisation)

    def _log(self, records: Sequence[EpochRecord]) -> None:
        write_losses(self.folder / "loss.csv", records)
        record, settings = records[-1], self.config.training
        if not sys.stderr.isatty() or settings.verbose:
            speed = record.epoch * len(self.dataset.train) / record.seconds if record.seconds else 0.0
            self.say(
                f"epoch {record.epoch}/{settings.num_epochs}: train loss {record.train_loss:.3f}, "
                f"test loss {record.test_loss:.3f}, test NLL {record.test_nll:.2f} nats, "
                f"effective sample size {record.effective_sample_size:.1f}, "
                f"{record.seconds:.0f} s, {speed:.0f} images/s"
            )

    def _save(self, name: str, state: TrainingState) -> None:
        """Write a checkpoint; nothing that is not finite is saved."""
        arrays, of_optimizer = model_arrays(self.model), optimizer_arrays(self.model, self.optimizer)
        training = {
            "training/compiled": np.asarray(self.not_compiled is None),
            "training/on_gpu": np.asarray(self.device.type == "cuda"),
            "training/bfloat16": np.asarray(_is_bfloat16(self.model)),
            "training/threads": np.asarray(torch.get_num_threads()),
            "training/data_sha256": self.data_sha256,
            **{f"training/optimizer/{path}": array for path, array in of_optimizer.items()},
            **{f"training/progress/{path}": array for path, array in state.to_arrays().items()},
        }
        for path, array in {**arrays, **training}.items():
            if problem := problem_of(path, array):
                epoch = state.epoch + (state.batches > 0)
                raise FloatingPointError(f"epoch {epoch}, iteration {state.iteration}: {problem}; not saved")
        checkpoint = Checkpoint(
            config=self.config.to_ini(),
            dataset=self.dataset.name,
            image_shape=self.dataset.image_shape,
            seed=self.config.training.seed,
            epoch=state.epoch,
            iteration=state.iteration,
            lvkam_version=importlib.metadata.version("lvkam"),
            arrays=arrays,
            standardisation=self.dataset.standardisation,
            training=training,
        )
        write_checkpoint(self.folder / name, checkpoint)
        self.is_saved = True


def _is_bfloat16(model: LVKAM) -> bool:
    """Whether the generator's matrix products are."""
    *_, (_, layer) = layers_of(model)
    return layer.family.precision_of(layer.coef) == torch.bfloat16


def _device_name(model: LVKAM) -> str:
    device = model.prior.mixture_logits.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    return f"{device} ({name}{', products in bfloat16' if _is_bfloat16(model) else ''})"


def draw_samples(
    model: LVKAM, config: Config, num_samples: int, seed: int, *, of_table: bool = False
) -> tuple[Tensor, Tensor]:
    """Samples (N, D), as the model sees data, and their latents (N, Q), both on the CPU.

    Drawn `batch_size_for_gen` at a time, in whole batches: the same seed gives the same samples, whoever asks for
    them, and asking for more does not change the first. Images are means, without the likelihood's noise; rows of a
    table have it, so that they are distributed as the density whose evidence is quoted.
    """
    rng, of_noise = random_stream(seed, "generation"), random_stream(seed, "generation", 1)
    size = config.training.generation_batch_size
    table = model.prior.table()
    latents = [model.prior.sample(size, rng, table) for _ in range(0, num_samples, size)]
    samples = [model.decode(z).cpu() for z in latents]
    if of_table:
        samples = [y + model.likelihood_std * torch.randn(y.shape, generator=of_noise) for y in samples]
    return torch.cat(samples)[:num_samples], torch.cat(latents).cpu()[:num_samples]
