"""Configurations and command lines made by chance: success or one message, never a traceback."""

from __future__ import annotations

import contextlib
import importlib
import io
import math
import os
import sys
import warnings
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import hypothesis
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from lvkam.build import build_model, model_arrays
from lvkam.checkpoint import model_layout
from lvkam.config import SECTIONS, Config, ConfigError, ConfigWarning, parse_config
from lvkam.experiment import run_experiment
from lvkam.interruption import Interruption
from lvkam.sections import write_value
from tests.conftest import small_config
from tests.reliability.harness import report, scaled

EXAMPLES = scaled(300, 10000)

hypothesis.settings.register_profile(
    "reliability", max_examples=EXAMPLES, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)  # fmt: skip

TEXT = st.text(st.characters(codec="utf-8"), max_size=30)
NUMBERS = st.one_of(
    st.integers(-5, 200).map(str), st.integers().map(str), st.floats().map(str), st.floats(0, 1).map(str),
    st.sampled_from(["1e400", "0x10", "1_0", "٣", "1e-320", "-0", "nan", "inf", "1.", "+3", "2**3", "9" * 400]),
)  # fmt: skip
LISTS = st.lists(NUMBERS, max_size=5).map(", ".join)
DEFAULTS = {(s, key): value for s, section in Config().sections() for key, value in section.values_by_key().items()}
WORDS = st.sampled_from(sorted({str(v) for v in DEFAULTS.values()} | {"true", "false", "none", "all", "RBF", "l2"}))
VALUES = st.one_of(WORDS, NUMBERS, LISTS, TEXT)
KEYS = st.one_of(st.sampled_from([key for _, key in DEFAULTS]), TEXT)
ASSIGNMENTS = st.tuples(KEYS, VALUES).map("TRAINING.{0[0]}={0[1]}".format)


def right_values(section: str, key: str) -> st.SearchStrategy[str]:
    """Values that a key takes, as far as no other key speaks against them."""
    annotation = SECTIONS[section].fields_by_key()[key][1].annotation
    default = write_value(DEFAULTS[section, key])
    if annotation is bool:
        return st.sampled_from(["true", "false", "TRUE"])
    if get_origin(annotation) is Literal:
        return st.sampled_from([default, *get_args(annotation)])
    if annotation is int:
        return st.one_of(st.just(default), st.integers(1, 60).map(str))
    if annotation is float:
        return st.one_of(st.just(default), st.floats(0.001, 0.9).map(str))
    return st.just(default)


@st.composite
def right_texts(draw: st.DrawFn) -> str:
    """Files whose every value is right by itself, and most often all together."""
    lines = []
    for section in draw(st.permutations(list(SECTIONS))):
        lines.append(draw(st.sampled_from([f"[{section}]", f"[{section.lower()}]"])))
        own = st.lists(st.sampled_from(sorted(SECTIONS[section].fields_by_key())), max_size=3, unique=True)
        lines += [f"{key} = {draw(right_values(section, key))}" for key in draw(own)]
    return "\n".join(lines)


@st.composite
def odd_texts(draw: st.DrawFn) -> str:
    """Sections with their own keys, some of them with odd values, and lines that are nothing."""
    lines = []
    for section in draw(st.lists(st.one_of(st.sampled_from(list(SECTIONS)), TEXT), max_size=5)):
        lines.append(f"[{section}]")
        own = sorted(SECTIONS[section].fields_by_key()) if section in SECTIONS else ["a"]
        for key in draw(st.lists(st.one_of(st.sampled_from(own), KEYS), max_size=4)):
            lines.append(draw(st.sampled_from(["{} = {}", "{}={}", "{} = {} ; why", "{}", "  {}  =  {}"])).format(
                key, draw(VALUES)
            ))  # fmt: skip
    return draw(st.sampled_from(["", "\ufeff", "; a comment\n", "junk\n"])) + "\n".join(lines)


