"""The code in the documentation does what it says."""

from __future__ import annotations

import doctest
import re
import shutil
from pathlib import Path

import pytest

from lvkam.checkpoint import read_checkpoint
from tests.conftest import REPOSITORY


def test_the_loop_of_ones_own_runs_and_is_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(REPOSITORY / "nist_config.ini", tmp_path)
    monkeypatch.chdir(tmp_path)
    page = REPOSITORY / "docs" / "python.md"
    found = doctest.testfile(str(page), module_relative=False)
    assert found.failed == 0
    assert found.attempted >= 7
    code = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith((">>>", "..."))]
    assert len(code) < 15
    assert read_checkpoint(tmp_path / "own.h5").image_shape == (8, 8)


@pytest.mark.parametrize(
    "page", [REPOSITORY / "README.md", *sorted(REPOSITORY.glob("docs/*.md"))], ids=lambda p: p.name
)
def test_every_picture_and_page_that_is_linked_is_there(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []
