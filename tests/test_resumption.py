"""A run goes on from its own checkpoint with its own configuration, and from nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lvkam.build import build_model, model_arrays
from lvkam.checkpoint import Checkpoint, CheckpointError, training_layout, write_checkpoint
from lvkam.config import Config, ConfigError
from lvkam.resumption import FREE_KEYS, resume_point
from lvkam.run_folder import RUN_FILES, OutputError
from lvkam.sections import write_value
from tests.conftest import reseal, small_config

CONFIG = small_config("TRAINING.max_seconds=7")
DONE = 2


def quiet(_: str) -> None:
    pass


def fails(_: str) -> None:
    pytest.fail("there is something to go on from")


def made_checkpoint(config: Config = CONFIG, epoch: int = DONE) -> Checkpoint:
    """After so many epochs, its numbers made up."""
    training = {name: np.zeros(shape, dtype) for name, (dtype, shape) in training_layout(config, 12, epoch).items()}
    training["training/progress/grid_update_period"] = np.asarray(50)
    training["training/progress/log"][:, 1] = np.arange(epoch + 1)
    return Checkpoint(
        config=config.to_ini(),
        dataset="MNIST",
        image_shape=(3, 4),
        seed=1,
        epoch=epoch,
        iteration=8 * epoch,
        lvkam_version="0.1.0",
        arrays=model_arrays(build_model(config, 12)),
        training=training,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One that holds a run with a checkpoint."""
    write_checkpoint(tmp_path / "ckpt.h5", made_checkpoint())
    return tmp_path


def begun(folder: Path, config: Config = CONFIG) -> None:
    """A run that has not come to its first checkpoint."""
    (folder / "config.ini").write_text(config.to_ini(), encoding="utf-8")


def key_paths() -> list[tuple[str, str]]:
    return [(section, key) for section, keys in CONFIG.to_dict().items() for key in keys]


def changed(section: str, key: str) -> Config:
    """The configuration with another value of one key, whether or not it makes sense."""
    field, part = next((f, p) for f, p in vars(CONFIG).items() if f in SECTION_FIELDS and SECTION_FIELDS[f] == section)
    name = next(n for n, info in type(part).model_fields.items() if key in {n, info.alias})
    value: Any = getattr(part, name)
    if isinstance(value, bool):
        other: Any = not value
    elif isinstance(value, int | float):
        other = value + 1
    elif isinstance(value, tuple):
        other = (value[0] + 1, *value[1:])
    else:
        other = f"{value}x" if value is not None else 5.0
    return CONFIG.model_copy(update={field: part.model_copy(update={name: other})})


SECTION_FIELDS = {name: info.alias for name, info in Config.model_fields.items() if info.alias}


def refused(folder: Path, config: Config) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        resume_point(folder, config, fails)
    return caught.value.problems


def test_the_runs_own_checkpoint_is_read(folder: Path) -> None:
    for own in (False, True):
        if own:
            begun(folder)
        point = resume_point(folder, CONFIG, fails)
        assert point is not None
        assert (point.epoch, point.iteration, point.config) == (DONE, 8 * DONE, CONFIG.to_ini())
        assert point.arrays.keys() == made_checkpoint().arrays.keys()


@pytest.mark.parametrize("there", [False, True])
def test_a_run_that_has_not_begun_begins(there: bool, tmp_path: Path) -> None:
    folder, said = tmp_path / "run", []
    if there:
        folder.mkdir()
        (folder / "notes.txt").write_text("mine")
        (folder / ".lock").write_text("")
    assert resume_point(folder, CONFIG, said.append) is None
    assert said == [f"{folder}: no checkpoint yet: starting afresh"]
    assert folder.exists() == there


def test_a_run_without_a_checkpoint_yet_begins_again(tmp_path: Path) -> None:
    begun(tmp_path)
    (tmp_path / "loss.csv").write_text("half")
    said: list[str] = []
    assert resume_point(tmp_path, CONFIG, said.append) is None
    assert said == [f"{tmp_path}: no checkpoint yet: starting afresh"]
    assert (tmp_path / "loss.csv").read_text() == "half"


def test_another_run_without_a_checkpoint_is_not_begun_again(tmp_path: Path) -> None:
    begun(tmp_path, small_config("TRAINING.max_seconds=7", "TRAINING.seed=2"))
    assert refused(tmp_path, CONFIG) == (
        f"test: [TRAINING] seed = 1: the run in {tmp_path} has 2, and goes on with that only",
    )


@pytest.mark.parametrize("held", [[name] for name in RUN_FILES if name not in {"config.ini", "ckpt.h5", "best.h5"}])
def test_results_that_belong_to_no_run_are_told(held: list[str], tmp_path: Path) -> None:
    for name in (*held, "notes.txt"):
        (tmp_path / name).write_text("mine")
    with pytest.raises(OutputError) as caught:
        resume_point(tmp_path, CONFIG, fails)
    assert str(caught.value) == f"{tmp_path}: holds {held[0]}, but neither a checkpoint nor the run's configuration"


def test_all_results_that_belong_to_no_run_are_named(tmp_path: Path) -> None:
    for name in ("real_images.h5", "loss.csv"):
        (tmp_path / name).write_text("mine")
    with pytest.raises(OutputError, match=r"holds loss\.csv, real_images\.h5, but neither"):
        resume_point(tmp_path, CONFIG, fails)


def test_free_keys_are_keys() -> None:
    assert set(key_paths()) >= FREE_KEYS
    assert len(key_paths()) > len(FREE_KEYS) + 40


