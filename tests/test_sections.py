"""Defaults, types and ranges of every key, against a table written out from the specification."""

from __future__ import annotations

import math
from typing import Any

import pytest
from pydantic import ValidationError

from lvkam.config import SECTIONS, Config
from lvkam.sections import Section, allowed_text, write_value

UNIVARIATE = """\
spline_degree = 3
base_activation = silu
spline_function = B-spline
grid_size = 12
grid_update_ratio = 0.05
grid_range = 0, 1
ε_scale = 0.1
μ_scale = 1
σ_base = 1
σ_spline = 1
init_η = 1
η_trainable = true
"""
REFERENCE = f"""\
[MIX_PRIOR]
layer_widths = 50, 101
{UNIVARIATE}
π_0 = uniform
[KAN_LIKELIHOOD]
expert_widths = 101, 202
{UNIVARIATE}
generator_noise_var = 0.0
generator_variance = 1
likelihood_model = bernoulli
output_activation = sigmoid
gating_activation = celu
[GRID_UPDATING]
update_prior_grid = true
update_llhood_grid = true
num_grid_updating_samples = 64
grid_update_frequency = 50
grid_update_decay = 0.99
[THERMODYNAMIC_INTEGRATION]
num_temps = 69
p = 5
[TRAINING]
batch_size = 64
MC_expectation_sample_size = 64
N_train = 32000
N_test = 64
num_generated_samples = 3200
batch_size_for_gen = 64
N_epochs = 10
use_gpu = true
dataset = MNIST
update_grid = true
verbose = false
[OPTIMIZER]
type = adam
learning_rate = 0.005
l-bfgs_memory = 100
[LINE_SEARCH]
type = morethuente
c_1 = 1e-4
c_2 = 0.9
rho = 0.5
"""
"""The reference's keys with their values."""

ADDED = """\
[MIX_PRIOR]
normalization = quadrature
quadrature_points = 256
[KAN_LIKELIHOOD]
hidden_grid_range = none
[THERMODYNAMIC_INTEGRATION]
estimator = trapezoid
resampler = none
resampling_threshold = 0.5
moves_per_temperature = 0
[TRAINING]
initial_sample_size = none
img_resize = native
seed = 1
max_seconds = none
compile = auto
precision = fp32
checkpoint_every = 1
checkpoint_minutes = 10
gen_every = 0
binarize = none
shard = batch
gradient_samples = all
gradient_selection = top
[OPTIMIZER]
schedule = constant
prior_rate = 1
warmup_steps = 0
step_every = 3
step_factor = 0.5
"""
"""What lvkam adds, and its defaults."""

FREE_TEXT = {"update_grid", "gating_activation", "dataset"}


def value_of(key: str, text: str) -> Any:
    """What INI text means, found out without lvkam."""
    if key not in FREE_TEXT:
        if text in {"true", "false"} and key != "compile":
            return text == "true"
        for kind in (int, float, lambda t: tuple(float(part) for part in t.split(","))):
            try:
                return kind(text)
            except ValueError:
                continue
    return text


def table_of(*texts: str) -> dict[tuple[str, str], str]:
    """(section, key) -> text."""
    table: dict[tuple[str, str], str] = {}
    section = ""
    for line in "\n".join(texts).splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line:
            key, _, value = line.partition(" = ")
            assert table.setdefault((section, key), value) == value
    return table


DEFAULTS = table_of(REFERENCE, ADDED)


def integers(low: int, high: int) -> tuple[str, dict[str, Any], list[str]]:
    wrong = [str(low - 1), str(high + 1), f"{low}.5", "x", "", "nan", "inf", f"{low}, {low}", "true", "9" * 5000]
    return f"an integer from {low} to {high}", {str(low): low, str(high): high, f"+{low + 1}": low + 1}, wrong


def numbers(words: str, good: list[str], bad: list[str]) -> tuple[str, dict[str, Any], list[str]]:
    wrong = [*bad, "x", "", "nan", "inf", "-inf", "1e999", "0.5, 0.5", "true"]
    return f"a number{words}", {text: float(text) for text in good}, wrong


def words(*known: str) -> tuple[str, dict[str, Any], list[str]]:
    return f"one of {', '.join(known)}", {w: w for w in known}, ["", "nonsense", known[0] + "x", "1", ", ".join(known)]


