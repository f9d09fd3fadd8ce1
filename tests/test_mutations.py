"""The list of faults that tests must catch is not stale, and what tries them tells the caught from the others."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.mutations import FAULTS, NOT_CAUGHT, Fault, Outcome, check, first_failure, main, problem_of


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_can_be_made_and_its_tests_are_there(fault: Fault) -> None:
    assert problem_of(fault) is None
    assert fault.right != fault.wrong
    assert fault.tests


def test_every_fault_has_a_name_of_its_own() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)


FILES = {
    "pyproject.toml": "[tool.pytest.ini_options]\ntestpaths = ['tests']\n",
    "lvkam/__init__.py": "",
    "lvkam/sums.py": "def add(a, b):\n    return a + b\n\n\ndef twice(a):\n    return 2 * a\n",
    "cli/__init__.py": "from lvkam.sums import twice\n",
    "tests/test_sums.py": "from lvkam.sums import add\nfrom lvkam_cli import twice\n\n\n"
    "def test_sums():\n    assert add(2, 3) == 5\n    assert twice(0) == 0\n",
    "tests/test_broken.py": "def test_broken():\n    assert False\n",
    "lvkam/sums.cpp": "int add(int a, int b) { return a + b; }\n",
    "tests/test_cpp.py": "from pathlib import Path\n\n\n"
    "def test_cpp():\n    assert 'a + b' in Path('lvkam/sums.cpp').read_text()\n",
}
SUMS, TEST = "lvkam/sums.py", "tests/test_sums.py::test_sums"
MADE: dict[Fault, tuple[bool, str]] = {
    Fault("minus", SUMS, "a + b", "a - b", (TEST,)): (True, TEST),
    Fault("thrice", SUMS, "2 * a", "3 * a", (TEST,)): (False, NOT_CAUGHT),
    Fault("no test passes", SUMS, "a + b", "a - b", ("tests/test_broken.py",)): (
        False, "fails without the fault too: tests/test_broken.py::test_broken",
    ),
    Fault("two places", SUMS, "return ", "yield ", (TEST,)): (
        False, "lvkam/sums.py: holds 2 times instead of once: return ",
    ),
    Fault("no Python", SUMS, "a + b", "a +", (TEST,)): (
        False, "lvkam/sums.py: would be no Python in line 2: invalid syntax",
    ),
    Fault("no Python at all", "lvkam/sums.cpp", "a + b", "a - b", ("tests/test_cpp.py",)): (
        True, "tests/test_cpp.py::test_cpp",
    ),
    Fault("no file", "lvkam/gone.py", "a", "b", (TEST,)): (False, "lvkam/gone.py: no such file"),
    Fault("no test", SUMS, "a + b", "a - b", (TEST, "tests/test_sums.py::test_gone[1]")): (
        False, "no such test: tests/test_sums.py::test_gone[1]",
    ),
    Fault("no file of tests", SUMS, "a + b", "a - b", ("tests/test_gone.py",)): (
        False, "no such test: tests/test_gone.py",
    ),
}  # fmt: skip


def test_the_caught_are_told_from_the_others_and_the_code_is_left_alone(tmp_path: Path) -> None:
    if shutil.which("git") is None:
        pytest.skip("git is not here, which lists the files to copy")
    for name, text in FILES.items():
        (path := tmp_path / name).parent.mkdir(exist_ok=True)
        path.write_text(text)
    for command in ("init --quiet", "add ."):
        subprocess.run(["git", *command.split()], cwd=tmp_path, check=True)
    outcomes = check(list(MADE), tmp_path, jobs=2)
    assert [outcome.name for outcome in outcomes] == [fault.name for fault in MADE]
    assert [(outcome.is_caught, outcome.told) for outcome in outcomes] == list(MADE.values())
    assert {name: (tmp_path / name).read_text() for name in FILES} == FILES


def test_the_first_failure_is_that_of_the_summary() -> None:
    log = "ERROR    root:a.py:3 what a test has logged\nFAILED to connect\n=== short test summary info ===\n"
    failed = "FAILED tests/test_a.py::test_b[of two, 1.5] - assert 1 == 2 - 3\nFAILED tests/test_a.py::test_c\n"
    assert first_failure(log + failed) == "tests/test_a.py::test_b[of two, 1.5]"
    assert first_failure(f"{log}ERROR tests/reliability/test_d.py::test_e\n1 error") == (
        "tests/reliability/test_d.py::test_e"
    )  # fmt: skip
    assert first_failure(f"{log}2 passed in 0.1s") is None


@pytest.mark.parametrize(("is_caught", "status"), [(True, 0), (False, 1)])
def test_the_exit_status_says_whether_all_were_caught(
    is_caught: bool, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes = [Outcome("a", True, "tests/a.py::b", 12.34), Outcome("a longer name", is_caught, "told", 1.0)]
    monkeypatch.setattr("tests.mutations.check", lambda *_, **__: outcomes)
    assert main(["--only", FAULTS[0].name, "--jobs", "2"]) == status
    assert capsys.readouterr().out.splitlines() == [
        "fault          caught by      seconds",
        "a              tests/a.py::b     12.3",
        "a longer name  told               1.0",
        "",
        f"{1 + is_caught} of 2 faults were caught",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "nothing"], "--only: no fault is called 'nothing'; there are: log Z dropped; "),
        (["--jobs", "0"], "--jobs 0: must be at least 1"),
        (["--faster"], "unrecognized arguments: --faster"),
    ],
)
def test_arguments_that_make_no_sense_are_told(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