@pytest.mark.parametrize("path", key_paths(), ids=".".join)
def test_only_what_may_differ_differs(path: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp() / "differing"
    if not folder.exists():
        folder.mkdir()
        write_checkpoint(folder / "ckpt.h5", made_checkpoint())
    section, key = path
    other = changed(section, key)
    value, theirs = other.to_dict()[section][key], CONFIG.to_dict()[section][key]
    assert value != theirs
    if path in FREE_KEYS:
        point = resume_point(folder, other, fails)
        assert point is not None
        assert point.epoch == DONE
    else:
        assert refused(folder, other) == (
            f"test: [{section}] {key} = {write_value(value)}: the run in {folder} has {write_value(theirs)}, "
            "and goes on with that only",
        )


def test_the_keys_that_may_differ_are_these() -> None:
    # each of them changes no step, or how many there are
    keys = {f"{section}.{key}" for section, key in FREE_KEYS}
    prolonging = {"TRAINING.N_epochs", "TRAINING.max_seconds"}
    surroundings = {f"TRAINING.{key}" for key in ("checkpoint_every", "checkpoint_minutes", "gen_every", "verbose")}
    machine = {"TRAINING.use_gpu", "TRAINING.compile", "TRAINING.shard"}
    without_effect = {"TRAINING.update_grid", "KAN_LIKELIHOOD.gating_activation"}
    assert keys == prolonging | surroundings | machine | without_effect


def test_a_cosine_ends_with_the_training_that_it_was_made_for(tmp_path: Path) -> None:
    begun(tmp_path, small_config("OPTIMIZER.schedule=cosine"))  # of two epochs
    for key, value, theirs in (("N_epochs", "9", "2"), ("max_seconds", "99", "none")):
        longer = small_config("OPTIMIZER.schedule=cosine", f"TRAINING.{key}={value}")
        assert refused(tmp_path, longer) == (
            f"test: [TRAINING] {key} = {value}: the run in {tmp_path} has {theirs}, and goes on with that only, by "
            "which its schedule = cosine goes",
        )


def test_a_growing_number_of_samples_ends_with_the_training_that_it_was_made_for(tmp_path: Path) -> None:
    begun(tmp_path, small_config("TRAINING.initial_sample_size=2"))
    assert refused(tmp_path, small_config("TRAINING.initial_sample_size=2", "TRAINING.N_epochs=9")) == (
        f"test: [TRAINING] N_epochs = 9: the run in {tmp_path} has 2, and goes on with that only, by which its "
        "initial_sample_size goes",
    )


def test_all_keys_that_differ_are_named_at_once(folder: Path) -> None:
    config = small_config("TRAINING.max_seconds=9", "TRAINING.seed=5", "OPTIMIZER.type=sgd", "MIX_PRIOR.ε_scale=0.25",
                          "TRAINING.N_epochs=9", "TRAINING.img_resize=native")  # fmt: skip
    assert refused(folder, config) == tuple(
        f"test: {key} = {value}: the run in {folder} has {theirs}, and goes on with that only"
        for key, value, theirs in (
            ("[MIX_PRIOR] ε_scale", "0.25", "0.1"),
            ("[TRAINING] img_resize", "native", "7, 7"),
            ("[TRAINING] seed", "5", "1"),
            ("[OPTIMIZER] type", "sgd", "adam"),
        )
    )


def test_the_checkpoint_decides_not_the_file_beside_it(folder: Path) -> None:
    begun(folder, small_config("TRAINING.seed=2"))
    assert resume_point(folder, CONFIG, fails) is not None
    assert len(refused(folder, small_config("TRAINING.max_seconds=7", "TRAINING.seed=2"))) == 1


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_no_fewer_epochs_than_are_done(epochs: int, folder: Path) -> None:
    config = small_config("TRAINING.max_seconds=7", f"TRAINING.N_epochs={epochs}")
    if epochs < DONE:
        assert refused(folder, config) == (
            "test: [TRAINING] N_epochs = 1: must be at least 2, which are done or begun",
        )
    else:
        assert resume_point(folder, config, fails) is not None


def test_a_model_alone_cannot_go_on(tmp_path: Path) -> None:
    write_checkpoint(path := tmp_path / "ckpt.h5", Checkpoint(**{**vars(made_checkpoint()), "training": {}}))
    with pytest.raises(CheckpointError) as caught:
        resume_point(tmp_path, CONFIG, fails)
    assert str(caught.value) == f"{path}: holds a model alone, nothing that a training could go on with"


def test_a_damaged_checkpoint_is_not_begun_again(folder: Path) -> None:
    path = folder / "ckpt.h5"
    begun(folder)
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        resume_point(folder, CONFIG, fails)
    assert str(caught.value) == f"{path}: damaged: its bytes do not match its seal"
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="not a checkpoint of lvkam"):
        resume_point(folder, CONFIG, fails)
    assert path.read_bytes() == b""


def test_a_broken_configuration_of_a_run_is_told(tmp_path: Path) -> None:
    (tmp_path / "config.ini").write_text("[TRAINING]\nseeds = 1\n")
    problem = f"{tmp_path / 'config.ini'}: [TRAINING] seeds: unknown key; did you mean 'seed'?"
    assert refused(tmp_path, CONFIG) == (problem,)


def test_no_torch_is_needed_to_tell(folder: Path) -> None:
    (folder / "c.ini").write_text(CONFIG.to_ini(), encoding="utf-8")
    program = (
        "import sys; from pathlib import Path\n"
        "from lvkam.config import load_config\n"
        "from lvkam.resumption import resume_point\n"
        "print(resume_point(Path(sys.argv[1]), load_config(sys.argv[2]), print).epoch, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, folder, folder / "c.ini"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{DONE} False\n", "")
    reseal(folder / "ckpt.h5")  # what was written is sealed as it should be
    assert resume_point(folder, CONFIG, quiet) is not None
