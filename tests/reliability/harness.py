"""Shared by the reliability tests: a small real training, its command line, and what it ends with."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.conftest import REPOSITORY, h5_arrays, small_overrides

SOAK = bool(os.environ.get("LVKAM_SOAK"))
"""Whether the tests run in their whole form, for `tests/run_soak.sh`."""

PROGRAM = str(Path(sys.executable).with_name("lvkam"))
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "LVKAM_DATA_DIR": "", "PYTHONUNBUFFERED": "1"}

TRAINING = [
    *small_overrides(), "TRAINING.N_epochs=4", "TRAINING.checkpoint_minutes=1e-9",
    "TRAINING.num_generated_samples=200", "GRID_UPDATING.grid_update_frequency=3", "GRID_UPDATING.grid_update_decay=1",
    "TRAINING.N_train=190",
]  # fmt: skip
"""`--set` values: 8 steps an epoch, the last of a ragged batch, a grid update every third, a checkpoint after each."""


def scaled(short: int, whole: int) -> int:
    """How many: in the normal tests, and for the soak."""
    return whole if SOAK else short


def report(line: str, figure: object) -> None:
    """Keep a figure for `docs/reliability.md`, where the soak collects them."""
    if path := os.environ.get("LVKAM_SOAK_REPORT"):
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps([line, str(figure)]) + "\n")


def settings(*overrides: str) -> list[str]:
    return [word for override in (*TRAINING, *overrides) for word in ("--set", override)]


def working_folder(folder: Path) -> Path:
    """A folder with the repository's configuration in it."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(REPOSITORY / "nist_config.ini", folder)
    return folder


def train_command(*options: str, overrides: tuple[str, ...] = ()) -> list[str]:
    return [PROGRAM, "train", "nist_config.ini", *settings(*overrides), "--output", "run", *options]


def start(command: list[str], cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command, cwd=cwd, env=ENVIRONMENT, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def wait_for(process: subprocess.Popen[str], beginning: str) -> list[str]:
    """Lines of standard error, up to one that begins so, or the last one."""
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if line.startswith(beginning):
            break
    return lines


def run(command: list[str], cwd: Path, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=cwd, env=ENVIRONMENT, text=True, capture_output=True, timeout=timeout, check=False
    )


def info(checkpoint: Path) -> subprocess.CompletedProcess[str]:
    return run([PROGRAM, "info", str(checkpoint), "--json"], checkpoint.parent)


def outcome(folder: Path) -> dict[str, str]:
    """SHA-256 of everything that a run leaves, but for the time that it took."""
    found: dict[str, str] = {}
    for name in ("ckpt.h5", "best.h5"):
        for path, array in h5_arrays(folder / name).items():
            if path == "training/progress/seconds":
                continue
            kept = array[:, 1:] if path == "training/progress/log" else array  # the first column is the time
            found[f"{name}/{path}"] = hashlib.sha256(np.ascontiguousarray(kept).tobytes()).hexdigest()
    for name in ("config.ini", "real_images.h5", "generated_images.h5"):
        found[name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    with (folder / "loss.csv").open(newline="", encoding="utf-8") as file:
        rows = [{key: value for key, value in row.items() if key != "Time (s)"} for row in csv.DictReader(file)]
    found["loss.csv"] = json.dumps(rows)
    return found


def assert_no_traceback(stderr: str) -> None:
    assert "Traceback" not in stderr, stderr
    assert not re.search(r"^  File \"", stderr, re.MULTILINE), stderr


def table(path: Path) -> str:
    """The figures of a soak as a Markdown table: counts added up, the largest of what is a measure."""
    figures: dict[str, float] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        name, value = json.loads(line)
        known = figures.get(name, 0.0)
        figures[name] = max(known, float(value)) if name.startswith(("seconds", "MB")) else known + float(value)
    rows = [f"| {name} | {value:g} |" for name, value in sorted(figures.items())]
    return "\n".join(["| what | figure |", "|---|---|", *rows])


if __name__ == "__main__":
    print(table(Path(sys.argv[1])))
