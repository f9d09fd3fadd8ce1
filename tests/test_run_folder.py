"""A run's folder: never overwritten unasked, never written by two, and what is put into it."""

from __future__ import annotations

import csv
import errno
import os
import subprocess
import sys
from pathlib import Path

import filelock
import h5py
import numpy as np
import pytest
from PIL import Image

from lvkam.config import Config
from lvkam.plots import image_grid
from lvkam.progress import EpochRecord
from lvkam.run_folder import (
    EVENTS,
    FRAMES,
    RUN_FILES,
    OutputError,
    check_folder,
    default_folder,
    locked,
    save_samples,
    write_losses,
)
from lvkam.sections import PriorConfig, ThermodynamicConfig, TrainingConfig
from lvkam.standardisation import Standardisation
from lvkam.writing import WriteError
from tests.conftest import small_config


def quiet(_: str) -> None:
    pass


def refused(folder: Path, overwrite: bool = False) -> str:
    with pytest.raises(OutputError) as caught:
        check_folder(folder, overwrite)
    return str(caught.value)


def everything(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


@pytest.mark.parametrize(
    ("num_temps", "method"), [(-1, "Vanilla"), (0, "Vanilla"), (1, "Vanilla"), (2, "Thermodynamic")]
)
@pytest.mark.parametrize("reference", ["uniform", "gaussian"])
@pytest.mark.parametrize(
    ("dataset", "name"), [("MNIST", "MNIST"), ("FMNIST", "FMNIST"), ("some/where/mine.npz", "mine")]
)
def test_folder_is_named_by_the_run(num_temps: int, method: str, reference: str, dataset: str, name: str) -> None:
    config = Config(
        MIX_PRIOR=PriorConfig.model_validate({"π_0": reference}),
        THERMODYNAMIC_INTEGRATION=ThermodynamicConfig(num_temps=num_temps),
        TRAINING=TrainingConfig(dataset=dataset, seed=17),
    )
    assert default_folder(config) == Path(f"logs/{method}/{reference}/{name}_17")


def test_default_folder_is_the_specifications() -> None:
    assert default_folder(Config()) == Path("logs/Thermodynamic/uniform/MNIST_1")


def test_run_files_are_all_that_a_run_writes() -> None:
    pictures = {"real_images.png", "generated_images.png", "loss.png"}
    assert (
        set(RUN_FILES)
        == {"config.ini", "loss.csv", "ckpt.h5", "best.h5", "real_images.h5", "generated_images.h5"} | pictures
    )


@pytest.mark.parametrize("held", [*((name,) for name in RUN_FILES), RUN_FILES])
def test_results_are_not_overwritten_unasked(held: tuple[str, ...], tmp_path: Path) -> None:
    for name in (*held, "notes.txt"):
        (tmp_path / name).write_text("old")
    before = everything(tmp_path)
    assert refused(tmp_path) == (
        f"{tmp_path}: holds the results of a run ({', '.join(held)}); give --resume to go on with it, "
        "--overwrite to replace it, or --output for another folder"
    )
    check_folder(tmp_path, overwrite=True)
    assert everything(tmp_path) == before


@pytest.mark.parametrize("name", [FRAMES, EVENTS])
def test_pictures_and_events_of_a_run_are_results_too(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    check_folder(tmp_path, overwrite=False)  # of an empty folder nothing can be lost
    (tmp_path / name / "kept").touch()
    with pytest.raises(OutputError, match=rf"holds the results of a run \({name}\)"):
        check_folder(tmp_path, overwrite=False)
    check_folder(tmp_path, overwrite=True)
    (tmp_path / name / "kept").unlink()
    (tmp_path / name).rmdir()
    (tmp_path / name).touch()
    with pytest.raises(OutputError, match=rf"{name}: is a file, where a folder is to be written"):
        check_folder(tmp_path, overwrite=True)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("folder", [".", "new", "new/and/deeper"])
def test_a_free_folder_is_left_as_it_is(folder: str, overwrite: bool, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "ckpt.h5.bak").write_text("mine")
    check_folder(tmp_path / folder, overwrite)
    assert everything(tmp_path) == {"notes.txt": b"mine", "ckpt.h5.bak": b"mine"}


def test_a_relative_folder_is_looked_for_where_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loss.csv").write_text("old")
    check_folder(Path("logs/a"), overwrite=False)
    assert "holds the results of a run (loss.csv)" in refused(Path())
    (tmp_path / "logs").write_text("a file")
    assert refused(Path("logs/a")) == f"logs/a: {tmp_path / 'logs'} is not a folder"


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("below", ["", "run", "run/deeper"])
def test_a_file_in_the_way_is_told(below: str, overwrite: bool, tmp_path: Path) -> None:
    (file := tmp_path / "file").write_text("mine")
    named = f"{file} " if below else ""
    assert refused(file / below, overwrite) == f"{file / below}: {named}is not a folder"
    assert file.read_text() == "mine"


@pytest.mark.parametrize("folder", ["/proc/run", "/proc/run/deeper", "/proc/self/run"])
def test_a_folder_that_cannot_be_written_is_told(folder: str) -> None:
    with pytest.raises(WriteError) as caught:
        check_folder(Path(folder), overwrite=False)
    assert str(caught.value).startswith(f"{folder}: cannot be written (")


def test_a_name_too_long_is_told(tmp_path: Path) -> None:
    assert refused(tmp_path / ("x" * 300)).startswith(f"{tmp_path / ('x' * 300)}: ")


def test_a_link_to_nothing_is_told(tmp_path: Path) -> None:
    (link := tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert refused(link).startswith(f"{link}: ")


def test_a_lock_is_held_against_other_processes(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from lvkam.run_folder import locked\n"
        "with locked(Path(sys.argv[1]), print): pass"
    )
    with locked(tmp_path, quiet):
        other = subprocess.run([sys.executable, "-c", program, tmp_path], check=False, capture_output=True, text=True)
        assert other.returncode == 1
        assert other.stderr.splitlines()[-1].startswith(
            f"lvkam.run_folder.OutputError: {tmp_path}: another training is writing here: process {os.getpid()} on "
        )
    assert subprocess.run([sys.executable, "-c", program, tmp_path], check=False).returncode == 0


def test_a_lock_is_released_however_the_training_ends(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), locked(tmp_path, quiet):
        raise KeyboardInterrupt
    with locked(tmp_path, quiet):
        pass
    with filelock.FileLock(tmp_path / ".lock", timeout=0):
        with pytest.raises(OutputError) as caught, locked(tmp_path, quiet):
            pass
        assert str(caught.value) == (
            f"{tmp_path}: another training is writing here: a process that has not given its name yet"
        )
    check_folder(tmp_path, overwrite=False)


RECORDS = [EpochRecord(0.5 * n, n, 1.25 + n, -2e-7, n == 1, 3.0, 17.123456) for n in range(3)]


def test_losses_are_a_table_with_a_header(tmp_path: Path) -> None:
    for number in range(1, len(RECORDS) + 1):
        write_losses(tmp_path / "loss.csv", RECORDS[:number])
    text = (tmp_path / "loss.csv").read_bytes().decode()
    header = "Time (s),Epoch,Train Loss,Test Loss,Grid Updated,Test NLL,Effective Sample Size\n"
    assert text.startswith(f"{header}0.000,0,1.250000,-0.000000,false,3.000000,17.1235\n0.500,1,2.250000,")
    assert "\r" not in text
    with (tmp_path / "loss.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == [record.as_row() for record in RECORDS]


def test_a_lock_of_a_folder_that_cannot_be_written_any_more_hides_no_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with pytest.raises(ZeroDivisionError), locked(tmp_path, quiet):  # noqa: PT012 - the failure is inside the context
        monkeypatch.setattr(Path, "unlink", refuse)
        raise ZeroDivisionError
    monkeypatch.undo()
    with locked(tmp_path, quiet):  # released all the same
        pass


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 3)])
def test_images_are_clipped_and_drawn(shape: tuple[int, ...], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.normal(0.5, 1, (7, int(np.prod(shape))))
    latents = rng.normal(size=(7, 5))
    save_samples(tmp_path / "samples.h5", images, shape, latents=latents)
    expected = np.minimum(np.maximum(images, 0), 1).astype(np.float32).reshape(7, *shape)
    with h5py.File(tmp_path / "samples.h5") as file:
        found = {name: np.asarray(file[name]) for name in file}
    assert found.keys() == {"samples", "latents"}
    assert found["samples"].dtype == found["latents"].dtype == np.float32
    np.testing.assert_array_equal(found["samples"], expected, strict=True)
    np.testing.assert_array_equal(found["latents"], latents.astype(np.float32), strict=True)
    with Image.open(tmp_path / "samples.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(image_grid(expected)))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["samples.h5", "samples.png"]


def test_latents_are_left_out_and_the_grid_goes_where_asked(tmp_path: Path) -> None:
    save_samples(tmp_path / "a.h5", np.zeros((1, 4), np.float32), (2, 2), picture=tmp_path / "b.picture")
    with h5py.File(tmp_path / "a.h5") as file:
        assert list(file) == ["samples"]
    with Image.open(tmp_path / "b.picture") as picture:
        assert picture.format == "PNG"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.h5", "b.picture"]


def test_rows_are_restored_and_not_clipped(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    mean, std = np.array([1e-9, -2.5, 1.7e9]), np.array([1e-7, 700.0, 0.5])  # the last: seconds since 1970
    standardised = rng.standard_normal((40, 3)).astype(np.float32)
    save_samples(tmp_path / "a.h5", standardised, (3,), Standardisation(("a", "$b", "c"), mean, std))
    with h5py.File(tmp_path / "a.h5") as file:
        assert list(file) == ["samples"]
        found = np.asarray(file["samples"])
    assert found.dtype == np.float64
    np.testing.assert_allclose((found - mean) / std, standardised, rtol=1e-6, atol=1e-6)
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.format == "PNG"


@pytest.mark.parametrize(
    ("name", "expected"), [("my data/a table.csv", "a table"), ("../pictures/", "pictures"), ("/x/y.v2.npz", "y.v2")]
)
def test_the_folder_of_data_of_ones_own_is_named_after_it(name: str, expected: str) -> None:
    folder = default_folder(small_config(f"TRAINING.dataset={name}"))
    assert folder == Path("logs", "Thermodynamic", "uniform", f"{expected}_1")
