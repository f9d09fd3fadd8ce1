"""Sweeps: trials that are runs, given up and taken up again; tables, the best configuration, the page."""

from __future__ import annotations

import csv
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import pytest

from lvkam import sweep, sweep_report
from lvkam.build import load_model
from lvkam.config import Config, ConfigError, load_config
from lvkam.errors import FailureError
from lvkam.interruption import Interrupted, Interruption
from lvkam.processes import run_side_by_side
from lvkam.run_folder import OutputError, is_sweep
from lvkam.space import Dimension, read_space
from lvkam.sweep import Best, journal_of, load_study, run_sweep
from lvkam.sweep_report import SweepError, write_sweep_report
from tests.conftest import REPOSITORY, small_config, small_overrides

SPACE = "[OPTIMIZER]\nlearning_rate = 0.001 .. 0.1 log\n[TRAINING]\nbatch_size = 20 | 40\ngradient_samples = 1 .. 4\n"


@pytest.fixture
def dimensions(tmp_path: Path) -> list[Dimension]:
    path = tmp_path / "space.ini"
    path.write_text(SPACE, encoding="utf-8")
    return read_space(path, small_config())


def search(folder: Path, dimensions: list[Dimension], trials: int = 3, *more: str, **options: Any) -> Best:
    return run_sweep(
        small_config(*more), dimensions, folder, trials, say=options.pop("say", lambda _: None),
        interruption=options.pop("interruption", Interruption()), **options,
    )  # fmt: skip


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "trials.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_trial_is_a_run_and_the_best_one_is_told(tmp_path: Path, dimensions: list[Dimension]) -> None:
    said: list[str] = []
    folder = tmp_path / "sweep"
    best = search(folder, dimensions, 4, say=said.append)
    rows = table(folder)
    assert [row["State"] for row in rows] == ["done"] * 4
    nll = [float(row["Test NLL"]) for row in rows]
    assert best.nll == min(nll) == nll[best.number]
    for row in rows:
        config = load_config(folder / row["Folder"] / "config.ini")
        load_model(folder / row["Folder"] / "ckpt.h5")
        assert config.optimizer.learning_rate == float(row["OPTIMIZER.learning_rate"])
        assert (config.training.batch_size, config.training.gradient_samples) == (
            int(row["TRAINING.batch_size"]), int(row["TRAINING.gradient_samples"]),
        )  # fmt: skip
    assert best.config.read_text() == (folder / rows[best.number]["Folder"] / "config.ini").read_text()
    assert said[0].startswith("trial 0: OPTIMIZER.learning_rate=")
    assert said[1] == f"trial 0: test NLL {rows[0]['Test NLL']} nats"
    assert is_sweep(folder)
    # as many are there already: nothing is run, and more go on with them
    said.clear()
    assert search(folder, dimensions, 4, say=said.append) == best
    assert said == []
    search(folder, dimensions, 5)
    assert [row["Trial"] for row in table(folder)] == list("01234")


def test_the_same_seed_searches_the_same_places(tmp_path: Path, dimensions: list[Dimension]) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        search(tmp_path / name, dimensions, 3, f"TRAINING.seed={seed}")
    a, b, c = (
        [{key: v for key, v in row.items() if key != "Time (s)"} for row in table(tmp_path / name)] for name in "abc"
    )
    assert a == b
    assert a != c
    assert len({row["OPTIMIZER.learning_rate"] for row in a}) == 3


