"""The undisturbed run that all others must equal."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.reliability.harness import outcome, run, train_command, working_folder


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the small training ends with."""
    folder: Path = working_folder(tmp_path_factory.mktemp("undisturbed"))
    done = run(train_command(), folder)
    assert done.returncode == 0, done.stderr
    return outcome(folder / "run")
