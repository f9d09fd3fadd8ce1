"""Faults that tests must catch: each is put into a copy of the code, in which the tests named beside it must then fail.

    bash tests/run_mutations.sh [--only NAME ...] [--jobs N]

The checkout itself is never changed. `tests/test_mutations.py` sees to it that every fault can still be made and that
its tests are still there.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

REPOSITORY = Path(__file__).parents[1]  # not that of tests.conftest, which would load torch here for nothing

LONGEST = 900
"""Seconds that the tests of one fault may take."""

NOT_CAUGHT = "NOT CAUGHT"


class Fault(NamedTuple):
    """What might have been written instead, and which tests would notice."""

    name: str
    file: str
    """Where, in the repository."""
    right: str
    """What stands there, once in the whole file."""
    wrong: str
    """What is put in its place."""
    tests: tuple[str, ...]
    """Files, or tests by their pytest names."""


FAULTS = (
    # the faults that the specification names, in its order
    Fault(
        "log Z dropped",
        "lvkam/prior.py",
        "self.log_weights() - self._log_normalisers(table, weight)",
        "self.log_weights()",
        ("tests/test_prior.py::test_random_energies",),
    ),
    Fault(
        "Q and P swapped",
        "lvkam/sampling.py",
        "num_nodes * (log_density.shape[1] * coordinates + component)",
        "num_nodes * (log_density.shape[0] * coordinates + component)",
        ("tests/test_sampling.py::test_each_coordinate_and_component_has_its_own_row",),
    ),
    Fault(
        "one mixture weight lost",
        "lvkam/prior.py",
        "torch.logsumexp(energies + log_weights.unsqueeze(1), dim=-1)",
        "torch.logsumexp((energies + log_weights.unsqueeze(1))[..., :-1], dim=-1)",
        ("tests/test_prior.py::test_random_energies",),
    ),
    Fault(
        "thermodynamic weights held fixed",
        "lvkam/annealing.py",
        "constant, linear = (c * (1 - t * mean)).unsqueeze(-1), (c * t).unsqueeze(-1)",
        "constant, linear = c.expand_as(mean).unsqueeze(-1), (0 * t).unsqueeze(-1)",
        ("tests/test_annealing.py::test_trapezoid_weights_are_the_derivative_of_the_sum",),
    ),
    Fault(
        "t left out of the Metropolis ratio",
        "lvkam/annealing.py",
        "threshold < t * (proposed_likelihood - log_likelihood)",
        "threshold < proposed_likelihood - log_likelihood",
        ("tests/test_annealing.py::test_a_move_proposes_distinct_coordinates_and_leaves_the_others",),
    ),
    Fault(
        "weights not reset at resampling",
        "lvkam/annealing.py",
        "log_weights = log_weights.index_fill(0, needy, 0.0)",
        "log_weights = log_weights.clone()",
        ("tests/test_annealing.py::test_particles_are_the_algorithm_written_out",),
    ),
    Fault(
        "evidence not multiplied at resampling",
        "lvkam/annealing.py",
        "log_evidence.index_add_(0, needy, _log_mean(log_weights[needy]))",
        "log_evidence.index_add_(0, needy, torch.zeros_like(log_evidence[needy]))",
        ("tests/test_annealing.py::test_particles_are_the_algorithm_written_out",),
    ),
    Fault(
        "std taken for variance",
        "lvkam/model.py",
        "return 1 / (2 * self.likelihood_std**2)",
        "return 1 / (2 * self.likelihood_std)",
        ("tests/test_model.py::test_training_scales_the_likelihood_and_reports_do_not",),
    ),
    Fault(
        "the base term lost",
        "lvkam/univariate.py",
        "torch.cat((coef * w_spline.unsqueeze(1), w_base.unsqueeze(1)), dim=1)",
        "torch.cat((coef * w_spline.unsqueeze(1), torch.zeros_like(w_base).unsqueeze(1)), dim=1)",
        ("tests/test_univariate.py::test_layer_is_its_formula",),
    ),
    Fault(
        "knots off by one",
        "lvkam/splines.py",
        "torch.arange(1, degree + 1, dtype=knots.dtype, device=knots.device)",
        "torch.arange(2, degree + 2, dtype=knots.dtype, device=knots.device)",
        ("tests/test_splines.py::test_extension_has_the_mean_spacing",),
    ),
    Fault(
        "degree off by one",
        "lvkam/splines.py",
        "power = math.prod([inside] * (degree - 2), start=inside)",
        "power = math.prod([inside] * (degree - 3), start=inside)",
        ("tests/test_splines.py::test_kernels_are_exact_on_equally_spaced_knots[False-3]",),
    ),
    Fault(
        "coefs not refitted at a grid update",
        "lvkam/univariate.py",
        "self.coef.copy_(coef)",
        "self.coef.copy_(self.coef)",
        ("tests/test_univariate.py::test_update_keeps_a_smooth_function",),
    ),
    Fault(
        "grid update at the wrong iteration",
        "lvkam/training.py",
        "state.iteration - state.last_grid_update >= state.grid_update_period",
        "state.iteration - state.last_grid_update > state.grid_update_period",
        ("tests/test_training.py::test_grids_adapt_when_due",),
    ),
    Fault(
        "last batch skipped",
        "lvkam/training.py",
        "batches = self.order().split(settings.batch_size)",
        "batches = self.order().split(settings.batch_size)[:-1]",
        ("tests/test_training.py::test_grids_adapt_when_due",),
    ),
    Fault(
        "the noise on in evaluation",
        "lvkam/objectives.py",
        "if model.noise_std > 0 and torch.is_grad_enabled():",
        "if model.noise_std > 0:",
        ("tests/test_objectives.py::test_noise_acts_on_the_output_before_its_activation",),
    ),
    Fault(
        "scaled likelihood reported",
        "lvkam/model.py",
        "return bernoulli_log_likelihood(x, out)",
        "return bernoulli_log_likelihood(x, out, self._scale)",
        ("tests/test_evidence.py::test_the_likelihood_is_quoted_unscaled",),
    ),
    Fault(
        "random stream not restored",
        "lvkam/experiment.py",
        "self.rng.set_state(torch.from_numpy(stream))",
        "torch.Generator().set_state(torch.from_numpy(stream))",
        ("tests/test_experiment.py::test_a_run_that_a_signal_ended_goes_on_to_the_same_bits",),
    ),
    Fault(
        "epoch order not restored",
        "lvkam/training.py",
        "rng.set_state(torch.from_numpy(self.state.epoch_stream))",
        "rng.set_state(self.rng.get_state())",
        ("tests/test_training.py::test_files_serve_as_well_as_memory",),
    ),
    Fault(
        "resize without antialiasing",
        "lvkam/data.py",
        "antialias=True",
        "antialias=False",
        ("tests/test_data.py::test_resizing_is_antialiased_bilinear",),
    ),
    Fault(
        "axes swapped in files",
        "lvkam/run_folder.py",
        "samples.reshape(-1, *image_shape)",
        "samples.reshape(-1, *image_shape).swapaxes(1, 2)",
        ("tests/test_run_folder.py::test_images_are_clipped_and_drawn",),
    ),
    # more of their kind
    Fault(
        "coefficients' axes swapped in a checkpoint",
        "lvkam/build.py",
        'return tensor.transpose(1, 2) if path.endswith("/coef") and tensor.ndim == 3 else tensor',
        "return tensor",
        ("tests/test_checkpoint.py::test_the_layout_is_the_specifications",),
    ),
    Fault(
        "checkpoint checksum not verified",
        "lvkam/hdf5.py",
        'if read_text(path, item, "sha256") != checksum:',
        'if not read_text(path, item, "sha256"):',
        ("tests/test_checkpoint.py::test_a_flipped_byte_of_an_array_is_told",),
    ),
    Fault(
        "gradient of log Z lost",
        "lvkam/prior.py",
        "table.log_normaliser + (mean_energy - mean_energy.detach())",
        "table.log_normaliser + 0 * mean_energy",
        ("tests/test_prior.py::test_gradients_are_those_of_the_interpolated_density",),
    ),
    Fault(
        "mixture weights normalised over coordinates",
        "lvkam/prior.py",
        "torch.log_softmax(self.mixture_logits, dim=-1)",
        "torch.log_softmax(self.mixture_logits, dim=0)",
        ("tests/test_prior.py::test_mixture_proportions",),
    ),
    Fault(
        "truncated powers all of one sign",
        "lvkam/splines.py",
        "factor = (-1) ** j * math.comb(degree + 1, j) / math.factorial(degree)",
        "factor = math.comb(degree + 1, j) / math.factorial(degree)",
        ("tests/test_splines.py::test_kernels_are_exact_on_equally_spaced_knots[False-3]",),
    ),
    Fault(
        "configured degree read as one less",
        "lvkam/build.py",
        "degree=section.spline_degree,",
        "degree=section.spline_degree - 1,",
        ("tests/test_experiment.py::test_every_key_of_the_model_arrives_in_it",),
    ),
    Fault(
        "importance weights not normalised",
        "lvkam/sampling.py",
        "return torch.softmax(log_likelihood, dim=-1)",
        "return torch.exp(log_likelihood - log_likelihood.amax(-1, keepdim=True))",
        ("tests/test_sampling.py::test_weights_and_effective_sample_size",),
    ),
    Fault(
        "effective sample size of weights, not squares",
        "lvkam/sampling.py",
        "return 1 / weights.square().sum(-1)",
        "return 1 / weights.square().sum(-1).sqrt()",
        ("tests/test_sampling.py::test_weights_and_effective_sample_size",),
    ),
    Fault(
        "importance weights differentiated",
        "lvkam/objectives.py",
        "logits = model.output_log_likelihood(x, out.detach())",
        "logits = model.output_log_likelihood(x, out)",
        ("tests/test_objectives.py::test_flat_weights_are_all_differentiated",),
    ),
    Fault(
        "top-k weights not rescaled",
        "lvkam/objectives.py",
        "carried = _Carried(share.importance_weights(best), samples)",
        "carried = _Carried(share.importance_weights(logits).gather(1, samples), samples)",
        ("tests/test_objectives.py::test_top_samples_with_their_weights_normalised",),
    ),
    Fault(
        "slopes of B-splines upside down",
        "lvkam/local_splines.cpp",
        "(r > 0 ? share[r - 1] : Vec{}) - (r < k ? share[r] : Vec{})",
        "(r < k ? share[r] : Vec{}) - (r > 0 ? share[r - 1] : Vec{})",
        ("tests/test_local_splines.py::test_sums_and_gradients_are_those_of_scipy",),
    ),
    Fault(
        "the last B-spline of a cell lost",
        "lvkam/local_splines.cpp",
        "for (int r = 0; r <= k; r++) at(row + r * stride + o) += b[r] * gradient;",
        "for (int r = 0; r < k; r++) at(row + r * stride + o) += b[r] * gradient;",
        ("tests/test_univariate.py::test_sums_without_what_is_zero_are_the_slow_path",),
    ),
    Fault(
        "other processes' samples not asked for",
        "lvkam/shares.py",
        "return gather(log_weights.logsumexp(-1)).logsumexp(0)",
        "return log_weights.logsumexp(-1)",
        ("tests/test_shares.py::test_weights_are_normalised_over_the_samples_of_all",),
    ),
    Fault(
        "gradients of two processes not summed",
        "lvkam/training.py",
        "(loss if self.world.size == 1 else self.world.size * loss).backward()",
        "loss.backward()",
        ("tests/test_parallel.py::test_two_processes_train_as_one",),
    ),
)


class CopyError(Exception):
    """The code cannot be copied, or Python does not take it from the copy."""


class Copy(NamedTuple):
    """The repository's tracked files in another place."""

    code: Path
    environment: dict[str, str]
    """Of processes that are to import from there, whatever is installed."""


