"""Compiled kernels are the plain ones; where nothing can be compiled, all says so and works without."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lvkam.build import (
    SECONDS_THAT_REPAY,
    STEPS_THAT_REPAY,
    build_model,
    choose_compilation,
    compilation_plan,
    problem_of_compiling,
)
from lvkam.compilation import compiled, compiler_problem, rows_kept
from lvkam.config import ConfigError
from lvkam.univariate import UnivariateFunctions
from tests.conftest import REPOSITORY, require_compiler, small_config, small_overrides, stream


def without_compiler(folder: Path, cxx: str = "/nowhere/c++") -> dict[str, str]:
    """Environment of a process whose C++ compiler is the given one, and that finds nothing compiled before."""
    # a cache elsewhere would serve what another process compiled
    cache = str(folder / "cache")
    return {**os.environ, "OMP_NUM_THREADS": "1", "CXX": cxx, "TORCHINDUCTOR_CACHE_DIR": cache}


def bend(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    z = torch.exp(-x.square()) * y
    return z.sum(-1), z.tanh() + x


def test_a_compiled_function_is_the_function() -> None:
    require_compiler()
    assert compiled(bend) is compiled(bend)
    fast: Callable[..., tuple[Tensor, Tensor]] = compiled(bend)
    for rows in (7, 1, 30):  # sizes may vary; one of 1 is compiled for itself
        x, y = torch.randn(2, rows, 5, generator=stream(0)).unbind(0)
        for found, expected in zip(fast(x, y), bend(x, y), strict=True):
            np.testing.assert_allclose(found.numpy(), expected.numpy(), atol=2e-6)
        x.requires_grad_()
        found, expected = (torch.autograd.grad(f(x, y)[1].sum(), x)[0] for f in (fast, bend))
        np.testing.assert_allclose(found.numpy(), expected.numpy(), atol=2e-6)


@pytest.mark.parametrize("multiple", [1, 4, 16])
def test_rows_kept_are_all_that_were_asked_for_and_a_multiple(multiple: int) -> None:
    for num, asked in ((20, [3, 7, 8, 19, 11]), (20, []), (10, [0, 9, 5]), (8, list(range(8)))):
        mask = torch.zeros(num, dtype=torch.bool)
        mask[asked] = True
        rows = rows_kept(mask, multiple).tolist()
        assert set(asked) <= set(rows) <= set(range(num))
        assert len(rows) == min(num, -(-len(asked) // multiple) * multiple) == len(set(rows))


def test_a_problem_is_none_or_one_line() -> None:
    problem = compiler_problem()
    assert problem is None or (len(problem.splitlines()) == 1 and problem == problem.strip() != "")


PROGRAM = """
import json, sys, warnings
import torch
from lvkam.compilation import compiler_problem
from lvkam.config import parse_config
from lvkam.build import build_model
from lvkam.prior import MixturePrior

