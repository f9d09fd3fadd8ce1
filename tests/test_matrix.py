"""A matrix of experiments: its cells, their runs in processes of their own, what is skipped, and the summary."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lvkam.build import DeviceError
from lvkam.config import Config, ConfigError
from lvkam.experiment import run_experiment
from lvkam.inference import evaluate_checkpoint
from lvkam.interruption import Interruption
from lvkam.matrix import COLUMNS, Cell, as_markdown, plan_cells, run_matrix
from lvkam.run_folder import OutputError
from tests.conftest import h5_arrays, small_config, small_overrides

QUICK = ("TRAINING.N_epochs=1", "TRAINING.num_generated_samples=40")


def plan(config: Config, output: Path, temps: tuple[int, ...] = (0, 3), **changed: list[str]) -> list[Cell]:
    given = {"priors": ["uniform"], "datasets": ["MNIST"], **changed}
    return plan_cells(config, output, given["priors"], given["datasets"], temps, [config.training.seed])


def test_cells_are_the_product_in_order() -> None:
    config = small_config("TRAINING.img_resize=native")
    cells = plan_cells(config, Path("out"), ["uniform", "gaussian"], ["MNIST", "FMNIST"], [0, 30], [1, 2])
    assert len({cell.folder for cell in cells}) == len(cells) == 16
    assert [cell.key for cell in cells[:5]] == [
        ("uniform", "MNIST", "Vanilla", 1), ("uniform", "MNIST", "Vanilla", 2),
        ("uniform", "MNIST", "Thermodynamic_30", 1), ("uniform", "MNIST", "Thermodynamic_30", 2),
        ("uniform", "FMNIST", "Vanilla", 1),
    ]  # fmt: skip
    assert str(cells[-1]) == "gaussian FMNIST Thermodynamic_30 2"
    assert cells[-1].folder == Path("out/Thermodynamic_30/gaussian/FMNIST_2")
    for cell in cells:
        assert cell.config.training.img_resize == (14, 14)  # as the reference's main script does
        prior, dataset, _, seed = cell.key
        same = cell.config.to_dict()
        for section, key, value in (
            ("MIX_PRIOR", "π_0", config.prior.reference_density), ("TRAINING", "dataset", "MNIST"),
            ("TRAINING", "seed", config.training.seed), ("TRAINING", "img_resize", "native"),
            ("THERMODYNAMIC_INTEGRATION", "num_temps", config.thermodynamic.num_temps),
        ):  # fmt: skip
            same[section][key] = value
        assert same == config.to_dict()
        assert (cell.config.prior.reference_density, cell.config.training.dataset) == (prior, dataset)
        assert cell.config.training.seed == seed


def test_a_size_that_the_file_gives_is_kept_and_a_wrong_value_told() -> None:
    assert plan(small_config(), Path("out"))[0].config.training.img_resize == (7, 7)
    with pytest.raises(ConfigError, match=r"π_0 = cauchy: must be one of uniform, gaussian"):
        plan(small_config(), Path("out"), priors=["cauchy"])


def run(cells: list[Cell], output: Path, jobs: int = 2) -> tuple[list[dict[str, str]], list[str]]:
    said: list[str] = []
    rows = run_matrix(
        cells, output, jobs=jobs, num_images=100, num_samples=2000, say=said.append, interruption=Interruption()
    )
    return rows, said


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, str]], list[str]]:
    output = tmp_path_factory.mktemp("matrix")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "2")  # one for each of two cells
        rows, said = run(plan(small_config(*QUICK), output), output)
    return output, rows, said


def test_each_cell_is_the_run_that_it_would_be_by_itself(
    done: tuple[Path, list[dict[str, str]], list[str]], tmp_path: Path
) -> None:
    output, rows, _ = done
    for cell, row in zip(plan(small_config(*QUICK), output), rows, strict=True):
        alone = run_experiment(cell.config, tmp_path / cell.method, say=lambda _: None)
        for name in ("ckpt.h5", "generated_images.h5"):
            theirs, ours = h5_arrays(cell.folder / name), h5_arrays(alone / name)
            assert theirs.keys() == ours.keys()
            for path in ours:
                if not path.endswith(("seconds", "log")):
                    np.testing.assert_array_equal(theirs[path], ours[path])
        found = evaluate_checkpoint(alone / "ckpt.h5", 100, 2000)
        assert row["Test NLL (nats)"] == f"{found['nll_nats']:.3f}"
        assert row["Standard Error"] == f"{found['nll_stderr']:.3f}"
        assert row["Status"] == "done"


def test_the_summary_is_written(done: tuple[Path, list[dict[str, str]], list[str]]) -> None:
    output, rows, said = done
    with (output / "summary.csv").open(newline="", encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    assert read == rows
    assert tuple(read[0]) == COLUMNS
    assert (output / "summary.md").read_text(encoding="utf-8") == as_markdown(rows)
    assert len(as_markdown(rows).splitlines()) == 2 + len(rows)
    with Image.open(output / "summary.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 10
    assert said[0] == "2 cells, 0 of them finished already"
    assert any(line.startswith("uniform MNIST Vanilla 1: epoch 1/1") for line in said)
    assert any(line.startswith("uniform MNIST Thermodynamic_3 1: epoch 1/1") for line in said)


def test_what_is_finished_is_skipped_and_what_is_broken_taken_up(
    done: tuple[Path, list[dict[str, str]], list[str]], tmp_path: Path
) -> None:
    shutil.copytree(done[0], tmp_path, dirs_exist_ok=True)
    cells = plan(small_config(*QUICK), tmp_path)
    before = {path: path.stat().st_mtime_ns for cell in cells for path in cell.folder.glob("*.h5")}
    rows, said = run(cells, tmp_path)
    assert said == ["2 cells, 2 of them finished already"]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    moved = [{**row, "Folder": ""} for row in rows]
    assert moved == [{**row, "Folder": ""} for row in done[1]]

    drawn = cells[1].folder / "generated_images.h5"
    expected = drawn.read_bytes()
    drawn.unlink()
    _, said = run(cells, tmp_path)
    assert said[0] == "2 cells, 1 of them finished already"
    assert drawn.read_bytes() == expected
    assert all(line.startswith(str(cells[1])) for line in said[1:])


def test_another_configuration_in_a_cells_folder_is_refused_before_anything_runs(
    done: tuple[Path, list[dict[str, str]], list[str]],
) -> None:
    changed = plan(small_config(*QUICK, "OPTIMIZER.learning_rate=0.1"), done[0], temps=(0, 5))
    with pytest.raises(ConfigError, match=r"learning_rate = 0\.1: the run in .*Vanilla.* has 0\.005"):
        run(changed, done[0])
    assert not (done[0] / "Thermodynamic_5").exists()


def test_a_cell_that_fails_is_told_and_stops_no_other(tmp_path: Path) -> None:
    config = small_config(*QUICK, "OPTIMIZER.learning_rate=1e30")
    good = plan(small_config(*QUICK), tmp_path, temps=(0,))
    rows, _ = run([*plan(config, tmp_path, temps=(3,)), *good], tmp_path, jobs=1)
    assert rows[0]["Status"].startswith("failed: failed: epoch 1, iteration ")
    assert rows[0]["Test NLL (nats)"] == ""
    assert rows[1]["Status"] == "done"
    assert "failed: failed" in as_markdown(rows)


@pytest.mark.slow
def test_the_command_stops_at_a_signal_and_goes_on(tmp_path: Path) -> None:
    (tmp_path / "x.ini").write_text("", encoding="utf-8")
    settings = [
        word
        for value in (*small_overrides(), "TRAINING.N_epochs=400", "TRAINING.compile=false")
        for word in ("--set", value)
    ]
    options = ["--priors", "gaussian", "--datasets", "MNIST", "--temps", "0", "--seeds", "3", "--num-samples", "1000"]
    command = [sys.executable, "-m", "lvkam_cli", "experiments", "x.ini", *settings, *options]
    folder = tmp_path / "experiments" / "Vanilla" / "gaussian" / "MNIST_3"
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        try:
            until = time.monotonic() + 120
            while not (folder / "ckpt.h5").exists() and time.monotonic() < until:
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "interrupted; the running cells are saved; the same command goes on"
    assert "gaussian MNIST Vanilla 3: interrupted; saved in" in errors
    assert not (tmp_path / "experiments" / "summary.csv").exists()
    command += ["--set", "TRAINING.max_seconds=0.001"]  # enough has been seen
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, env=dict(os.environ))
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("| prior | data | method |")
    assert "going on after" in ended.stderr or "finished already" in ended.stderr


def test_two_cells_never_share_a_folder(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / "d.npz", samples=np.zeros((3, 4, 4), np.uint8))
    with pytest.raises(OutputError, match=r"d_1: would be the folder of two cells"):
        plan(small_config(), tmp_path, datasets=[str(tmp_path / name / "d.npz") for name in ("a", "b")])
    with pytest.raises(OutputError, match="would be the folder of two cells"):
        plan(small_config(), tmp_path, temps=(0, 1))


def test_what_would_end_a_cell_is_told_before_any_begins(tmp_path: Path) -> None:
    np.savez(tmp_path / "few.npz", samples=np.zeros((30, 7, 7), np.uint8))
    (tmp_path / "table.csv").write_text("a,b\n" + "".join(f"{i},{i * i}\n" for i in range(300)))
    datasets = ["MNIST", str(tmp_path / "few.npz"), str(tmp_path / "table.csv")]
    with pytest.raises(ConfigError) as caught:
        run(plan(small_config(*QUICK), tmp_path / "out", datasets=datasets), tmp_path / "out")
    said = "\n".join(caught.value.problems)
    assert "N_train = 200: must be at most 10" in said
    assert "likelihood_model = bernoulli: must be l2" in said
    assert len(caught.value.problems) == len(set(caught.value.problems)) == 4
    assert not (tmp_path / "out").exists()
    # a second kind: nothing of that device
    with pytest.raises(DeviceError, match="--device nowhere"):
        run_matrix(
            plan(small_config(*QUICK), tmp_path / "out"), tmp_path / "out", device="nowhere", say=lambda _: None,
            interruption=Interruption(),
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_a_summary_of_something_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "summary.md").write_text("mine")
    with pytest.raises(OutputError, match=r"holds summary\.md of something else; give --output for another folder"):
        run(plan(small_config(*QUICK), tmp_path), tmp_path)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("summary.md", "mine")]


def test_an_evaluation_of_another_state_is_not_taken(
    done: tuple[Path, list[dict[str, str]], list[str]], tmp_path: Path
) -> None:
    shutil.copytree(done[0], tmp_path, dirs_exist_ok=True)
    first, second = plan(small_config(*QUICK), tmp_path)
    kept = first.folder / "evaluation.json"
    before = kept.read_text(encoding="utf-8")
    shutil.copy(second.folder / "evaluation.json", kept)  # as if the cell had been trained anew since
    (second.folder / "evaluation.json").write_text("spoiled", encoding="utf-8")
    rows, _ = run([first, second], tmp_path)
    assert [row["Test NLL (nats)"] for row in rows] == [row["Test NLL (nats)"] for row in done[1]]
    assert kept.read_text(encoding="utf-8") == before


def test_images_of_an_epoch_cut_short_count(tmp_path: Path) -> None:
    config = small_config("TRAINING.N_epochs=50", "TRAINING.max_seconds=0.02", "TRAINING.num_generated_samples=40")
    rows, _ = run(plan(config, tmp_path, temps=(0,)), tmp_path, jobs=1)
    assert int(rows[0]["Images/s"]) > 0