COUNT = integers(1, 10**9)
COUNT_OR_ZERO = integers(0, 10**9)
POSITIVE = numbers(" greater than 0", ["1e-300", "3", "1e300"], ["0", "-0.0", "-1e-300"])
SIZE = numbers(" from 0 to 1000000", ["0", "0.25", "1e6"], ["-1e-300", "-1", "1000001"])
WIDTH = numbers(" from 0.0001 to 1000000", ["1e-4", "3", "1e6"], ["0", "9e-5", "-1", "1000001"])
SHARE = numbers(" from 0 to 1", ["0", "1", ".5", "1."], ["-1e-9", "1.000001"])
OPEN_SHARE = numbers(" between 0 and 1", ["1e-300", "0.999999"], ["0", "1", "-0.5", "2"])
FACTOR = numbers(" from -1000000 to 1000000", ["-1e6", "0", "1E-4", "+2", "1e6"], ["-1000001", "1000001"])
SWITCH = ("true or false", {"true": True, "false": False}, ["yes", "1", "", "none", "truefalse"])
ANY_TEXT = ("any text", {"celu": "celu", "50% of a;b": "50% of a;b", "1": "1"}, [""])
WIDTHS = {"1000000, 1": (10**6, 1), "3 ,4,5": (3, 4, 5), "7,\t8": (7, 8)}
NO_WIDTHS = [
    "",
    "x",
    "5, x",
    "5,,6",
    "5, 6,",
    ",5",
    "5 6",
    "0, 5",
    "5, -1",
    "5, 1000001",
    "5, 1.5",
    ", ".join("1" * 65),
]
RANGE = {"0,1": (0, 1), "-1.5 , 2": (-1.5, 2), "1e-3,\t1e3": (0.001, 1000)}
NO_RANGE = ["", "1", "0, 1, 2", "0 1", "0,", "a, b", "nan, 1", "0, inf", "-inf, 0", "0, 1000001"]
ACTIVATIONS = words("relu", "leakyrelu", "tanh", "sigmoid", "swish", "gelu", "selu", "silu", "elu", "celu", "none")
OPTIMIZERS = words(
    "adam", "adamw", "sgd", "rms", "bfgs", "l-bfgs", "cg", "gd", "newton", "interior-point", "neldermead"
)
UNIVARIATE_RULES = {
    "spline_degree": integers(1, 5),
    "base_activation": ACTIVATIONS,
    "spline_function": words("B-spline", "RBF", "RSWAF"),
    "grid_size": integers(1, 10000),
    "grid_update_ratio": SHARE,
    "grid_range": ("two numbers from -1000000 to 1000000, the smaller one first", RANGE, NO_RANGE),
    "ε_scale": SIZE,
    "μ_scale": FACTOR,
    "σ_base": FACTOR,
    "σ_spline": FACTOR,
    "init_η": WIDTH,
    "η_trainable": SWITCH,
}
RULES: dict[str, dict[str, tuple[str, dict[str, Any], list[str]]]] = {
    "MIX_PRIOR": {
        **UNIVARIATE_RULES,
        "layer_widths": (
            "2 or more integers from 1 to 1000000, separated by commas", WIDTHS, [*NO_WIDTHS, "5"],
        ),
        "π_0": words("uniform", "gaussian"),
        "normalization": words("quadrature", "contrastive"),
        "quadrature_points": integers(32, 100000),
    },
    "KAN_LIKELIHOOD": {
        **UNIVARIATE_RULES,
        "expert_widths": (
            "1 or more integers from 1 to 1000000, separated by commas", {**WIDTHS, "5": (5,)}, NO_WIDTHS,
        ),
        "hidden_grid_range": (
            "two numbers from -1000000 to 1000000, the smaller one first, or none",
            {"none": None, **RANGE},
            [*NO_RANGE, "native"],
        ),
        "generator_noise_var": SIZE,
        "generator_variance": WIDTH,
        "likelihood_model": words("bernoulli", "l2"),
        "output_activation": words("sigmoid", "tanh", "none"),
        "gating_activation": ANY_TEXT,
    },
    "GRID_UPDATING": {
        "update_prior_grid": SWITCH,
        "update_llhood_grid": SWITCH,
        "num_grid_updating_samples": integers(1, 10**6),
        "grid_update_frequency": COUNT,
        "grid_update_decay": SHARE,
    },
    "THERMODYNAMIC_INTEGRATION": {
        "num_temps": integers(-1, 10**6),
        "p": POSITIVE,
        "estimator": words("trapezoid", "steppingstone", "telescoped"),
        "resampler": words("none", "stratified", "systematic", "residual"),
        "resampling_threshold": SHARE,
        "moves_per_temperature": integers(0, 10**6),
    },
    "TRAINING": {
        **dict.fromkeys(("batch_size", "MC_expectation_sample_size", "N_train", "N_test", "N_epochs"), COUNT),
        **dict.fromkeys(("num_generated_samples", "batch_size_for_gen", "checkpoint_every"), COUNT),
        "initial_sample_size": (
            "an integer from 1 to 1000000000, or none",
            {"none": None, "1": 1, "1000000000": 10**9},
            ["all", "", "0", "1000000001", "1.5", "None"],
        ),
        "use_gpu": SWITCH,
        "dataset": ANY_TEXT,
        "update_grid": ANY_TEXT,
        "verbose": SWITCH,
        "img_resize": (
            "two integers from 1 to 4096 (height, width), or native",
            {"native": None, "14,14": (14, 14), "1 , 4096": (1, 4096)},
            ["none", "", "14", "0, 14", "14, 4097", "14, 14, 1", "14.5, 14", "14 x 14"],
        ),
        "seed": integers(0, 2**63 - 1),
        "max_seconds": (
            "a number greater than 0, or none",
            {"none": None, "0.5": 0.5, "1e9": 1e9},
            ["native", "", "0", "-1", "nan", "inf"],
        ),
        "compile": words("auto", "true", "false"),
        "precision": words("fp32", "bf16", "auto"),
        "checkpoint_minutes": POSITIVE,
        "gen_every": COUNT_OR_ZERO,
        "binarize": words("none", "static", "dynamic"),
        "shard": words("batch", "samples"),
        "gradient_samples": (
            "all, or an integer from 1 to 1000000000",
            {"all": "all", "1": 1, "1000000000": 10**9},
            ["none", "", "0", "1000000001", "1.5", "All"],
        ),
        "gradient_selection": words("top", "resampled"),
    },
    "OPTIMIZER": {
        "type": OPTIMIZERS,
        "learning_rate": POSITIVE,
        "prior_rate": SIZE,
        "l-bfgs_memory": integers(1, 10**6),
        "schedule": words("constant", "cosine", "step"),
        "warmup_steps": COUNT_OR_ZERO,
        "step_every": COUNT,
        "step_factor": OPEN_SHARE,
    },
    "LINE_SEARCH": {
        "type": words("morethuente", "strongwolfe", "backtrack", "hagerzhang"),
        "c_1": OPEN_SHARE,
        "c_2": OPEN_SHARE,
        "rho": OPEN_SHARE,
    },
}  # fmt: skip
"""Section -> key -> what is allowed, in words; texts with their values; texts that are refused."""

