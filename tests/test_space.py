"""Search spaces: what a file may say, what it comes to, and every message."""

from __future__ import annotations

from pathlib import Path

import pytest

from lvkam.config import Config, ConfigError, load_config
from lvkam.space import Choices, Dimension, Range, read_space
from tests.conftest import REPOSITORY


def space(tmp_path: Path, text: str) -> list[Dimension]:
    path = tmp_path / "s.ini"
    path.write_text(text, encoding="utf-8")
    return read_space(path, Config())


def test_ranges_choices_and_settings_that_go_together(tmp_path: Path) -> None:
    text = """
    ; searched
    [optimizer]
    learning_rate = 0.003 .. 0.1 log   ; evenly in its logarithm
    [TRAINING]
    batch_size = 64..512
    gradient_samples = 1 .. 8
    precision = fp32 | bf16
    [KAN_LIKELIHOOD]
    σ_base = 1 .. 2
    [TOGETHER]
    latents = MIX_PRIOR.layer_widths=5, 15 & KAN_LIKELIHOOD.expert_widths=15, 32 | MIX_PRIOR.layer_widths=50, 101
    """
    found = space(tmp_path, text)
    assert [(dimension.name, dimension.domain) for dimension in found] == [
        ("OPTIMIZER.learning_rate", Range(0.003, 0.1, False, True)),
        ("TRAINING.batch_size", Range(64, 512, True, False)),
        ("TRAINING.gradient_samples", Range(1, 8, True, False)),
        ("TRAINING.precision", Choices(("fp32", "bf16"))),
        ("KAN_LIKELIHOOD.σ_base", Range(1.0, 2.0, False, False)),
        ("TOGETHER.latents", Choices((
            "MIX_PRIOR.layer_widths=5, 15 & KAN_LIKELIHOOD.expert_widths=15, 32", "MIX_PRIOR.layer_widths=50, 101",
        ))),
    ]  # fmt: skip
    assert found[1].overrides(96) == ["TRAINING.batch_size=96"]
    assert found[3].overrides("bf16") == ["TRAINING.precision=bf16"]
    *_, last = found
    assert isinstance(last.domain, Choices)
    assert last.overrides(last.domain.values[0]) == [
        "MIX_PRIOR.layer_widths=5, 15", "KAN_LIKELIHOOD.expert_widths=15, 32",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "no key has a range (0.1 .. 1) or choices (a | b)"),
        ("[TRAINING]", "no key has a range"),
        ("[TRAINING]\nbatch_sise = 1 .. 2", "[TRAINING] batch_sise: unknown key; did you mean 'batch_size'?"),
        ("[NONE]\nseed = 1 .. 2", "[NONE]: unknown section"),
        ("[TRAINING]\nseed = 3", "seed = 3: must be a range (0.1 .. 1, or 0.1 .. 1 log), or different choices (a | b)"),
        ("[TRAINING]\nseed = 3 | 3", "[TRAINING] seed = 3 | 3: must be a range"),
        ("[TRAINING]\nseed = 3 .. 2", "[TRAINING] seed = 3 .. 2: must be two numbers, the smaller one first"),
        ("[TRAINING]\nseed = 3 .. x", "[TRAINING] seed = x: must be an integer from 0"),
        ("[TRAINING]\nseed = 0 .. 9 log", "[TRAINING] seed = 0 .. 9 log: must begin above 0"),
        ("[TRAINING]\nprecision = fp32 .. bf16", "precision = fp32 .. bf16: must be two numbers, the smaller"),
        ("[TRAINING]\nprecision = fp32 | fp8", "[TRAINING] precision = fp8: must be one of fp32, bf16, auto"),
        ("[TRAINING]\nbatch_size = 64 .. 40000", "[TRAINING] batch_size = 40000: must be at most N_train = 32000"),
        ("[TOGETHER]\nx = MIX_PRIOR.layer_widths=5, 15 | MIX_PRIOR.layer_widths=50, 101",
         "[KAN_LIKELIHOOD] expert_widths = 101, 202: must be a list that begins with 15"),
        ("[TOGETHER]\nx = nonsense | TRAINING.seed=1", "nonsense: must be SECTION.key=value"),
        ("[TOGETHER]\nx = TRAINING.seed=1", "[TOGETHER] x = TRAINING.seed=1: must be a range"),
        ("stray", "line 1: not 'key = value' in a section: stray"),
    ],
)  # fmt: skip
def test_whatever_is_no_space_is_refused_with_its_place(text: str, problem: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        space(tmp_path, text)
    (message,) = caught.value.problems
    assert problem in message
    assert "s.ini" in message or "Config" in message or "--set" not in message


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        space(tmp_path, "[TRAINING]\nseed = 3 .. 2\nprecision = fp8 | fp4\n[NONE]\nx = 1 | 2")
    assert len(caught.value.problems) == 4


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        read_space(tmp_path / "none.ini", Config())


@pytest.mark.parametrize("name", ["nist_config.ini", "config/mnist_quality.ini"])
def test_the_repositorys_space_fits_the_configurations_that_it_names(name: str) -> None:
    found = read_space(REPOSITORY / "config" / "mnist_space.ini", load_config(REPOSITORY / name))
    assert [dimension.name for dimension in found][-1] == "TOGETHER.size"
