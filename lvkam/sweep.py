"""A search of settings by Optuna: every trial a run like any other, in a folder of its own.

The journal of the trials lies in the sweep's folder, so that processes, and machines that share it, join by the same
command; a trial that was left in the middle is taken up by whoever comes next. After so many twentieths of its
training a trial whose test NLL is above the median of the others' is given up.
"""

from __future__ import annotations

import math
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import filelock
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from lvkam.config import Config, ConfigError, parse_config
from lvkam.errors import FailureError
from lvkam.experiment import run_experiment
from lvkam.interruption import Interrupted, Interruption
from lvkam.processes import Command, run_side_by_side
from lvkam.progress import EpochRecord
from lvkam.run_folder import JOURNAL, OutputError, read_losses
from lvkam.space import Dimension, Range
from lvkam.training import done_share
from lvkam.writing import make_folder, write_table, write_text

TABLE, BEST = "trials.csv", "best.ini"
STUDY = "lvkam"
PARTS = 20
"""Of a training: after each the test NLL is reported."""
RANDOM_TRIALS = 5
"""Before the sampler looks at what others have come to."""
UNJUDGED_TRIALS, UNJUDGED_PARTS = 4, 5
"""Trials that are never given up, and parts of every one before it can be."""

DEATHS, MOST_DEATHS = "deaths", 3
"""Processes that ended without a word while they ran a trial, an attribute of it; with so many it has failed."""
WAIT = 1.0
"""Seconds between looks at the trials that others run."""

COLUMNS = ("Trial", "State", "Test NLL", "Time (s)", "Folder", "Problem")
STATES = {
    TrialState.COMPLETE: "done", TrialState.PRUNED: "given up", TrialState.FAIL: "failed",
    TrialState.RUNNING: "running", TrialState.WAITING: "waiting",
}  # fmt: skip


class Best(NamedTuple):
    """The trial of the lowest test NLL."""

    number: int
    nll: float
    settings: dict[str, Any]
    """By the names of the dimensions."""
    config: Path


def journal_of(folder: Path) -> JournalStorage:
    """Where the trials of a sweep are written: lines of JSON."""
    return JournalStorage(JournalFileBackend(str(folder / JOURNAL)))


def load_study(storage: JournalStorage) -> optuna.Study:
    """The study of a journal, begun if there is none; each trial sets a sampler of its own."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(
        study_name=STUDY,
        storage=storage,
        pruner=optuna.pruners.MedianPruner(UNJUDGED_TRIALS, UNJUDGED_PARTS),
        load_if_exists=True,
    )


def _sampler(seed: int) -> optuna.samplers.TPESampler:
    with warnings.catch_warnings():
        # trials that run elsewhere count as bad ones, so that two processes do not try the same place
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=RANDOM_TRIALS, constant_liar=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Context for what one process does at a time: taking a trial, and writing the tables."""
    with filelock.FileLock(folder / ".lock"):
        yield


def run_sweep(
    config: Config,
    space: Sequence[Dimension],
    folder: Path,
    trials: int,
    *,
    jobs: int = 1,
    join: Sequence[str] = (),
    device: str | None = None,
    data_dir: Path | None = None,
    say: Callable[[str], None],
    interruption: Interruption,
) -> Best:
    """Run trials until there are so many, those that others run counted in.

    Args:
        config: what is the same in all trials.
        space: what is not.
        folder: the sweep's.
        trials: how many, given up and failed ones too.
        jobs: trials at a time, each in a process of its own and with its share of the threads.
        join: the command of such a process.
        device: name of a torch device, as for `run_experiment`.
        data_dir: where to look for the data first.
        say: takes a line of text for the user.
        interruption: signals; running trials are saved before they are obeyed.

    Raises:
        OutputError: the folder is that of another sweep, or of something else.
        FailureError: trials are left, their processes having ended, or none came to its end.
        Interrupted: by a signal.
    """
    _claim(config, space, folder)
    if jobs > 1:
        commands = [Command(f"process {index}", join) for index in range(1, jobs + 1)]
        outcomes = run_side_by_side(commands, jobs, say, interruption)
        for command, outcome in zip(commands, outcomes, strict=True):
            if outcome.exit_status:
                say(f"warning: {command.name} ended with {outcome.exit_status}: {outcome.last_line}")
    else:
        worker = _Worker(config, space, folder, trials, device, data_dir, say, interruption)
        while worker.run_one():
            pass
    with locked(folder):
        study = load_study(journal_of(folder))
        best = write_summary(folder, study)
    ended = sum(trial.state.is_finished() for trial in study.get_trials(deepcopy=False))
    if ended < trials:
        raise FailureError(f"{folder}: {trials - ended} of {trials} trials are left; the same command goes on")
    if best is None:
        raise FailureError(f"{folder}: no trial came to its end; {TABLE} says why")
    return best