EVERY_KEY = [(section, key) for section, rules in RULES.items() for key in rules]


def test_the_tables_of_this_file_name_every_key() -> None:
    assert sorted(EVERY_KEY) == sorted(DEFAULTS)
    assert {s: sorted(kind.fields_by_key()) for s, kind in SECTIONS.items()} == {s: sorted(k) for s, k in RULES.items()}


@pytest.mark.parametrize(("section", "key"), DEFAULTS)
def test_default_is_the_specifications(section: str, key: str) -> None:
    value, expected = Config().to_dict()[section][key], value_of(key, DEFAULTS[section, key])
    assert value == expected
    assert isinstance(value, bool) == isinstance(expected, bool)
    assert write_value(value).replace(" ", "") == write_value(expected).replace(" ", "")


@pytest.mark.parametrize(("section", "key"), EVERY_KEY)
def test_a_key_takes_what_it_allows_and_nothing_else(section: str, key: str) -> None:
    words, good, bad = RULES[section][key]
    kind, (name, field) = SECTIONS[section], SECTIONS[section].fields_by_key()[key]
    assert allowed_text(field) == words
    for text, value in good.items():
        read = getattr(kind.model_validate({key: text}), name)
        assert read == value, text
        assert type(read) is type(value)
    for text in bad:
        # KeyError is what a word that is neither true nor false raises; lvkam.config expects both
        with pytest.raises((ValidationError, KeyError)):
            kind.model_validate({key: text})


@pytest.mark.parametrize("section", RULES)
def test_sections_are_frozen_and_closed(section: str) -> None:
    held = SECTIONS[section]()
    for name, _ in held.fields_by_key().values():
        with pytest.raises(ValidationError, match="frozen"):
            setattr(held, name, getattr(held, name))
    with pytest.raises(ValidationError, match="Extra inputs"):
        SECTIONS[section].model_validate({"nonsense": 1})


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "true"), (False, "false"), (3, "3"), (-1, "-1"), (2**63 - 1, "9223372036854775807"),
        (1.0, "1"), (-2.0, "-2"), (0.005, "0.005"), (1e-4, "0.0001"), (1e-300, "1e-300"), (1e300, "1e+300"),
        (0.1 + 0.2, "0.30000000000000004"), ((50, 101), "50, 101"), ((0.0, 1.5), "0, 1.5"), ("B-spline", "B-spline"),
    ],
)  # fmt: skip
def test_values_are_written_exactly(value: object, text: str) -> None:
    assert write_value(value) == text
    if isinstance(value, float):
        assert math.isclose(float(text), value, rel_tol=0)


def test_widths_are_read_from_the_last_to_the_first() -> None:
    prior = SECTIONS["MIX_PRIOR"].model_validate({"layer_widths": "5, 10, 21"})
    assert (getattr(prior, "num_components", 0), getattr(prior, "latent_dim", 0)) == (5, 21)
    assert isinstance(prior, Section)