config = parse_config("", "test", json.loads(sys.argv[1]))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    model = build_model(config, 9, compile=True)
model.generator(torch.rand(5, 4)).sum().backward()
told = {
    "problem": compiler_problem(),
    "warnings": [str(w.message) for w in caught if w.category is UserWarning],
    "compiled": [layer.family.compiled for part in (model.prior, model.generator) for layer in part.layers],
    "gradient": sum(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.generator.parameters()),
    "sample": list(model.sample(3, torch.Generator().manual_seed(0)).shape),
}
print(json.dumps(told))
"""


@pytest.mark.parametrize("kind", ["missing", "failing"])
def test_a_model_works_without_a_compiler(kind: str, tmp_path: Path) -> None:
    program = tmp_path / "c++"
    if kind == "failing":  # it is there and has a version, but compiles nothing
        program.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "g++ 1.0" && exit 0\nexit 1\n')
        program.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(small_overrides())],
        cwd=REPOSITORY, env=without_compiler(tmp_path, str(program)), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    problem = told["problem"]
    assert len(problem.splitlines()) == 1
    assert {"missing": str(program), "failing": "C++ compile error"}[kind] in problem
    assert told["warnings"] == [f"kernels are not compiled: {problem}"]
    assert told["compiled"] == [False] * 3
    assert told["gradient"] == 6  # coef, w_base and w_spline of two layers
    assert told["sample"] == [3, 9]


@pytest.mark.parametrize("compile", [True, False])
def test_a_model_is_compiled_when_asked(compile: bool) -> None:
    if compile:
        require_compiler()
    model = build_model(small_config("TRAINING.compile=false"), 9, compile=compile)
    layers = [layer for layer in model.modules() if isinstance(layer, UnivariateFunctions)]
    assert [layer.family.compiled for layer in layers] == [compile] * 3


def test_a_training_is_compiled_when_that_is_repaid() -> None:
    # 200 images in batches of 25 are 8 steps, the last batch of 7 images in 30 counts too
    enough = -(-STEPS_THAT_REPAY // 8)
    assert compilation_plan(small_config(f"TRAINING.N_epochs={enough}")) is None
    few = small_config(f"TRAINING.N_epochs={enough - 1}")
    assert compilation_plan(few) == f"{8 * (enough - 1)} steps would not repay it"
    assert compilation_plan(small_config("TRAINING.N_epochs=3", "TRAINING.batch_size=30")) == (
        "21 steps would not repay it"
    )
    assert compilation_plan(small_config("TRAINING.compile=true")) is None
    long = small_config(f"TRAINING.N_epochs={enough}", "TRAINING.compile=false")
    assert compilation_plan(long) == "compile = false"
    hurried = small_config(f"TRAINING.N_epochs={enough}", f"TRAINING.max_seconds={SECONDS_THAT_REPAY - 1}")
    assert compilation_plan(hurried) == f"{SECONDS_THAT_REPAY - 1} seconds would not repay it"


def test_a_training_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lvkam.build.problem_of_compiling", lambda kind: f"nothing for {kind}")
    cpu = torch.device("cpu")
    with pytest.raises(ConfigError) as caught:
        choose_compilation(small_config("TRAINING.compile=true"), cpu)
    assert caught.value.problems == (
        "test: [TRAINING] compile = true: must be auto or false: no compiler works here (nothing for cpu)",
    )
    long = small_config(f"TRAINING.N_epochs={STEPS_THAT_REPAY}")
    assert choose_compilation(long, cpu) == "no compiler works here (nothing for cpu)"
    assert choose_compilation(small_config("TRAINING.compile=false"), cpu) == "compile = false"
    monkeypatch.setattr("lvkam.build.problem_of_compiling", lambda kind: None)
    assert choose_compilation(long, cpu) is None
    assert choose_compilation(small_config("TRAINING.compile=true"), cpu) is None


def test_all_kernels_must_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def torchs(kind: str) -> str | None:
        asked.append(kind)
        return None

    monkeypatch.setattr("lvkam.build.compiler_problem", torchs)
    monkeypatch.setattr("lvkam.build.kernel_problem", lambda: "no g++")
    assert problem_of_compiling() == problem_of_compiling("cpu") == "no g++"
    assert problem_of_compiling("cuda") is None  # has none of ours
    monkeypatch.setattr("lvkam.build.kernel_problem", lambda: None)
    assert problem_of_compiling() is None
    monkeypatch.setattr("lvkam.build.compiler_problem", lambda kind: "nothing")
    assert problem_of_compiling() == problem_of_compiling("cuda") == "nothing"
    assert asked == ["cpu", "cpu", "cuda", "cpu"]


AUTO, TRUE, FALSE = (f"TRAINING.compile={value}" for value in ("auto", "true", "false"))
BEGAN = "nor were they when the run began"
NOTHING = "no compiler works here (nothing for cpu)"


@pytest.mark.parametrize(
    ("key", "before", "works", "expected"),
    [
        # what was decided when the run began is kept, whatever its length has become
        (AUTO, True, True, None),
        (AUTO, False, True, BEGAN),
        (AUTO, False, False, BEGAN),
        # who says what is wanted is obeyed
        (TRUE, False, True, None),
        (TRUE, True, True, None),
        (FALSE, True, True, "compile = false"),
        (FALSE, True, False, "compile = false"),
        (FALSE, False, True, "compile = false"),
    ],
)
def test_a_run_that_goes_on_keeps_to_what_was_decided(
    key: str, before: bool, works: bool, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lvkam.build.problem_of_compiling", lambda kind: None if works else f"nothing for {kind}")
    for epochs in (1, STEPS_THAT_REPAY):
        config = small_config(key, f"TRAINING.N_epochs={epochs}")
        assert choose_compilation(config, torch.device("cpu"), before) == expected


@pytest.mark.parametrize(
    ("key", "before", "allowed"),
    [
        (
            AUTO, True,
            "auto: must be false, to go on without the compiler that the run began with (nothing for cpu), "
            "not to the same bits",
        ),
        (TRUE, True, f"true: must be auto or false: {NOTHING}"),
        (TRUE, False, f"true: must be auto or false: {NOTHING}"),
    ],
)  # fmt: skip
def test_a_run_does_not_go_on_otherwise_than_it_began_unasked(
    key: str, before: bool, allowed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lvkam.build.problem_of_compiling", lambda kind: f"nothing for {kind}")
    with pytest.raises(ConfigError) as caught:
        choose_compilation(small_config(key), torch.device("cpu"), before)
    assert caught.value.problems == (f"test: [TRAINING] compile = {allowed}",)


def test_a_compiler_for_a_gpu_that_is_not_there_is_no_matter(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger("torch.utils.cpp_extension")

    def warn(*_: object, **__: object) -> Callable[[Tensor], Tensor]:
        # as a CUDA build of torch does where there is nvcc and no GPU
        logger.warning("No CUDA runtime is found, using CUDA_HOME='/usr/local'")
        return torch.exp

    monkeypatch.setattr(torch, "compile", warn)
    level = logger.level
    assert compiler_problem.__wrapped__() is None
    assert not caplog.records
    assert logger.level == level
