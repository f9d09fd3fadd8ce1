"""Everything that the README tells one to type runs, in its order, in one folder; with models made small."""

from __future__ import annotations

import importlib
import shlex
import shutil
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner

from lvkam import description
from lvkam.interruption import Interruption
from tests.conftest import REPOSITORY, fenced, few_of_mnist, small_overrides, write_table
from tests.test_docs import command_lines

README = REPOSITORY / "README.md"
SMALL = [
    *small_overrides(), "TRAINING.img_resize=14, 14", "TRAINING.gen_every=1", "TRAINING.initial_sample_size=none",
]  # fmt: skip
TRAINING = {"train", "experiments", "sweep", "check"}


def made_small(words: list[str]) -> list[str]:
    """The same command with a model that trains in a second; what it names itself stays."""
    named = {value.partition("=")[0] for option, value in zip(words, words[1:], strict=False) if option == "--set"}
    small = [value for value in SMALL if value.partition("=")[0] not in named]
    if any(word.endswith("table.ini") for word in words):
        small = [value for value in small if not value.startswith(("TRAINING.img_resize", "KAN_LIKELIHOOD"))]
        small += ["KAN_LIKELIHOOD.expert_widths=4, 6"]
    if words[0] == "sweep":  # what the space chooses
        small = [value for value in small if value.partition("=")[0] in {
            "TRAINING.N_train", "TRAINING.N_test", "TRAINING.num_generated_samples", "TRAINING.N_epochs",
        }]  # fmt: skip
        small = [*(f"{v.partition('=')[0]}=600" if "N_train" in v else v for v in small), "TRAINING.compile=false"]
    return [*words, *(word for value in small for word in ("--set", value))]


def prepare(folder: Path) -> None:
    """A clone's files that commands name, data of one's own, and little of the data sets that have names."""
    shutil.copy(REPOSITORY / "nist_config.ini", folder)
    shutil.copytree(REPOSITORY / "config", folder / "config")
    rng = np.random.default_rng(0)
    np.savez(folder / "images.npz", rng.integers(0, 256, (5100, 14, 14), dtype=np.uint8))
    write_table(folder / "table.csv", 10000)
    write_table(folder / "new.csv", 50, seed=1)
    few_of_mnist(folder / "data", 600, 1000)
    shutil.copytree(folder / "data" / "MNIST", folder / "data" / "FashionMNIST")


@pytest.mark.slow
def test_a_stranger_types_everything_in_the_readme(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LVKAM_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr(description, "check_bytes", lambda *_: False)  # these are few images, and no FashionMNIST
    cli = importlib.import_module("lvkam_cli.main").cli
    seen = set()
    for words in command_lines(README):
        typed = made_small(words) if words[0] in TRAINING else words
        if words[0] == "sweep":
            typed = [*typed, "--trials=2"]  # of two that are given, the last counts
        result = CliRunner().invoke(cli, typed, obj=Interruption(), catch_exceptions=False)
        assert result.exit_code == 0, f"lvkam {shlex.join(words)}\n{result.stderr}"
        seen.add(words[0])
    assert seen == set(cli.list_commands(click.Context(cli)))

    (code,) = fenced(README, "python")
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert (names["z"].shape, names["log_p"].shape, names["images"].shape) == ((1000, 101), (1000,), (100, 196))
    assert names["evidence"].log_evidence.isfinite().all()
    assert names["annealed"].log_evidence.isfinite().all()
    assert not [path for path in (cache / "MNIST",) if path.exists()]  # nothing was fetched


def test_the_two_commands_of_the_readme_are_scripts_that_are_there() -> None:
    first, *_ = fenced(README, "bash")
    scripts = [shlex.split(line, comments=True) for line in first.splitlines()]
    assert [words[0] for words in scripts] == ["bash", "bash"]
    assert all((REPOSITORY / words[1]).is_file() for words in scripts)
