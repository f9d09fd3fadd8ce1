"""The distributions hold all that the program needs, and run outside the checkout."""

from __future__ import annotations

import email
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, h5_arrays, small_overrides

LEFT_OUT = shutil.ignore_patterns(".*", "build", "dist", "logs", "results", "*.egg-info", "__pycache__")


def run(*arguments: str | Path, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=cwd, env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a source distribution and of the wheel made from it."""
    folder = tmp_path_factory.mktemp("packaging")
    shutil.copytree(REPOSITORY, folder / "clone", ignore=LEFT_OUT)
    run("-m", "build", "--no-isolation", "--outdir", folder / "dist", folder / "clone", cwd=folder)
    return folder / "dist"


def files_of(folder: str) -> set[str]:
    """What git would have of a package: its modules, templates and data, relative to the folder."""
    paths = (path for path in (REPOSITORY / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(REPOSITORY / folder).as_posix() for path in paths}


def test_the_wheel_holds_both_packages_and_nothing_else(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    assert wheel.name == f"lvkam-{version('lvkam')}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        described = email.message_from_bytes(archive.read(f"lvkam-{version('lvkam')}.dist-info/METADATA"))
    expected = {f"lvkam/{name}" for name in files_of("lvkam")} | {f"lvkam_cli/{name}" for name in files_of("cli")}
    assert names == expected
    assert "lvkam/py.typed" in names
    assert described["Requires-Python"] == ">=3.11"
    assert described.get_all("License-File") == ["LICENSE", "lvkam/datasets/MNIST/LICENSE.md"]


def test_the_source_distribution_holds_what_a_wheel_is_made_of(built: Path) -> None:
    (source,) = built.glob("*.tar.gz")
    assert source.name == f"lvkam-{version('lvkam')}.tar.gz"
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {f"{folder}/{name}" for folder in ("lvkam", "cli", "config") for name in files_of(folder)}
    assert {
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "CITATION.cff",
        "CHANGELOG.md",
        "nist_config.ini",
        *wanted,
    } <= names


def test_the_wheel_alone_trains_draws_and_reports(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    (elsewhere := tmp_path / "elsewhere").mkdir()
    (elsewhere / "empty.ini").write_text("", encoding="utf-8")

    def lvkam(*arguments: str | Path) -> str:
        return run("-m", "lvkam", *arguments, cwd=elsewhere, PYTHONPATH=str(site), LVKAM_DATA_DIR="",
                   XDG_CACHE_HOME=str(tmp_path / "cache"))  # fmt: skip

    where = run("-c", "import lvkam, lvkam_cli; print(lvkam.__file__, lvkam_cli.__file__)", cwd=elsewhere,
                PYTHONPATH=str(site))  # fmt: skip
    assert where.split() == [str(site / "lvkam" / "__init__.py"), str(site / "lvkam_cli" / "__init__.py")]
    assert lvkam("--version") == f"lvkam, version {version('lvkam')}\n"
    settings = [word for override in small_overrides() for word in ("--set", override)]
    assert lvkam("train", "empty.ini", *settings, "--output", "run") == "run\n"
    lvkam("sample", "run/ckpt.h5", "-n", "12")
    lvkam("plot", "run/ckpt.h5", "--what", "prior")
    lvkam("report", "run", "--metrics", "nll")
    assert h5_arrays(elsewhere / "samples.h5")["samples"].shape == (12, 7, 7)
    assert (elsewhere / "prior.png").read_bytes().startswith(b"\x89PNG")
    assert "makeGenerator" in (elsewhere / "report.html").read_text(encoding="utf-8")