def read(text: str, overrides: list[str]) -> Config | tuple[str, ...]:
    """The configuration, or what is wrong with it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConfigWarning)
        try:
            return parse_config(text, "a.ini", overrides)
        except ConfigError as error:
            return error.problems


@hypothesis.settings(hypothesis.settings.get_profile("reliability"))
@given(
    st.one_of(right_texts(), odd_texts()), st.one_of(st.just([]), st.lists(st.one_of(TEXT, ASSIGNMENTS), max_size=2))
)
def test_any_configuration_is_read_or_refused(text: str, overrides: list[str]) -> None:
    config = read(text, overrides)
    if isinstance(config, Config):
        assert parse_config(config.to_ini(), "a.ini") == config
        layout = model_layout(config, 20)
        if sum(math.prod(shape) for _, shape in layout.values()) < 20000:
            assert {name: array.shape for name, array in model_arrays(build_model(config, 20)).items()} == {
                name: shape for name, (_, shape) in layout.items()
            }
            report("generated configurations built", 1)
        report("generated configurations read", 1)
        return
    assert config
    assert all(problem.startswith(("a.ini", "--set")) for problem in config)
    report("generated configurations refused", 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files to name on a command line; none of the configurations leads to a training."""
    folder = tmp_path_factory.mktemp("user")
    run_experiment(small_config("TRAINING.N_epochs=1"), folder / "run", say=lambda _: None)
    (folder / "small.ini").write_text(small_config().to_ini())
    (folder / "nowhere.ini").write_text(small_config().to_ini().replace("dataset = MNIST", "dataset = NOWHERE"))
    (folder / "bad.ini").write_text("[TRAINING]\nseed = x\n")
    (folder / "bytes.ini").write_bytes(b"\xff\xfe\x00")
    (folder / "ckpt.h5").write_bytes((folder / "run" / "ckpt.h5").read_bytes())
    return folder


CONFIGS = st.sampled_from(["nowhere.ini", "bad.ini", "bytes.ini", "missing.ini", "run", ""])
FILES = st.sampled_from(["ckpt.h5", "small.ini", "run", "missing.h5", "", "run/samples.h5", "a/b/c.h5", "a.png", "."])
SMALL = st.sampled_from(["0", "1", "2", "3", "17", "-1", "x", "", "1e3", "9" * 30])
OPTIONS: dict[str, dict[str, Any]] = {
    "train": {"--output": FILES, "--overwrite": None, "--resume": None, "--seed": SMALL, "--device": FILES,
              "--data-dir": FILES, "--set": ASSIGNMENTS},
    "sample": {"-n": SMALL, "--seed": SMALL, "--output": FILES, "--grid": FILES, "--save-latents": None,
               "--overwrite": None},
    "evaluate": {"--estimator": st.sampled_from(["importance", "annealed", "x"]), "--num-images": SMALL,
                 "--num-samples": SMALL, "--num-temps": SMALL, "--moves": SMALL, "--metrics": st.just("nll"),
                 "--per-image": FILES, "--overwrite": None, "--seed": SMALL, "--data-dir": FILES, "--json": None},
    "plot": {"--what": st.sampled_from(["temperatures", "x", ""]), "--output": FILES, "--num-images": SMALL,
             "--seed": SMALL},
    "info": {"--json": None},
    "check": {"--output": FILES, "--seed": SMALL, "--set": ASSIGNMENTS},
}  # fmt: skip


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    command = draw(st.sampled_from([*OPTIONS, *OPTIONS, "", "nothing", "--version", "-h"]))
    words = [command] if command else []
    if command in OPTIONS:
        names = draw(st.lists(st.sampled_from(list(OPTIONS[command])), max_size=3))
        # the defaults take seconds
        forced = ["--num-images", "--num-samples", "--num-temps"] if command == "evaluate" else []
        for name in [*forced, *names]:
            words.append(name)
            if OPTIONS[command][name] is not None:
                words.append(draw(OPTIONS[command][name]).replace("\0", ""))
        if draw(st.integers(0, 9)):
            # a picture takes seconds: `plot` is given no checkpoint
            words.append(draw(FILES if command in {"sample", "evaluate", "info"} else CONFIGS))
    if command == "train":  # whatever else is given: it is not to train
        words += ["--set", "TRAINING.dataset=NOWHERE"]
    if not draw(st.integers(0, 5)):
        words.insert(draw(st.integers(0, len(words))), draw(TEXT).replace("\0", ""))
    return words


@hypothesis.settings(hypothesis.settings.get_profile("reliability"))
@given(command_lines())
def test_any_command_line_ends_with_a_status(folder: Path, words: list[str]) -> None:
    told = io.StringIO()
    before, argv = Path.cwd(), sys.argv
    os.chdir(folder)
    sys.argv = ["lvkam", *words]
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
            warnings.simplefilter("ignore")
            status = importlib.import_module("lvkam_cli.main")._run(Interruption())
    finally:
        os.chdir(before)
        sys.argv = argv
    assert status in {0, 1, 2}
    assert status == 0 or told.getvalue().strip()
    assert (folder / "ckpt.h5").read_bytes() == (folder / "run" / "ckpt.h5").read_bytes()
    report(f"generated command lines ended with status {status}", 1)