class Verdict(NamedTuple):
    """How tests have ended."""

    status: int | None
    """pytest's; None if they were not done in time."""
    told: str
    """The first test that failed, or else what was said last."""
    seconds: float


class Outcome(NamedTuple):
    """What has become of a fault."""

    name: str
    is_caught: bool
    told: str
    """The first test that failed, or why none has."""
    seconds: float


def problem_of(fault: Fault, repository: Path = REPOSITORY) -> str | None:
    """Why a fault cannot be tried, if so; nothing is run to find out."""
    path = repository / fault.file
    if not path.is_file():
        return f"{fault.file}: no such file"
    text = path.read_text(encoding="utf-8")
    count = text.count(fault.right)
    if count != 1:
        return f"{fault.file}: holds {count} times instead of once: {fault.right}"
    if path.suffix == ".py":
        try:
            ast.parse(text.replace(fault.right, fault.wrong))
        except SyntaxError as error:
            return f"{fault.file}: would be no Python in line {error.lineno}: {error.msg}"
    return next((f"no such test: {test}" for test in fault.tests if not _is_there(repository, test)), None)


def _is_there(repository: Path, test: str) -> bool:
    """Whether there is a test of this name, its parameters aside; or a file of it."""
    file, _, name = test.partition("::")
    if not (repository / file).is_file():
        return False
    body = ast.parse((repository / file).read_text(encoding="utf-8")).body
    return not name or name.partition("[")[0] in {node.name for node in body if isinstance(node, ast.FunctionDef)}