def _claim(config: Config, space: Sequence[Dimension], folder: Path) -> None:
    """Make the folder this sweep's, or see that it is."""
    written = {
        "base.ini": config.to_ini(),
        "space.txt": "".join(f"{dimension.name} = {dimension.domain}\n" for dimension in space),
    }
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder}: is not a folder")
    make_folder(folder)
    with locked(folder):
        begun = [name for name in written if (folder / name).exists()]
        strangers = [path.name for path in folder.iterdir() if path.name not in {".lock", *written}]
        if strangers and len(begun) < len(written):
            raise OutputError(
                f"{folder}: holds {', '.join(sorted(strangers)[:5])}, but no sweep; give another --output"
            )
        for name, text in written.items():
            path = folder / name
            if name in begun and path.read_text(encoding="utf-8") != text:
                what = "another configuration" if name == "base.ini" else "another space"
                raise OutputError(f"{path}: the sweep in this folder has {what}; give another --output")
            if name not in begun:
                write_text(path, text)


class _Worker:
    """Runs one trial after the other."""

    def __init__(
        self,
        config: Config,
        space: Sequence[Dimension],
        folder: Path,
        trials: int,
        device: str | None,
        data_dir: Path | None,
        say: Callable[[str], None],
        interruption: Interruption,
    ):
        self.config, self.space, self.folder, self.trials = config, space, folder, trials
        self.device, self.data_dir, self.say, self.interruption = device, data_dir, say, interruption
        self.storage = journal_of(folder)
        self.study = load_study(self.storage)

    def run_one(self) -> bool:
        """Run a trial, if one is left: while others run the last ones, wait for what becomes of these."""
        with ExitStack() as held:
            while True:
                with locked(self.folder):
                    taken = self._take(held)
                    running = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
                if taken is not None:
                    outcome = self._run(taken)
                    with locked(self.folder):
                        self._tell(taken, *outcome)
                    return True
                if not running:
                    return False
                time.sleep(WAIT)

    def _take(self, held: ExitStack) -> Trial | None:
        """One that somebody has left, or a new one if there are too few; whoever has it holds its lock."""
        trials = self.study.get_trials(deepcopy=False)
        for left in (trial for trial in trials if trial.state == TrialState.RUNNING):
            if not self._hold(left.number, held):
                continue
            study_id = self.storage.get_study_id_from_name(STUDY)
            trial = Trial(self.study, self.storage.get_trial_id_from_study_id_trial_number(study_id, left.number))
            deaths = left.user_attrs.get(DEATHS, 0)
            if deaths >= MOST_DEATHS:
                self._tell(trial, TrialState.FAIL, f"{deaths} processes have died of it")
                continue
            self.say(f"trial {left.number}: another process has left it: going on")
            trial.set_user_attr(DEATHS, deaths + 1)
            return trial
        if len(trials) >= self.trials:
            return None
        trial = self.study.ask()
        trial.set_user_attr(DEATHS, 1)  # until it comes to an end
        self._hold(trial.number, held)
        return trial

    def _hold(self, number: int, held: ExitStack) -> bool:
        try:
            held.enter_context(filelock.FileLock(self.folder / f".trial_{number:04d}.lock", timeout=0))
        except filelock.Timeout:
            return False
        return True

    def _run(self, trial: Trial) -> tuple[TrialState, str]:
        """How it ended, and why if it failed."""
        self.study.sampler = _sampler(self.config.training.seed + trial.number)  # another one in every process
        settings = [setting for dimension in self.space for setting in dimension.overrides(_suggest(trial, dimension))]
        self.say(f"trial {trial.number}: {', '.join(settings)}")
        watch = None
        try:
            config = parse_config(self.config.to_ini(), self.config.source, settings)
            reported = self.study.get_trials(deepcopy=False)[trial.number].intermediate_values
            watch = _Watch(trial, config, self.interruption, max(reported, default=0))
            run = trial_folder(self.folder, trial.number)
            run_experiment(
                config, run, resume=True, device=self.device, data_dir=self.data_dir,
                say=self._tell_warnings, interruption=self.interruption, on_epoch=watch,
            )  # fmt: skip
        except Interrupted:
            if watch is None or not watch.gave_up or self.interruption.is_asked:
                trial.set_user_attr(DEATHS, trial.user_attrs[DEATHS] - 1)  # it was saved
                raise
            self.interruption.number = None
            return TrialState.PRUNED, ""
        except (ConfigError, FloatingPointError) as error:
            return TrialState.FAIL, str(error)
        return TrialState.COMPLETE, ""

    def _tell_warnings(self, line: str) -> None:
        if line.startswith("warning: "):
            self.say(line)

    def _tell(self, trial: Trial, state: TrialState, problem: str) -> None:
        """How a trial has ended; in a context in which no other process does."""
        nll = _last_row(trial_folder(self.folder, trial.number)).get("Test NLL", "")
        if problem:
            trial.set_user_attr("problem", problem)
        self.study.tell(trial, float(nll) if state == TrialState.COMPLETE else None, state)
        write_summary(self.folder, self.study)
        words = {
            TrialState.COMPLETE: f"test NLL {nll} nats",
            TrialState.PRUNED: f"given up at a test NLL of {nll} nats",
        }
        self.say(f"trial {trial.number}: {words.get(state, problem)}")