def test_a_trial_above_the_median_is_given_up_and_saved(
    tmp_path: Path, dimensions: list[Dimension], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if asked to stop: its folder holds a run that could go on."""
    monkeypatch.setattr(sweep, "UNJUDGED_TRIALS", 1)
    monkeypatch.setattr(sweep, "UNJUDGED_PARTS", 0)
    report, epochs = optuna.trial.Trial.report, []

    def worse_each_time(self: optuna.trial.Trial, value: float, step: int) -> None:
        epochs.append((self.number, step))
        report(self, value + 1000 * self.number, step)

    monkeypatch.setattr(optuna.trial.Trial, "report", worse_each_time)
    folder = tmp_path / "sweep"
    best = search(folder, dimensions, 3, "TRAINING.N_epochs=4")
    assert best.number == 0
    assert [row["State"] for row in table(folder)] == ["done", "given up", "given up"]
    assert [step for number, step in epochs if number == 0] == list(range(1, 21))  # four epochs, five parts each
    assert [step for number, step in epochs if number == 1] == list(range(1, 6))
    given_up = folder / "trials" / "0001"
    load_model(given_up / "ckpt.h5")
    assert not (given_up / "generated_images.h5").exists()


def test_a_signal_leaves_a_trial_that_the_same_command_goes_on_with(
    tmp_path: Path, dimensions: list[Dimension], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, interruption = tmp_path / "sweep", Interruption()
    watch = sweep._Watch.__call__

    def interrupt(self: Any, record: Any) -> None:
        watch(self, record)
        if self.trial.number == 1 and record.epoch == 1:
            interruption.number = signal.SIGTERM

    with monkeypatch.context() as patch:
        patch.setattr(sweep._Watch, "__call__", interrupt)
        with pytest.raises(Interrupted):
            search(folder, dimensions, 3, interruption=interruption)
    (left,) = [trial for trial in load_study(journal_of(folder)).trials if not trial.state.is_finished()]
    assert left.number == 1
    assert left.user_attrs["deaths"] == 0  # it was saved
    said: list[str] = []
    search(folder, dimensions, 3, say=said.append)
    assert said[0] == "trial 1: another process has left it: going on"
    assert [row["State"] for row in table(folder)] == ["done"] * 3
    undisturbed = tmp_path / "undisturbed"
    search(undisturbed, dimensions, 3)
    assert [row["Test NLL"] for row in table(folder)] == [row["Test NLL"] for row in table(undisturbed)]


def test_a_trial_that_processes_die_of_is_given_up_after_three(
    tmp_path: Path, dimensions: list[Dimension], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Death(BaseException):
        pass

    train = sweep.run_experiment

    def die(config: Config, folder: Path, **options: Any) -> Path:
        if folder.name == "0000":
            raise Death
        return train(config, folder, **options)

    monkeypatch.setattr(sweep, "run_experiment", die)
    folder = tmp_path / "sweep"
    for _ in range(3):
        with pytest.raises(Death):
            search(folder, dimensions, 2)
    assert [trial.state.name for trial in load_study(journal_of(folder)).trials] == ["RUNNING"]
    search(folder, dimensions, 2)
    first, second = table(folder)
    assert (first["State"], first["Problem"]) == ("failed", "3 processes have died of it")
    assert second["State"] == "done"


def test_a_trial_that_fails_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    path = tmp_path / "space.ini"
    # each fits the file, and one not the other
    path.write_text("[KAN_LIKELIHOOD]\noutput_activation = sigmoid | none\nlikelihood_model = bernoulli | l2\n")
    config = small_config("KAN_LIKELIHOOD.likelihood_model=l2", "KAN_LIKELIHOOD.output_activation=sigmoid")
    said: list[str] = []
    folder = tmp_path / "sweep"
    run_sweep(config, read_space(path, config), folder, 8, say=said.append, interruption=Interruption())
    failed = [row for row in table(folder) if row["State"] == "failed"]
    assert failed
    for row in failed:
        assert "[KAN_LIKELIHOOD] output_activation = none: must be sigmoid" in row["Problem"]
        assert (row["KAN_LIKELIHOOD.likelihood_model"], row["Test NLL"]) == ("bernoulli", "")
    assert any("must be sigmoid" in line for line in said)


def test_folders_of_something_else_are_left_alone(tmp_path: Path, dimensions: list[Dimension]) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").touch()
    with pytest.raises(OutputError, match=r"other: holds thesis.tex, but no sweep; give another --output"):
        search(other, dimensions)
    assert [path.name for path in other.iterdir() if not path.name.startswith(".")] == ["thesis.tex"]
    with pytest.raises(OutputError, match="is not a folder"):
        search(other / "thesis.tex", dimensions)
    folder = tmp_path / "sweep"
    search(folder, dimensions, 1)
    with pytest.raises(OutputError, match="the sweep in this folder has another configuration"):
        search(folder, dimensions, 2, "TRAINING.seed=9")
    with pytest.raises(OutputError, match="the sweep in this folder has another space"):
        search(folder, dimensions[:2], 2)


def test_a_sweep_without_a_result_has_failed(
    tmp_path: Path, dimensions: list[Dimension], monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverges(*_: Any, **__: Any) -> None:
        raise FloatingPointError("epoch 1, iteration 3: the loss is nan")

    monkeypatch.setattr(sweep, "run_experiment", diverges)
    folder = tmp_path / "sweep"
    with pytest.raises(FailureError, match=r"no trial came to its end; trials.csv says why"):
        search(folder, dimensions, 2)
    assert [row["State"] for row in table(folder)] == ["failed"] * 2
    assert {row["Problem"] for row in table(folder)} == {"epoch 1, iteration 3: the loss is nan"}
    with pytest.raises(SweepError, match="no trial has come to its end yet"):
        write_sweep_report(folder, tmp_path / "report.html")


def test_bad_settings_are_found_before_anything_runs(tmp_path: Path) -> None:
    path = tmp_path / "space.ini"
    path.write_text("[TRAINING]\nbatch_size = 10 .. 500\n")
    with pytest.raises(ConfigError, match=r"space.ini: \[TRAINING\] batch_size = 500: must be at most N_train = 200"):
        read_space(path, small_config())


def test_the_page(tmp_path: Path, dimensions: list[Dimension]) -> None:
    folder, page = tmp_path / "sweep", tmp_path / "report.html"
    search(folder, dimensions, 1)
    said: list[str] = []
    write_sweep_report(folder, page, say=said.append)
    assert "Too few trials" in page.read_text(encoding="utf-8")
    assert len(said) == 5
    search(folder, dimensions, 4)
    with pytest.raises(OutputError, match=r"report.html"):
        write_sweep_report(folder, page)
    write_sweep_report(folder, page, overwrite=True)
    text = page.read_text(encoding="utf-8")
    assert text.count("data:image/png;base64,") == 6
    assert "4 trials done" in text
    assert all(f"<td>{row['Test NLL']}</td>" in text for row in table(folder))


# the command


def command(tmp_path: Path, *more: str) -> list[str]:
    overrides = [part for value in (*small_overrides(), "TRAINING.N_epochs=8") for part in ("--set", value)]
    options = ["--output", str(tmp_path / "sweep"), *overrides, *more]
    return [sys.executable, "-m", "lvkam_cli", "sweep", str(REPOSITORY / "nist_config.ini"),
            str(tmp_path / "space.ini"), *options]  # fmt: skip


def rows_of(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_two_processes_share_the_trials_and_one_that_dies_loses_none(tmp_path: Path) -> None:
    (tmp_path / "space.ini").write_text(SPACE)
    journal = tmp_path / "sweep" / "journal.log"
    more = ("--trials", "4", "--jobs", "2", "--set", "TRAINING.N_epochs=16")  # longer than it takes to kill one
    job = subprocess.Popen(command(tmp_path, *more), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 60
    begun = None
    while begun is None:
        assert job.poll() is None
        assert time.monotonic() < end
        time.sleep(0.02)
        done = (tmp_path / "sweep" / "trials.csv").exists() and journal.exists()
        trials = (tmp_path / "sweep" / "trials").glob("*/.owner") if done else ()
        # one of which some epochs are done
        begun = next((owner for owner in trials if 3 < rows_of(owner.with_name("loss.csv")) < 10), None)
    process = int(begun.read_text().split()[1])
    os.kill(process, signal.SIGSTOP)
    while journal.with_name("journal.log.lock").is_symlink():  # a dead process's hold on it is broken, after 30 seconds
        os.kill(process, signal.SIGCONT)
        time.sleep(0.02)
        os.kill(process, signal.SIGSTOP)
    os.kill(process, signal.SIGKILL)
    out, err = job.communicate(timeout=120)
    assert job.returncode == 0, err
    assert out == f"{tmp_path / 'sweep' / 'best.ini'}\n"
    assert "another process has left it: going on" in err
    assert re.findall(r"warning: process \d ended with (\S+):", err) == ["-9"]
    rows = table(tmp_path / "sweep")
    assert [row["Trial"] for row in rows] == list("0123")
    assert {row["State"] for row in rows} == {"done"}


def test_processes_that_end_leave_trials_to_the_next(
    tmp_path: Path, dimensions: list[Dimension], monkeypatch: pytest.MonkeyPatch
) -> None:
    def dead(commands: Any, *_: Any) -> Any:
        return run_side_by_side([c._replace(arguments=("false",)) for c in commands], 2, lambda _: None, Interruption())

    monkeypatch.setattr(sweep, "run_side_by_side", dead)
    said: list[str] = []
    with pytest.raises(FailureError, match="3 of 3 trials are left; the same command goes on"):
        search(tmp_path / "sweep", dimensions, jobs=2, say=said.append)
    assert said == [f"warning: process {n} ended with 1: " for n in (1, 2)]


def test_pictures_of_a_search_have_short_names_and_choices() -> None:
    together = ["MIX_PRIOR.layer_widths=5, 10 & KAN_LIKELIHOOD.expert_widths=10, 64", "MIX_PRIOR.layer_widths=5, 15"]
    study = optuna.create_study()
    for number, size in enumerate(together):
        study.enqueue_trial({"TOGETHER.size": size})
        trial = study.ask()
        assert trial.suggest_categorical("TOGETHER.size", together) == size
        trial.suggest_float("OPTIMIZER.learning_rate", 0.1, 1)
        trial.report(number, 1)
        study.tell(trial, float(number))
    abridged = sweep_report._abridged(study)
    assert [set(trial.params) for trial in abridged.trials[:2]] == [{"size", "learning_rate"}] * 2
    for short, long in zip(abridged.trials, study.trials, strict=True):
        assert (short.number, short.state, short.values) == (long.number, long.state, long.values)
        assert short.intermediate_values == long.intermediate_values
        if long.params:
            chosen = {together[0]: "5, 10 & 10, 64", together[1]: "5, 15"}[long.params["TOGETHER.size"]]
            assert short.params["size"] == chosen
    assert sweep_report._plot(abridged, "Settings one by one", print) is not None

    clashing = optuna.create_study()
    trial = clashing.ask()
    trial.suggest_int("MIX_PRIOR.grid_size", 3, 9)
    trial.suggest_int("KAN_LIKELIHOOD.grid_size", 3, 9)
    clashing.tell(trial, 1.0)
    assert set(sweep_report._abridged(clashing).trials[0].params) == {"MIX_PRIOR.grid_size", "KAN_LIKELIHOOD.grid_size"}