def tracked_files(repository: Path) -> list[str]:
    """What git knows of; raises CopyError where it knows nothing."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z"], cwd=repository, capture_output=True, encoding="utf-8", check=False
        )  # fmt: skip
    except OSError as error:
        raise CopyError(f"git cannot be run: {error.strerror}") from error
    if listed.returncode:
        raise CopyError(f"{repository}: git lists no files: {_last_line(listed.stderr)}")
    return [name for name in listed.stdout.split("\0") if name]


def make_copy(repository: Path, files: Sequence[str], folder: Path) -> Copy:
    """Copy files as they are now, committed or not, and see that packages are imported from the copy.

    Args:
        repository: where they are.
        files: their names in it; those that have been deleted since are left out.
        folder: of the copy's own, to be made.

    Raises:
        CopyError: Python finds other packages first.
    """
    code, packages = folder / "code", folder / "packages"
    for name in files:
        source, target = repository / name, code / name
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    packages.mkdir(parents=True)
    (packages / "lvkam_cli").symlink_to(code / "cli")  # as `package-dir` in pyproject.toml has it
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((str(code), str(packages))),
        # bytecode is told from newer source by size and whole seconds, which a fault may not change
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    find = "from importlib.util import find_spec; [print(find_spec(name).origin) for name in ('lvkam', 'lvkam_cli')]"
    found = subprocess.run(
        [sys.executable, "-c", find], cwd=folder, env=environment, capture_output=True, encoding="utf-8", check=False
    )  # fmt: skip
    origins = [Path(line).resolve() for line in found.stdout.splitlines()]
    if found.returncode or not all(origin.is_relative_to(code.resolve()) for origin in origins):
        told = ", ".join(map(str, origins)) or _last_line(found.stderr)
        raise CopyError(f"the packages are not imported from the copy: {told}")
    return Copy(code, environment)


@contextmanager
def made(fault: Fault, code: Path) -> Iterator[None]:
    """Context in which a copy of the code has the fault."""
    path = code / fault.file
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(fault.right, fault.wrong), encoding="utf-8")
    try:
        yield
    finally:
        path.write_text(text, encoding="utf-8")


def run_tests(copy: Copy, tests: Sequence[str]) -> Verdict:
    """Run tests in a copy, up to the first that fails."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--color=no", *tests]
    start = time.perf_counter()
    try:
        done = subprocess.run(
            command, cwd=copy.code, env=copy.environment, capture_output=True, encoding="utf-8", errors="replace",
            timeout=LONGEST, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Verdict(None, f"not done within {LONGEST} s", time.perf_counter() - start)
    told = first_failure(done.stdout) or _last_line(done.stdout) or _last_line(done.stderr)
    return Verdict(done.returncode, told, time.perf_counter() - start)


def first_failure(output: str) -> str | None:
    """The first test that pytest's summary says has failed."""
    found = re.search(r"^(?:FAILED|ERROR) (tests/.*?)(?: - .*)?$", output, re.MULTILINE)
    return found[1] if found else None


def _last_line(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "")


def check(faults: Sequence[Fault], repository: Path = REPOSITORY, jobs: int = 1) -> list[Outcome]:
    """Try faults, after their tests have passed without any; told to standard error as they are done.

    Args:
        faults: of different names.
        repository: what to copy.
        jobs: how many copies are tested at a time.

    Raises:
        CopyError: no copy can be made.
    """
    files, problems = tracked_files(repository), {fault.name: problem_of(fault, repository) for fault in faults}
    selections = list(dict.fromkeys(fault.tests for fault in faults if problems[fault.name] is None))
    # the threads only wait for processes
    with tempfile.TemporaryDirectory(prefix="lvkam-mutations-") as folder, ThreadPoolExecutor(jobs) as pool:
        free: SimpleQueue[Copy] = SimpleQueue()
        for number in range(jobs):
            free.put(make_copy(repository, files, Path(folder) / str(number)))

        def passed(tests: tuple[str, ...]) -> Verdict:
            copy = free.get()
            try:
                verdict = run_tests(copy, tests)
            finally:
                free.put(copy)
            _tell(f"{verdict.seconds:6.1f} s  without a fault: {verdict.told}")
            return verdict

        before = dict(zip(selections, pool.map(passed, selections), strict=True))

        def tried(fault: Fault) -> Outcome:
            problem = problems[fault.name]
            if problem is None and before[fault.tests].status != 0:
                problem = f"fails without the fault too: {before[fault.tests].told}"
            if problem is not None:
                return Outcome(fault.name, False, problem, 0.0)
            copy = free.get()
            try:
                with made(fault, copy.code):
                    verdict = run_tests(copy, fault.tests)
            finally:
                free.put(copy)
            outcome = _outcome(fault, verdict)
            _tell(f"{outcome.seconds:6.1f} s  {outcome.name}: {outcome.told}")
            return outcome

        return list(pool.map(tried, faults))


def _outcome(fault: Fault, verdict: Verdict) -> Outcome:
    if verdict.status == 1:  # tests have failed
        return Outcome(fault.name, True, verdict.told, verdict.seconds)
    told = NOT_CAUGHT if verdict.status == 0 else f"{NOT_CAUGHT}: {verdict.told}"  # nor does a crash of pytest count
    return Outcome(fault.name, False, told, verdict.seconds)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def as_table(outcomes: Sequence[Outcome]) -> str:
    """Fault, caught by, seconds."""
    lines = [("fault", "caught by", "seconds"), *((o.name, o.told, f"{o.seconds:.1f}") for o in outcomes)]
    name, told, seconds = (max(map(len, column)) for column in zip(*lines, strict=True))
    return "\n".join(f"{a.ljust(name)}  {b.ljust(told)}  {c.rjust(seconds)}" for a, b, c in lines)


def chosen(names: Sequence[str] | None) -> list[Fault]:
    """Faults of these names, all if None; raises ValueError for a name that none has."""
    known = {fault.name: fault for fault in FAULTS}
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise ValueError(f"no fault is called {', '.join(map(repr, unknown))}; there are: {'; '.join(known)}")
    return list(FAULTS) if names is None else [known[name] for name in dict.fromkeys(names)]


def main(arguments: Sequence[str] | None = None) -> int:
    """What the command line asks for: 0 if every fault was caught, 1 if not, 2 for arguments that make no sense."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutations", description="Put faults into a copy of the code "
                                     "and see that tests catch them.")  # fmt: skip
    parser.add_argument("--only", nargs="+", metavar="NAME", help="names of faults; all by default")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="copies tested at a time; 1 by default")
    asked = parser.parse_args(arguments)
    if asked.jobs < 1:
        parser.error(f"--jobs {asked.jobs}: must be at least 1")
    try:
        faults = chosen(asked.only)
    except ValueError as error:
        parser.error(f"--only: {error}")
    try:
        outcomes = check(faults, jobs=asked.jobs)
    except CopyError as error:
        _tell(f"failed: {error}")
        return 1
    print(as_table(outcomes))
    caught = sum(outcome.is_caught for outcome in outcomes)
    print(f"\n{caught} of {len(outcomes)} faults were caught")
    return 0 if caught == len(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
