"""The code in the documentation does what it says."""

from __future__ import annotations

import doctest

import pytest

from tests.conftest import REPOSITORY


def test_the_loop_of_ones_own_runs_and_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    page = REPOSITORY / "docs" / "python.md"
    found = doctest.testfile(str(page), module_relative=False)
    assert found.failed == 0
    assert found.attempted >= 7
    code = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith((">>>", "..."))]
    assert len(code) < 15
