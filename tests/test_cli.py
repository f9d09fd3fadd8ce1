"""The command line from end to end, on the MNIST inside the package: what a user types, what comes back."""

from __future__ import annotations

import csv
import gzip
import importlib
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from lvkam.build import STEPS_THAT_REPAY, build_model, save_model
from lvkam.config import parse_config
from lvkam.interruption import Interruption
from lvkam.plots import MOST_IMAGES, image_grid
from tests.conftest import (
    REPOSITORY,
    few_of_mnist,
    h5_arrays,
    require_compiler,
    reseal,
    small_overrides,
    table_overrides,
    write_table,
)
from tests.test_compilation import without_compiler

PROGRAM = [str(Path(sys.executable).with_name("lvkam"))]
COMMANDS = [
    "train", "sample", "evaluate", "plot", "report", "info", "check", "data", "fit-features", "experiments",
    "sweep", "completion",
]  # fmt: skip
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "LVKAM_DATA_DIR": ""}


def lvkam(
    *arguments: str | Path, cwd: Path, environment: dict[str, str] = ENVIRONMENT
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PROGRAM, *map(str, arguments)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def invoked(*arguments: str) -> Result:
    """A command that succeeds, in this process, which has torch already."""
    cli = importlib.import_module("lvkam_cli.main").cli
    done = CliRunner().invoke(cli, arguments, obj=Interruption(), catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    return done


def settings(*overrides: str) -> list[str]:
    return [word for override in (*small_overrides(), *overrides) for word in ("--set", override)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with the repository's configuration and a run of it, made small."""
    folder = tmp_path_factory.mktemp("user")
    shutil.copy(REPOSITORY / "nist_config.ini", folder)
    done = lvkam("train", "nist_config.ini", *settings(), cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "logs/Thermodynamic/uniform/MNIST_1\n"
    lines = done.stderr.splitlines()
    assert lines[0].startswith("MNIST, 7x7, 200 images, values divided by 255; ")
    assert "on cpu (1 threads); writing to logs/Thermodynamic/uniform/MNIST_1" in lines[0]
    assert lines[1] == "kernels not compiled: 16 steps would not repay it"
    assert [re.match(r"epoch (\d)/2: train loss ", line) is not None for line in lines[2:5]] == [True] * 3
    assert re.fullmatch(r"trained for \d+ s; 30 generated images in .*/generated_images\.png", lines[5])
    return folder


def run_of(folder: Path) -> Path:
    return folder / "logs/Thermodynamic/uniform/MNIST_1"


def test_help_needs_no_torch(tmp_path: Path) -> None:
    program = (
        "import sys; sys.argv = ['lvkam', '--help']\n"
        "from lvkam_cli.main import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'scipy', 'h5py', 'matplotlib', 'numpy', 'pydantic'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()[-len(COMMANDS) :]] == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_every_command_explains_itself(command: str, option: str, tmp_path: Path) -> None:
    done = lvkam(command, option, cwd=tmp_path)
    assert done.returncode == 0
    assert f"Usage: lvkam {command} [OPTIONS]" in done.stdout
    assert done.stderr == ""


def test_the_log_has_an_epoch_a_line(folder: Path) -> None:
    with (run_of(folder) / "loss.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["Epoch"] for row in rows] == ["0", "1", "2"]
    assert float(rows[-1]["Test NLL"]) < float(rows[0]["Test NLL"])


def test_info(folder: Path) -> None:
    done = lvkam("info", run_of(folder) / "ckpt.h5", "--json", cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    described = json.loads(done.stdout)
    config = parse_config((run_of(folder) / "config.ini").read_text(encoding="utf-8"), "config.ini")
    assert described["parameters"] == sum(p.numel() for p in build_model(config, 49).parameters())
    assert (described["epoch"], described["iteration"]) == (2, 16)
    assert (described["dataset"], described["image_shape"], described["verified"]) == ("MNIST", [7, 7], True)
    assert described["config"]["MIX_PRIOR"]["ε_scale"] == 0.1
    assert described["config"]["TRAINING"]["img_resize"] == [7, 7]
    text = lvkam("info", run_of(folder) / "ckpt.h5", cwd=folder).stdout
    assert f"parameters     {described['parameters']}\n" in text
    assert "\n[MIX_PRIOR]\n" in text


def test_sample(folder: Path, tmp_path: Path) -> None:
    checkpoint = run_of(folder) / "ckpt.h5"
    first = lvkam("sample", checkpoint, "-n", "5", "--seed", "3", "--save-latents", cwd=tmp_path)
    assert (first.returncode, first.stdout, first.stderr) == (0, "samples.h5\nsamples.png\n", "")
    again = lvkam("sample", checkpoint, "-n", "5", "--seed", "3", "--output", "b.h5", "--grid", "g.png", cwd=tmp_path)
    assert again.stdout == "b.h5\ng.png\n"
    drawn = h5_arrays(tmp_path / "samples.h5")
    assert drawn["latents"].shape == (5, 4)
    assert np.array_equal(drawn["samples"], h5_arrays(tmp_path / "b.h5")["samples"])
    refused = lvkam("sample", checkpoint, cwd=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr == "error: samples.h5: exists already; give --overwrite to replace it\n"
    assert lvkam("sample", checkpoint, "--overwrite", cwd=tmp_path).returncode == 0
    assert len(h5_arrays(tmp_path / "samples.h5")["samples"]) == 100


def test_evaluate(folder: Path) -> None:
    arguments = (
        "evaluate",
        run_of(folder) / "ckpt.h5",
        "--estimator",
        "importance",
        "--num-images",
        "40",
        "--num-samples",
        "300",
    )
    done = lvkam(*arguments, "--json", cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert {"nll_nats", "nll_stderr", "bits_per_dim", "effective_sample_size", "num_images", "estimator"} <= set(found)
    assert (found["num_images"], found["estimator"]) == (40, "importance")
    text = lvkam(*arguments, cwd=folder).stdout
    assert f"test NLL               {found['nll_nats']:.3f} +- {found['nll_stderr']:.3f} nats an image" in text
    assert "does not compare" in text


def test_evaluate_by_annealing(folder: Path) -> None:
    arguments = ("evaluate", str(run_of(folder) / "ckpt.h5"), "--num-images", "5")
    annealed = (*arguments, "--estimator", "annealed", "--num-samples", "8", "--num-temps", "20")
    done = invoked(*annealed, "--json")
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert (found["estimator"], found["num_temps"], found["num_repetitions"]) == ("annealed", 20, 20)
    assert 0 < found["acceptance"] <= 1
    plain = json.loads(invoked(*arguments, "--num-samples", "5000", "--json").stdout)
    # estimates of one figure, both right: 4 standard errors and room for the bias of a logarithm
    error = math.hypot(found["nll_stderr"], plain["nll_stderr"])
    assert abs(found["nll_nats"] - plain["nll_nats"]) < 4 * error + 0.02
    text = invoked(*annealed).stdout
    assert f"of {8 * 20} (annealed)\n" in text
    assert f"accepted moves         {100 * found['acceptance']:.0f} %, at 20 temperatures\n" in text
    still = invoked(*annealed, "--moves", "0", "--json")
    assert json.loads(still.stdout)["acceptance"] is None
    # at one temperature there is nothing to move at
    once = (*arguments, "--estimator", "annealed", "--num-samples", "100", "--num-temps", "1", "--json")
    assert json.loads(invoked(*once).stdout, parse_constant=pytest.fail)["acceptance"] is None


def test_binarised_mnist_from_end_to_end(tmp_path: Path) -> None:
    run, of = tmp_path / "run", ("--set", "TRAINING.binarize=dynamic")
    trained = invoked("train", str(REPOSITORY / "nist_config.ini"), "--output", str(run), *settings(), *of)
    assert "values divided by 255, binarised, the training images in each batch anew; " in trained.stderr
    checkpoint = str(run / "ckpt.h5")
    arguments = ("evaluate", checkpoint, "--num-images", "40", "--num-samples", "300")
    assert json.loads(invoked(*arguments, "--json").stdout)["binarize"] == "dynamic"
    text = invoked(*arguments).stdout
    assert "40 of MNIST, the first of the test split; values divided by 255, binarised\n" in text
    assert text.endswith("with published figures of stochastically binarised images.\n")
    assert "cross-entropy" not in text
    invoked("report", str(run), "--output", str(tmp_path / "a.html"), "--metrics", "none")
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert "of bits (dynamic), comparable with published nats of bits at the same size" in page
    assert "cross-entropy" not in page


def test_an_estimate_that_is_not_to_be_trusted_says_so(folder: Path) -> None:
    done = lvkam("evaluate", run_of(folder) / "ckpt.h5", "--num-images", "5", "--num-samples", "10", cwd=folder)
    assert done.returncode == 0
    assert re.fullmatch(
        r"warning: [1-5] of 5 images have an effective sample size under 20, too low to trust the estimate or its "
        r"error; try --estimator annealed, or more --num-samples\n",
        done.stderr,
    )


def test_evaluate_by_all_metrics(folder: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lvkam.features.STEPS", 20)
    few, checkpoint = few_of_mnist(tmp_path / "data", 1000, 200), str(run_of(folder) / "ckpt.h5")
    fitted = invoked("fit-features", "MNIST", "--size", "7,7", "--data-dir", str(few))
    assert fitted.stderr.startswith("fitting a classifier to MNIST at 7x7; it is kept in ")
    name = re.match(r"name      (lenet-[0-9a-f]{8})\naccuracy  \d+\.\d\d % of the test images\nfile  ", fitted.stdout)
    assert name is not None
    arguments = ("evaluate", checkpoint, "--num-images", "20", "--data-dir", str(few), "--num-generated", "50")
    done = invoked(*arguments, "--metrics", "all", "--json")
    assert "fitting" not in done.stderr
    found = json.loads(done.stdout, parse_constant=pytest.fail)
    assert {"nll_nats", "kid", "fid", "precision", "recall", "density", "coverage", "metrics"} <= set(found)
    assert found["features"] == name[1]
    text = invoked(*arguments, "--metrics", "fid,recall").stdout
    assert "NLL" not in text
    lines = text.splitlines()
    assert lines[0].split()[-1] == "noise"
    expected = [f"FID({name[1]})", f"recall({name[1]})", "FID(pca49)", "recall(pca49)"]
    assert [line.split()[0] for line in lines[1:5]] == expected
    done = lvkam("evaluate", checkpoint, "--metrics", "fud", cwd=folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: metrics: fud; must be all, or out of nll, kid, ")
    done = lvkam("fit-features", "MNIST", "--size", "3", cwd=folder)
    assert (done.returncode, "3: must be two integers, H,W" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("lvkam ev", ["evaluate"]),
        ("lvkam completion z", ["zsh"]),
        ("lvkam plot ckpt.h5 --form", ["--format"]),
        ("lvkam train nist_config.ini --set GRID_UPDATING.update", [
            "GRID_UPDATING.update_prior_grid=", "GRID_UPDATING.update_llhood_grid=",
        ]),
        ("lvkam sweep nist_config.ini --set MIX_PRIOR.π", ["MIX_PRIOR.π_0="]),
    ],
)  # fmt: skip
def test_bash_completes_what_one_has_begun(words: str, expected: list[str], tmp_path: Path) -> None:
    program = (
        f'eval "$(lvkam completion bash)"; COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); '
        '_lvkam_completion lvkam; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    path = {"PATH": f"{Path(PROGRAM[0]).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", program], cwd=tmp_path, env={**ENVIRONMENT, **path}, capture_output=True, text=True, check=False
    )
    assert (done.stdout.split(), done.stderr) == (expected, "")


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_get_their_scripts(shell: str, tmp_path: Path) -> None:
    done = lvkam("completion", shell, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"_LVKAM_COMPLETE={shell}_complete" in done.stdout
    refused = lvkam("completion", "sh", cwd=tmp_path)
    assert (refused.returncode, refused.stdout) == (2, "")


def test_plot_temperatures(folder: Path, tmp_path: Path) -> None:
    arguments = ("plot", run_of(folder) / "ckpt.h5", "--what", "temperatures", "--num-images", "3")
    done = lvkam(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "temperatures.png\n", "")
    assert (tmp_path / "temperatures.png").read_bytes().startswith(b"\x89PNG")
    refused = lvkam(*arguments, cwd=tmp_path)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == "error: temperatures.png: exists already; give --overwrite to replace it\n"


def test_pictures_while_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(REPOSITORY / "nist_config.ini", tmp_path)

    overrides = (*settings(), "--set", "TRAINING.gen_every=2")
    assert invoked("train", "nist_config.ini", *overrides, "--tensorboard", "--output", "run").stdout == "run\n"
    assert sorted(path.name for path in Path("run/evolution").iterdir()) == ["epoch_00000.png", "epoch_00002.png"]
    assert len(list(Path("run/tensorboard").iterdir())) == 1
    assert invoked("plot", "run/ckpt.h5", "--what", "evolution").stdout == "evolution.gif\n"
    with Image.open("evolution.gif") as moving:
        assert (moving.format, getattr(moving, "n_frames", 1)) == ("GIF", 2)


def test_pictures_of_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    config = parse_config("", "test", small_overrides())
    save_model(Path("ckpt.h5"), build_model(config, 49), config, (7, 7))
    Path("here").mkdir()
    run = importlib.import_module("lvkam_cli.main")._run

    def invoked(*arguments: str) -> tuple[int, str, str]:  # in this process, which has torch already
        monkeypatch.setattr(sys, "argv", ["lvkam", "plot", "ckpt.h5", "--what", *arguments])
        status, said = run(Interruption()), capsys.readouterr()
        return status, said.out, said.err

    assert invoked("functions,traversal", "--format", "svg", "--coordinates", "3, 1", "--output", "here") == (
        0, "here/functions.svg\nhere/traversal.svg\n", "",
    )  # fmt: skip
    assert {path.name for path in Path("here").iterdir()} == {"functions.svg", "traversal.svg"}
    assert all(path.read_bytes().startswith(b"<?xml") for path in Path("here").iterdir())
    assert invoked("samples", "--output", "here/a.PDF", "--format", "svg") == (0, "here/a.PDF\n", "")
    assert invoked("functions,traversal", "--output", "new/folder")[:2] == (
        0, "new/folder/functions.png\nnew/folder/traversal.png\n",
    )  # fmt: skip
    before = sorted(tmp_path.rglob("*"))
    refused = {
        ("prior,samples", "--output", "a.png"): "error: a.png/prior.png: there is no folder a.png\n",
        ("prior,samples", "--output", "ckpt.h5"): "error: ckpt.h5/prior.png: there is no folder ckpt.h5\n",
        ("prior", "--output", "there/a.png"): "error: there/a.png: there is no folder there\n",
        ("prior", "--output", "here"): "error: here: is a folder\n",
        # before anything is drawn, whatever else could be
        ("functions,prior", "--coordinates", "0,99"): "error: ckpt.h5: coordinate 99: its model has 0 to 3\n",
        ("all", "--coordinates", "4"): "error: ckpt.h5: coordinate 4: its model has 0 to 3\n",
        ("prior", "--coordinates", "1,1"): "Error: Invalid value for '--coordinates': '1,1' names one twice\n",
        ("prior,prior",): "Error: Invalid value for '--what': 'prior,prior' names one twice\n",
        ("prior,mood",): "Error: Invalid value for '--what': 'mood' is not one of 'prior', 'functions', ",
        ("",): "Error: Invalid value for '--what': '' is not one of 'prior', 'functions', ",
    }
    for arguments, message in refused.items():
        status, out, err = invoked(*arguments)
        assert (status, out) == (2, ""), arguments
        assert err.partition("\n\n")[2].startswith(message) if message[0] == "E" else err == message
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "overrides",
    [
        ("estimator=telescoped",),
        ("estimator=steppingstone", "resampler=residual", "num_temps=9"),
        ("resampler=systematic", "num_temps=9"),
        ("moves_per_temperature=1", "num_temps=4"),
        ("num_temps=-1",),
    ],
)
def test_every_way_of_training_runs(
    overrides: tuple[str, ...], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    keys = [f"THERMODYNAMIC_INTEGRATION.{override}" for override in overrides]
    done = invoked("train", str(folder / "nist_config.ini"), *settings("TRAINING.N_epochs=1", *keys))
    method = "Vanilla" if overrides == ("num_temps=-1",) else "Thermodynamic"
    assert done.stdout == f"logs/{method}/uniform/MNIST_1\n"


def test_check_trains_nothing(folder: Path, tmp_path: Path) -> None:
    done = lvkam("check", folder / "nist_config.ini", *settings("TRAINING.N_epochs=7"), "--seed", "5", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "folder       logs/Thermodynamic/uniform/MNIST_5\n" in done.stdout
    assert "steps        7 epochs of 8 steps of 25 images and 16 samples\n" in done.stdout
    assert "objective    thermodynamic integration, trapezoid, 69 temperatures, resampling: none\n" in done.stdout
    assert "kernels      not compiled: 56 steps would not repay it\n" in done.stdout
    assert "\nseed = 5\n" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_fashion_mnist_by_data_dir(folder: Path, tmp_path: Path, data_dir: Path) -> None:
    arguments = settings("TRAINING.dataset=FMNIST", "TRAINING.N_epochs=1", "MIX_PRIOR.π_0=gaussian")
    done = lvkam("train", folder / "nist_config.ini", *arguments, "--seed", "2", "--data-dir", data_dir, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "logs/Thermodynamic/gaussian/FMNIST_2\n"), done.stderr
    real = h5_arrays(tmp_path / "logs/Thermodynamic/gaussian/FMNIST_2/real_images.h5")["samples"]
    mnist = h5_arrays(run_of(folder) / "real_images.h5")["samples"]
    assert real.shape == mnist.shape
    assert not np.array_equal(real, mnist)


def test_a_second_run_needs_overwrite(folder: Path) -> None:
    before = {p.name: p.read_bytes() for p in run_of(folder).iterdir()}
    done = lvkam("train", "nist_config.ini", *settings(), cwd=folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: logs/Thermodynamic/uniform/MNIST_1: holds the results of a run (config.ini, ")
    assert {p.name: p.read_bytes() for p in run_of(folder).iterdir()} == before


BAD_INPUT = {
    "missing file": (["train", "none.ini"], "error: none.ini: no such file\n"),
    "not an INI": (["train", "picture.png"], "error: picture.png: not a text file in UTF-8 (byte 0)\n"),
    "unknown key": (
        ["train", "c.ini", "--set", "TRAINING.batchsize=3"],
        "error: --set: [TRAINING] batchsize: unknown key; did you mean 'batch_size'?\n",
    ),
    "wrong type": (
        ["train", "c.ini", "--set", "TRAINING.N_epochs=ten"],
        "error: --set: [TRAINING] N_epochs = ten: must be an integer from 1 to 1000000000\n",
    ),
    "out of range": (
        ["check", "c.ini", "--set", "MIX_PRIOR.spline_degree=6"],
        "error: --set: [MIX_PRIOR] spline_degree = 6: must be an integer from 1 to 5\n",
    ),
    "contradicting widths": (
        ["train", "c.ini", "--set", "MIX_PRIOR.layer_widths=50, 100"],
        "error: c.ini: [KAN_LIKELIHOOD] expert_widths = 101, 202: must be a list that begins with 100, the number of "
        "latent coordinates (the last of [MIX_PRIOR] layer_widths)\n",
    ),
    "more images than there are": (
        ["train", "c.ini", "--set", "TRAINING.N_train=60001"],
        "error: --set: [TRAINING] N_train = 60001: must be at most 60000, the training images of MNIST\n",
    ),
    "batch larger than the data": (
        ["train", "c.ini", "--set", "TRAINING.N_train=63"],
        "error: c.ini: [TRAINING] batch_size = 64: must be at most N_train = 63\n",
    ),
    "several at once": (
        ["train", "c.ini", "--set", "TRAINING.N_epochs=0", "--set", "NONSENSE.key=1"],
        "error: --set: [NONSENSE]: unknown section; known sections: [MIX_PRIOR], [KAN_LIKELIHOOD], [GRID_UPDATING], "
        "[THERMODYNAMIC_INTEGRATION], [TRAINING], [OPTIMIZER], [LINE_SEARCH]\n"
        "--set: [TRAINING] N_epochs = 0: must be an integer from 1 to 1000000000\n",
    ),
    "folder that is a file": (
        ["train", "c.ini", "--output", "c.ini"],
        "error: c.ini: is not a folder\n",
    ),
    "unknown device": (["train", "c.ini", "--device", "toaster"], "error: --device toaster: no such device here"),
    "contradicting ways to resample": (
        [
            "train",
            "c.ini",
            "--set",
            "THERMODYNAMIC_INTEGRATION.estimator=telescoped",
            "--set",
            "THERMODYNAMIC_INTEGRATION.resampler=residual",
        ],
        "error: --set: [THERMODYNAMIC_INTEGRATION] resampler = residual: must be none, since estimator = telescoped "
        "resamples by itself\n",
    ),
    "a picture of no known kind": (
        ["plot", "ckpt.h5", "--what", "temperatures", "--output", "t.gif"],
        "error: t.gif: must end in .png, .pdf or .svg\n",
    ),
    "nothing that can be drawn": (["plot", "none.h5", "--what", "mood"], "Error: Invalid value for '--what'"),
    "no checkpoint": (["sample", "c.ini"], "error: c.ini: not a checkpoint of lvkam (not an HDF5 file)\n"),
    "missing checkpoint": (["evaluate", "none.h5"], "error: none.h5: no such file\n"),
    "another HDF5 file": (
        ["info", "other.h5"],
        "error: other.h5: not a checkpoint of lvkam (an HDF5 file without a seal)\n",
    ),
    "unknown option": (["train", "c.ini", "--nonsense"], "Error: No such option"),
    "unknown command": (["fly"], "Error: No such command 'fly'."),
    "number out of range": (["sample", "c.ini", "-n", "0"], "Error: Invalid value for '-n': 0 is not in the range"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_message_and_status_2(case: str, folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "nist_config.ini", tmp_path / "c.ini")
    shutil.copy(run_of(folder) / "loss.png", tmp_path / "picture.png")
    shutil.copy(run_of(folder) / "real_images.h5", tmp_path / "other.h5")
    shutil.copy(run_of(folder) / "ckpt.h5", tmp_path / "ckpt.h5")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    arguments, message = BAD_INPUT[case]
    done = lvkam(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    if message.endswith("\n"):
        assert done.stderr == message
    else:
        assert message in done.stderr
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_damaged_checkpoint_is_refused(folder: Path, tmp_path: Path) -> None:
    content = bytearray((run_of(folder) / "ckpt.h5").read_bytes())
    weights = h5_arrays(run_of(folder) / "ckpt.h5")["generator/layers/1/w_base"].tobytes()
    content[content.index(weights) + 100] ^= 1
    (tmp_path / "bad.h5").write_bytes(content)
    done = lvkam("info", "bad.h5", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: bad.h5: damaged: its bytes do not match its seal\n"
    reseal(tmp_path / "bad.h5")
    done = lvkam("info", "bad.h5", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: bad.h5: damaged: the checksum of generator/layers/1/w_base does not match\n"


def test_a_folder_that_cannot_be_written_ends_with_status_1(folder: Path, tmp_path: Path) -> None:
    done = lvkam("train", folder / "nist_config.ini", "--output", "/proc/lvkam", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "failed: /proc/lvkam: cannot be written (No such file or directory)\n"
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_diverges_ends_with_status_1(folder: Path, tmp_path: Path) -> None:
    overrides = settings("OPTIMIZER.type=sgd", "OPTIMIZER.learning_rate=1e30")
    done = lvkam("train", folder / "nist_config.ini", *overrides, cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert re.fullmatch(r"failed: (epoch \d, iteration \d: |prior: ).*", done.stderr.splitlines()[-1])
    assert not (run_of(tmp_path) / "ckpt.h5").exists()


def test_too_little_memory_is_one_message(folder: Path, tmp_path: Path) -> None:
    overrides = settings("MIX_PRIOR.layer_widths=1000000, 1000000", "KAN_LIKELIHOOD.expert_widths=1000000")
    done = lvkam("train", folder / "nist_config.ini", *overrides, cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("failed: out of memory; ")


@pytest.mark.parametrize(
    ("number", "status"), [pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow), (signal.SIGTERM, 143)]
)
def test_a_signal_saves_and_ends_with_its_status(number: int, status: int, folder: Path, tmp_path: Path) -> None:
    # so long a run would compile its kernels first
    overrides = settings("TRAINING.N_epochs=100000", "TRAINING.compile=false")
    arguments = ["train", str(folder / "nist_config.ini")]
    process = subprocess.Popen(
        [*PROGRAM, *arguments, *overrides],
        cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    name = "logs/Thermodynamic/uniform/MNIST_1"
    try:
        deadline = time.monotonic() + 60
        while not (run_of(tmp_path) / "ckpt.h5").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        if number == signal.SIGTERM:  # nobody else writes there meanwhile
            other = lvkam(*arguments, *overrides, "--resume", cwd=tmp_path)
            assert (other.returncode, other.stdout) == (2, "")
            told = f"error: {name}: another training is writing here: process {process.pid} on {socket.gethostname()}, "
            assert other.stderr.startswith(told)
        process.send_signal(number)
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == status
    assert output == ""
    assert errors.splitlines()[-1] == f"interrupted; saved in {name}/ckpt.h5; the same command with --resume goes on"
    assert "Traceback" not in errors
    assert sorted(p.name for p in run_of(tmp_path).iterdir() if p.name not in {".lock", "best.h5"}) == [
        "ckpt.h5", "config.ini", "loss.csv", "real_images.h5", "real_images.png",
    ]  # fmt: skip
    found = lvkam("info", run_of(tmp_path) / "ckpt.h5", "--json", cwd=tmp_path)
    assert found.returncode == 0
    described = json.loads(found.stdout)
    epochs = settings(f"TRAINING.N_epochs={described['epoch'] + 1}", "TRAINING.compile=false")
    done = lvkam(*arguments, *epochs, "--resume", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"{name}\n"), done.stderr
    batches = described["iteration"] - 8 * described["epoch"]
    going_on = f"going on after {described['epoch']} epochs and {batches} batches, iteration {described['iteration']}"
    assert going_on in done.stderr.splitlines()
    with (run_of(tmp_path) / "loss.csv").open(newline="") as file:
        assert [row["Epoch"] for row in csv.DictReader(file)] == [str(n) for n in range(described["epoch"] + 2)]


def test_overwrite_and_resume_exclude_each_other(folder: Path) -> None:
    before = {p.name: p.read_bytes() for p in run_of(folder).iterdir()}
    done = lvkam("train", "nist_config.ini", *settings(), "--overwrite", "--resume", cwd=folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1] == "Error: --overwrite and --resume exclude each other"
    assert {p.name: p.read_bytes() for p in run_of(folder).iterdir()} == before


def test_resume_writes_what_a_finished_run_lacks(folder: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(run_of(folder), tmp_path / "run"))
    before = {p.name: p.read_bytes() for p in run.iterdir()}
    for name in ("loss.csv", "loss.png", "generated_images.png"):
        (run / name).unlink()
    arguments = ("train", folder / "nist_config.ini", *settings(), "--output", "run", "--resume")
    done = lvkam(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "run\n"), done.stderr
    lacked = "finished already; missing: loss.csv, loss.png, generated_images.png"
    assert lacked in done.stderr.splitlines()
    assert {p.name: p.read_bytes() for p in run.iterdir()} == before


def test_resume_of_another_run_is_refused_before_torch_is_needed(folder: Path) -> None:
    before = {p.name: p.read_bytes() for p in run_of(folder).iterdir()}
    program = (
        "import sys; sys.argv = ['lvkam', *sys.argv[1:]]\n"
        "from lvkam_cli.main import main\n"
        "try: main()\n"
        "finally: print('torch' in sys.modules)"
    )
    name = "logs/Thermodynamic/uniform/MNIST_1"
    arguments = ["train", "nist_config.ini", *settings("OPTIMIZER.learning_rate=0.5"), "--output", name, "--resume"]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "False\n")
    assert done.stderr == (
        f"error: nist_config.ini: [OPTIMIZER] learning_rate = 0.5: the run in {name} has 0.005, "
        "and goes on with that only\n"
    )
    assert {p.name: p.read_bytes() for p in run_of(folder).iterdir()} == before


def test_resume_of_nothing_begins(folder: Path, tmp_path: Path) -> None:
    overrides = settings("TRAINING.N_epochs=1", "TRAINING.N_train=25")
    done = lvkam("train", folder / "nist_config.ini", *overrides, "--output", "run", "--resume", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "run\n"), done.stderr
    assert done.stderr.splitlines()[0] == "run: no checkpoint yet: starting afresh"


def test_older_keys_are_accepted_with_a_warning(tmp_path: Path) -> None:
    (tmp_path / "old.ini").write_text(
        "[kan_likelihood]\nlayer_widths = 101, 8\noutput_dim = 3\n[TRAINING]\nupdate_grid = false\n", encoding="utf-8"
    )
    done = lvkam("check", "old.ini", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stderr.splitlines() == [
        "warning: old.ini: [KAN_LIKELIHOOD] layer_widths: an older name of [KAN_LIKELIHOOD] expert_widths",
        "warning: old.ini: [KAN_LIKELIHOOD] output_dim: an older key, without effect",
    ]
    assert "generator    101 -> 8 -> 784\n" in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU: the message names it instead")
def test_use_gpu_without_one_says_what_is_used(folder: Path, tmp_path: Path) -> None:
    done = lvkam("train", folder / "nist_config.ini", *settings("TRAINING.use_gpu=true"), cwd=tmp_path)
    assert "parameters on cpu (1 threads)" in done.stderr


def test_compile_true_without_a_compiler_is_refused(folder: Path, tmp_path: Path) -> None:
    arguments = ("train", folder / "nist_config.ini", *settings("TRAINING.compile=true"))
    environment = {**ENVIRONMENT, **without_compiler(tmp_path)}
    done = lvkam(*arguments, "--output", "run", cwd=tmp_path, environment=environment)
    assert (done.returncode, done.stdout) == (2, "")
    message, *others = done.stderr.splitlines()
    assert others == []
    assert re.fullmatch(
        r"error: .*: \[TRAINING\] compile = true: must be auto or false: no compiler works here \(.*/nowhere/c\+\+.*\)",
        message,
    )
    assert not (tmp_path / "run").exists()


def test_compile_auto_without_a_compiler_trains_and_says_so(folder: Path, tmp_path: Path) -> None:
    # as many steps as repay it; the first epoch is enough to see
    overrides = settings(f"TRAINING.N_epochs={STEPS_THAT_REPAY // 8}")
    command = [*PROGRAM, "train", str(folder / "nist_config.ini"), *overrides, "--output", "run"]
    environment = {**ENVIRONMENT, **without_compiler(tmp_path), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line.rstrip())
            if line.startswith("epoch 1/"):
                process.terminate()
    assert process.returncode == 143, lines
    said = [line for line in lines if "compile" in line]
    assert len(said) == 1
    assert re.fullmatch(r"kernels not compiled: no compiler works here \(.*/nowhere/c\+\+.*\)", said[0])
    assert not h5_arrays(tmp_path / "run" / "ckpt.h5")["training/compiled"]


def test_compile_true_trains_compiled(folder: Path, tmp_path: Path) -> None:
    require_compiler()
    overrides = settings(  # 6 intervals, as in other tests, so that kernels are found compiled
        "TRAINING.compile=true", "TRAINING.N_epochs=1", "TRAINING.N_train=50",
        "MIX_PRIOR.grid_size=6", "KAN_LIKELIHOOD.grid_size=6",
    )  # fmt: skip
    done = lvkam("train", folder / "nist_config.ini", *overrides, "--output", "run", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "run\n"), done.stderr
    assert done.stderr.splitlines()[1].startswith("kernels are compiled ")
    # nothing of what the compiler has to say reaches the user
    assert "warning" not in done.stderr.lower()
    assert h5_arrays(tmp_path / "run" / "ckpt.h5")["training/compiled"]


# --- data


SHIPPED = REPOSITORY / "lvkam" / "datasets" / "MNIST" / "raw"


def test_data_verifies_and_draws_a_data_set(tmp_path: Path) -> None:
    done = lvkam("data", "MNIST", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = [re.split(r"  +", line, maxsplit=1) for line in done.stdout.splitlines()]
    names = ["train-images-idx3-ubyte", "t10k-images-idx3-ubyte"]
    assert [key for key, _ in lines] == [*names, "train", "test", "values", "picture"]
    assert [value for _, value in lines] == [
        *(f"{SHIPPED / name}.gz, verified" for name in names),
        "60000 images of 28x28, uint8", "10000 images of 28x28, uint8", "values divided by 255", "MNIST.png",
    ]  # fmt: skip
    with gzip.open(SHIPPED / "train-images-idx3-ubyte.gz") as file:
        images = np.frombuffer(file.read(16 + 784 * MOST_IMAGES)[16:], np.uint8).reshape(-1, 28, 28)
    with Image.open(tmp_path / "MNIST.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(image_grid(images / np.float32(255))))
    before = (tmp_path / "MNIST.png").stat().st_mtime_ns
    again = lvkam("data", "MNIST", cwd=tmp_path)
    assert (again.returncode, again.stdout) == (2, "")
    assert again.stderr == "error: MNIST.png: exists already; give --overwrite to replace it\n"
    assert (tmp_path / "MNIST.png").stat().st_mtime_ns == before
    assert lvkam("data", "MNIST", "--overwrite", "--output", "MNIST.png", cwd=tmp_path).returncode == 0
    assert (tmp_path / "MNIST.png").stat().st_mtime_ns > before


def test_data_tells_other_bytes_than_the_published_ones(tmp_path: Path) -> None:
    (raw := tmp_path / "own" / "MNIST" / "raw").mkdir(parents=True)
    for name in ("train-images-idx3-ubyte.gz", "t10k-images-idx3-ubyte.gz"):
        shutil.copy(SHIPPED / name, raw)
    with gzip.open(raw / "t10k-images-idx3-ubyte.gz") as file:
        content = bytearray(file.read())
    content[5000] ^= 1
    (raw / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(content, 1))
    done = lvkam("data", "MNIST", "--data-dir", "own", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: own/MNIST/raw/t10k-images-idx3-ubyte.gz: has other bytes than the published t10k-images-idx3-ubyte: "
        "remove it, and it is fetched anew\n"
    )
    assert not (tmp_path / "MNIST.png").exists()


def test_data_describes_files_of_ones_own(tmp_path: Path) -> None:
    write_table(tmp_path / "a.csv")
    done = lvkam("data", "a.csv", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == ("samples  230 rows of 3 columns, float64\ncolumns  length, width, $speed$\npicture  a.png\n")
    (tmp_path / "pictures").mkdir()
    for number in range(3):
        Image.fromarray(np.full((4, 5, 3), 50 * number, np.uint8)).save(tmp_path / "pictures" / f"{number}.png")
    done = lvkam("data", "pictures/", "--output", "p.png", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == ("samples  3 images of 4x5x3, uint8\nvalues   values divided by 255\npicture  p.png\n")
    for name in ("a.png", "p.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


BAD_DATA = {
    "MNISD": "unknown data set MNISD; did you mean MNIST?",
    "none.npz": "none.npz: no such file or folder",
    "a.txt": "a.txt: must be a folder of images, or a file that ends in .npz, .h5, .hdf5, .csv",
    "missing.csv": "missing.csv: line 3: the column b has no value there; fill or drop it first",
    "empty": "empty: holds no image; must hold some, .png, .jpg, .jpeg, .bmp, .gif, .tif, .tiff, .webp, .pgm, .ppm, "
    "or the folders train and test",
}


@pytest.mark.parametrize(
    ("command", "name"),
    [("data", "MNISD"), ("data", "empty"), ("evaluate", "none.npz"), ("check", "missing.csv"), ("train", "a.txt")],
)
def test_bad_data_is_one_message_and_status_2(command: str, name: str, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("1,2\n")
    (tmp_path / "missing.csv").write_text("a,b\n1,2\n3,NA\n")
    (tmp_path / "empty").mkdir()
    shutil.copy(run_of(folder) / "ckpt.h5", tmp_path)
    before = sorted(p.name for p in tmp_path.iterdir())
    config, prefix = folder / "nist_config.ini", ""
    if command in {"check", "train"}:
        arguments = [str(config), *settings(f"TRAINING.dataset={name}")]
        prefix = f"{config}: [TRAINING] dataset = {name}: "
    else:
        arguments = ["ckpt.h5", "--data", name] if command == "evaluate" else [name]
    done = lvkam(command, *arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {prefix}{BAD_DATA[name]}\n")
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_a_table_from_end_to_end(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    table = write_table(tmp_path / "my table.csv")
    overrides = [w for o in table_overrides(Path("my table.csv")) for w in ("--set", o)]
    done = invoked("train", str(folder / "nist_config.ini"), *overrides)
    assert done.stdout == "logs/Thermodynamic/uniform/my table_1\n"
    assert done.stderr.startswith("my table.csv, 3 columns, 200 rows, columns standardised; ")
    run = tmp_path / "logs/Thermodynamic/uniform/my table_1"
    described = json.loads(invoked("info", str(run / "ckpt.h5"), "--json").stdout)
    assert (described["columns"], described["image_shape"]) == (["length", "width", "$speed$"], [3])
    invoked("sample", str(run / "ckpt.h5"), "-n", "300")
    samples = h5_arrays(tmp_path / "samples.h5")["samples"]
    assert samples.shape == (300, 3)
    assert (np.abs(samples.mean(0) - table.mean(0)) < 3 * table.std(0)).all()
    evaluate = ("evaluate", str(run / "ckpt.h5"), "--num-samples", "50")
    done = lvkam(*evaluate, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: {run / 'ckpt.h5'}: its model was trained with files of one's own: name the data with --data\n"
    )
    done = invoked(*evaluate, "--data", "my table.csv", "--json", "--per-image", "rows.csv")
    assert json.loads(done.stdout)["num_images"] == 30  # what it has not seen
    done = invoked(*evaluate, "--data", "my table.csv")
    assert re.match(r"NLL {20}-?\d+\.\d{3} \+- \d+\.\d{3} nats a row\n", done.stdout)
    assert "30 of my table.csv; columns standardised; without the first 200\n" in done.stdout
    assert (tmp_path / "rows.csv").read_text().splitlines()[0].startswith("Row,")