class _Watch:
    """Reports a run's test NLL to its trial, and ends the run where the trial is to be given up."""

    def __init__(self, trial: Trial, config: Config, interruption: Interruption, reported: int):
        self.trial, self.settings, self.interruption = trial, config.training, interruption
        self.gave_up, self.reported = False, reported

    def __call__(self, record: EpochRecord) -> None:
        """Take an epoch's record."""
        done = done_share(record, self.settings)
        for part in range(self.reported + 1, math.floor(PARTS * done) + 1):
            self.trial.report(record.test_nll, part)
            self.reported = part
        if done < 1 and self.interruption.number is None and self.trial.should_prune():
            self.gave_up = True
            self.interruption.number = signal.SIGTERM  # as if asked to stop: the run is saved


def _suggest(trial: Trial, dimension: Dimension) -> float | str:
    """A value for a dimension; of a trial that is taken up, the one that it has."""
    domain = dimension.domain
    if not isinstance(domain, Range):
        return trial.suggest_categorical(dimension.name, domain.values)
    if domain.is_integer:
        return trial.suggest_int(dimension.name, int(domain.low), int(domain.high), log=domain.is_log)
    return trial.suggest_float(dimension.name, domain.low, domain.high, log=domain.is_log)


def trial_folder(folder: Path, number: int) -> Path:
    """Of a trial."""
    return folder / "trials" / f"{number:04d}"


def _last_row(run: Path) -> dict[str, str]:
    """The end of a run's losses; nothing where there are none."""
    path = run / "loss.csv"
    return (read_losses(path) or [{}])[-1] if path.exists() else {}


def table_of(folder: Path, study: optuna.Study) -> list[dict[str, str]]:
    """A row for each trial, all with the same columns."""
    trials = study.get_trials(deepcopy=False)
    names = list(dict.fromkeys(name for trial in trials for name in trial.params))
    return [_row(folder, trial, names) for trial in trials]


def write_summary(folder: Path, study: optuna.Study) -> Best | None:
    """The trials as a table, and the configuration of the best one, which is returned; None if there is none."""
    rows = table_of(folder, study)
    write_table(folder / TABLE, list(rows[0]) if rows else COLUMNS, rows)
    if all(row["State"] != STATES[TrialState.COMPLETE] for row in rows):
        return None
    best = study.best_trial
    text = (trial_folder(folder, best.number) / "config.ini").read_text(encoding="utf-8")
    write_text(folder / BEST, text)
    return Best(best.number, float(best.values[0]), dict(best.params), folder / BEST)


def _row(folder: Path, trial: FrozenTrial, names: Sequence[str]) -> dict[str, str]:
    run = trial_folder(folder, trial.number)
    last = _last_row(run)
    row = {
        "Trial": str(trial.number), "State": STATES[trial.state], "Test NLL": last.get("Test NLL", ""),
        "Time (s)": last.get("Time (s)", ""), "Folder": str(run.relative_to(folder)),
        "Problem": " ".join(str(trial.user_attrs.get("problem", "")).split()),
    }  # fmt: skip
    return row | {name: str(trial.params.get(name, "")) for name in names}
