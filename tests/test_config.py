"""A configuration from its file: the dialect, every wrong file with its whole message, overrides, round trips."""

from __future__ import annotations

import configparser
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from lvkam.config import SECTIONS, Config, ConfigError, ConfigWarning, key_table, load_config, parse_config
from tests.conftest import REPOSITORY
from tests.test_sections import DEFAULTS, EVERY_KEY, REFERENCE, RULES, table_of


def read_alone(section: str, key: str, text: str) -> object:
    return SECTIONS[section].model_validate({key: text}).values_by_key()[key]


ONE_VALUE = {"output_activation", "binarize", "shard", "moves_per_temperature"}
"""Keys whose other values contradict what another key is by default or in `ALTERED`."""

ALTERED = {
    (section, key): next(text for text in good if read_alone(section, key, text) != read_alone(section, key, default))
    for (section, key), default in DEFAULTS.items()
    for good in [RULES[section][key][1]]
    if key not in ONE_VALUE
} | table_of("""
[MIX_PRIOR]
layer_widths = 5, 7, 101
[KAN_LIKELIHOOD]
expert_widths = 101, 3, 4
[THERMODYNAMIC_INTEGRATION]
num_temps = 1
[TRAINING]
batch_size = 50
N_train = 500
N_test = 10000
dataset = FMNIST
[OPTIMIZER]
type = sgd
""")
"""Another value for each other key; together they contradict neither each other nor any default."""


def ini(table: dict[tuple[str, str], str]) -> str:
    by_section: dict[str, list[str]] = {}
    for (section, key), value in table.items():
        by_section.setdefault(section, [f"[{section}]"]).append(f"{key} = {value}")
    return "\n".join(line for lines in by_section.values() for line in lines)


def parse(text: str, *overrides: str) -> Config:
    return parse_config(text, "a.ini", overrides)


def values(config: Config) -> dict[tuple[str, str], object]:
    return {(section, key): v for section, keys in config.to_dict().items() for key, v in keys.items()}


def problems(text: str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(text, *overrides)
    assert str(caught.value).splitlines() == list(caught.value.problems)
    return list(caught.value.problems)


@pytest.mark.parametrize("text", ["", "\ufeff", "; nothing\n", "[TRAINING]\n", "\n".join(f"[{s}]" for s in SECTIONS)])
def test_nothing_given_is_all_defaults(text: str) -> None:
    assert parse(text).to_dict() == Config().to_dict()
    assert parse(ini(DEFAULTS)).to_dict() == Config().to_dict()


@pytest.mark.parametrize("absent", EVERY_KEY, ids=".".join)
def test_an_absent_key_has_its_default(absent: tuple[str, str]) -> None:
    held = values(parse(ini({place: v for place, v in ALTERED.items() if place != absent})))
    for place, value in held.items():
        expected = DEFAULTS if place == absent or place not in ALTERED else ALTERED
        assert value == read_alone(*place, expected[place]), place
        assert place == absent or place not in ALTERED or value != values(Config())[place]


@pytest.mark.parametrize(
    ("text", "section", "key", "value"),
    [
        ("\ufeff[mix_prior]\r\n  ε_scale = 0.5 ; noise\r\n", "MIX_PRIOR", "ε_scale", 0.5),
        ("[Mix_Prior]\n\N{MICRO SIGN}_scale = 2", "MIX_PRIOR", "μ_scale", 2),
        ("[MIX_PRIOR]\n\N{GREEK SMALL LETTER MU}_scale = 2", "MIX_PRIOR", "μ_scale", 2),
        ("[MIX_PRIOR]\nπ_0 = gaussian", "MIX_PRIOR", "π_0", "gaussian"),
        ("[MIX_PRIOR]\nη_trainable = false # fixed", "MIX_PRIOR", "η_trainable", False),
        ("[MIX_PRIOR]\ngrid_range = 0,1 ", "MIX_PRIOR", "grid_range", (0, 1)),
        ("[MIX_PRIOR]\nlayer_widths = 5 ,10,  101\t; P, hidden, Q", "MIX_PRIOR", "layer_widths", (5, 10, 101)),
        ("[OPTIMIZER]\nlearning_rate = 1e-4", "OPTIMIZER", "learning_rate", 1e-4),
        ("[TRAINING]\ndataset = 50%(a)s;#", "TRAINING", "dataset", "50%(a)s;#"),
        ("[KAN_LIKELIHOOD]\ngating_activation = whatever", "KAN_LIKELIHOOD", "gating_activation", "whatever"),
        ("[TRAINING]\nupdate_grid = whatever", "TRAINING", "update_grid", "whatever"),
    ],
)
def test_the_dialect(text: str, section: str, key: str, value: object, tmp_path: Path) -> None:
    (file := tmp_path / "a.ini").write_bytes(text.encode())
    held = values(load_config(file))
    assert held.pop((section, key)) == value
    assert held.items() <= values(Config()).items()


@pytest.mark.parametrize(
    ("section", "key", "value", "says", "changed"),
    [
        ("KAN_LIKELIHOOD", "layer_widths", "101, 7", "an older name of [KAN_LIKELIHOOD] expert_widths",
         {("KAN_LIKELIHOOD", "expert_widths"): (101, 7)}),
        ("THERMODYNAMIC_INTEGRATION", "resampling_ess_threshold", "0.25",
         "an older name of [THERMODYNAMIC_INTEGRATION] resampling_threshold",
         {("THERMODYNAMIC_INTEGRATION", "resampling_threshold"): 0.25}),
        ("TRAINING", "resampling_ess_threshold", "0.25",
         "an older name of [THERMODYNAMIC_INTEGRATION] resampling_threshold",
         {("THERMODYNAMIC_INTEGRATION", "resampling_threshold"): 0.25}),
        ("KAN_LIKELIHOOD", "output_dim", "784", "an older key, without effect", {}),
        ("MIX_PRIOR", "inversion_sampling_interpolate", "true", "an older key, without effect", {}),
        ("TRAINING", "prior_regularization_weight", "1", "an older key, without effect", {}),
    ],
)  # fmt: skip
def test_older_keys_warn_once(
    section: str, key: str, value: str, says: str, changed: dict[tuple[str, str], object]
) -> None:
    with pytest.warns(ConfigWarning) as caught:
        held = values(parse(f"[{section}]\n{key} = {value}"))
    assert [str(w.message) for w in caught] == [f"a.ini: [{section}] {key}: {says}"]
    assert held == values(Config()) | changed


def test_an_older_key_beside_its_new_name_is_an_error() -> None:
    text = "[KAN_LIKELIHOOD]\nlayer_widths = 101, 7\nexpert_widths = 101, 8"
    assert problems(text) == [
        "a.ini: [KAN_LIKELIHOOD] layer_widths: an older name of expert_widths, which is given too"
    ]


def test_an_override_outranks_an_older_key() -> None:
    with pytest.warns(ConfigWarning):
        config = parse("[KAN_LIKELIHOOD]\nlayer_widths = 101, 7", "KAN_LIKELIHOOD.expert_widths=101, 8")
    assert config.generator.widths == (101, 8)


@pytest.mark.parametrize(("section", "key"), EVERY_KEY)
def test_a_wrong_value_is_told_whole(section: str, key: str) -> None:
    allowed, _, bad = RULES[section][key]
    for text in bad:
        told = f"[{section}] {key} = {text[:80]}: must be {allowed}"
        assert problems(f"[{section}]\n{key} = {text}") == [f"a.ini: {told}"]
        assert problems("", f"{section}.{key}={text}") == [f"--set: {told}"]


SECTION_LIST = "known sections: " + ", ".join(f"[{s}]" for s in RULES)
NOT_WIDTHS = "a list that begins with 101, the number of latent coordinates (the last of [MIX_PRIOR] layer_widths)"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[TRAINIG]\nseed = 2\nN_test = 3", "a.ini: [TRAINIG]: unknown section; did you mean [TRAINING]?"),
        ("[xyz]", f"a.ini: [XYZ]: unknown section; {SECTION_LIST}"),
        ("[DEFAULT]\nseed = 2", f"a.ini: [DEFAULT]: unknown section; {SECTION_LIST}"),
        ("[TRAINING]\nN_epoch = 2", "a.ini: [TRAINING] N_epoch: unknown key; did you mean 'N_epochs'?"),
        ("[TRAINING]\nSEED = 2", "a.ini: [TRAINING] SEED: unknown key; did you mean 'seed'?"),
        ("[TRAINING]\nnum_epochs = 2", "a.ini: [TRAINING] num_epochs: unknown key; did you mean 'N_epochs'?"),
        ("[MIX_PRIOR]\nε_scal = 2", "a.ini: [MIX_PRIOR] ε_scal: unknown key; did you mean 'ε_scale'?"),
        ("[MIX_PRIOR]\nexpert_widths = 2, 3",
         "a.ini: [MIX_PRIOR] expert_widths: unknown key; did you mean 'layer_widths'?"),
        ("[LINE_SEARCH]\nxyz = 2", "a.ini: [LINE_SEARCH] xyz: unknown key; known keys: type, c_1, c_2, rho"),
        ("seed = 2", "a.ini, line 1: not 'key = value' in a section: seed = 2"),
        ("[TRAINING]\nseed", "a.ini, line 2: not 'key = value' in a section: seed"),
        ("[TRAINING]\nseed = 2\nN_test = 2\nseed = 3", "a.ini: [TRAINING] seed: given twice, on lines 2 and 4"),
        ("[TRAINING]\nseed = 2\n[training]", "a.ini: [TRAINING]: given twice, on lines 1 and 3"),
        ("[KAN_LIKELIHOOD]\nexpert_widths = 50, 202",
         f"a.ini: [KAN_LIKELIHOOD] expert_widths = 50, 202: must be {NOT_WIDTHS}"),
        ("[MIX_PRIOR]\nlayer_widths = 101, 50",
         "a.ini: [KAN_LIKELIHOOD] expert_widths = 101, 202: must be " + NOT_WIDTHS.replace("101", "50")),
        *((f"[KAN_LIKELIHOOD]\noutput_activation = {word}", f"a.ini: [KAN_LIKELIHOOD] output_activation = {word}: "
           "must be sigmoid, which likelihood_model = bernoulli needs") for word in ("tanh", "none")),
        ("[TRAINING]\nN_train = 63", "a.ini: [TRAINING] batch_size = 64: must be at most N_train = 63"),
        ("[TRAINING]\ninitial_sample_size = 65",
         "a.ini: [TRAINING] initial_sample_size = 65: must be at most MC_expectation_sample_size = 64"),
        ("[KAN_LIKELIHOOD]\nhidden_grid_range = 1, -1",
         "a.ini: [KAN_LIKELIHOOD] hidden_grid_range = 1, -1: "
         "must be two numbers from -1000000 to 1000000, the smaller one first, or none"),
        ("[KAN_LIKELIHOOD]\nhidden_grid_range = 1000, 1000.01",
         "a.ini: [KAN_LIKELIHOOD] hidden_grid_range = 1000, 1000.01: "
         "must be wide enough for 12 intervals in single precision"),
        ("[TRAINING]\nbatch_size = 32001", "a.ini: [TRAINING] batch_size = 32001: must be at most N_train = 32000"),
        ("[TRAINING]\nN_train = 60001",
         "a.ini: [TRAINING] N_train = 60001: must be at most 60000, the training images of MNIST"),
        ("[TRAINING]\ndataset = FMNIST\nN_test = 10001",
         "a.ini: [TRAINING] N_test = 10001: must be at most 10000, the test images of FMNIST"),
        *((f"[{s}]\ngrid_range = {r}",
           f"a.ini: [{s}] grid_range = {r}: must be two numbers from -1000000 to 1000000, the smaller one first")
          for s in ("MIX_PRIOR", "KAN_LIKELIHOOD") for r in ("1, 0", "2, 2")),
        *((f"[{s}]\ngrid_range = 1000, 1000.01",
           f"a.ini: [{s}] grid_range = 1000, 1000.01: must be wide enough for 12 intervals in single precision")
          for s in ("MIX_PRIOR", "KAN_LIKELIHOOD")),
        *((f"{text}\n[TRAINING]\nshard = samples",
           f"a.ini: [TRAINING] shard = samples: must be batch, since {needs} needs all samples of an image in one "
           "process")
          for text, needs in (
              ("[MIX_PRIOR]\nnormalization = contrastive", "normalization = contrastive"),
              ("[THERMODYNAMIC_INTEGRATION]\nresampler = residual", "resampler = residual"),
              ("[THERMODYNAMIC_INTEGRATION]\nestimator = telescoped", "estimator = telescoped"),
          )),
        ("[TRAINING]\nshard = samples\ngradient_samples = 2\ngradient_selection = resampled",
         "a.ini: [TRAINING] shard = samples: must be batch, since gradient_selection = resampled needs all samples of "
         "an image in one process"),
        *((f"[KAN_LIKELIHOOD]\nlikelihood_model = l2\n[TRAINING]\nbinarize = {how}",
           f"a.ini: [TRAINING] binarize = {how}: "
           "must be none, since a Gaussian (likelihood_model = l2) has no probability of bits")
          for how in ("static", "dynamic")),
        *((f"[OPTIMIZER]\ntype = {name}\n[LINE_SEARCH]\ntype = {search}\nc_1 = 0.3\nc_2 = 0.3",
           "a.ini: [LINE_SEARCH] c_2 = 0.3: must be greater than c_1 = 0.3")
          for name in ("gd", "cg", "bfgs", "l-bfgs", "newton", "interior-point")
          for search in ("morethuente", "strongwolfe", "hagerzhang")),
        ("[OPTIMIZER]\ntype = cg\n[LINE_SEARCH]\ntype = hagerzhang\nc_1 = 0.5",
         "a.ini: [LINE_SEARCH] c_1 = 0.5: must be less than 0.5, which type = hagerzhang needs"),
        ("[THERMODYNAMIC_INTEGRATION]\nestimator = telescoped\nresampler = residual",
         "a.ini: [THERMODYNAMIC_INTEGRATION] resampler = residual: "
         "must be none, since estimator = telescoped resamples by itself"),
        ("[THERMODYNAMIC_INTEGRATION]\nestimator = telescoped\nmoves_per_temperature = 2",
         "a.ini: [THERMODYNAMIC_INTEGRATION] moves_per_temperature = 2: must be 0, which estimator = telescoped needs"),
        ("[MIX_PRIOR]\nnormalization = contrastive\n[THERMODYNAMIC_INTEGRATION]\nmoves_per_temperature = 1",
         "a.ini: [MIX_PRIOR] normalization = contrastive: "
         "must be quadrature, since after moves_per_temperature no draws of the prior are left"),
        # what is wrong itself contradicts nothing
        ("[MIX_PRIOR]\nlayer_widths = 5\n[KAN_LIKELIHOOD]\nexpert_widths = 7, 8",
         "a.ini: [MIX_PRIOR] layer_widths = 5: must be 2 or more integers from 1 to 1000000, separated by commas"),
        ("[KAN_LIKELIHOOD]\nlikelihood_model = l3\noutput_activation = tanh",
         "a.ini: [KAN_LIKELIHOOD] likelihood_model = l3: must be one of bernoulli, l2"),
        ("[KAN_LIKELIHOOD]\nlikelihood_model = l2\n[TRAINING]\nbinarize = yes",
         "a.ini: [TRAINING] binarize = yes: must be one of none, static, dynamic"),
        ("[TRAINING]\nN_train = many\nbatch_size = 40000",
         "a.ini: [TRAINING] N_train = many: must be an integer from 1 to 1000000000"),
        ("[TRAINING]\ndataset =\nN_train = 70000", "a.ini: [TRAINING] dataset = : must be any text"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_told_whole(text: str, expected: str) -> None:
    assert problems(text) == [expected]


@pytest.mark.parametrize(
    "text",
    ["[TRAINING]\nN_train = 60000\nN_test = 10000", "[TRAINING]\nN_train = 64", "[TRAINING]\nbatch_size = 32000",
     *(f"[TRAINING]\ncompile = {word}" for word in ("auto", "true", "false")),
     *(f"[TRAINING]\nprecision = {word}" for word in ("fp32", "bf16", "auto")),
     "[TRAINING]\ngradient_samples = 5\ngradient_selection = resampled",
     "[TRAINING]\ngradient_samples = 1000000000",  # no more than there are take part
     "[TRAINING]\ndataset = mine\nN_train = 70000", "[THERMODYNAMIC_INTEGRATION]\nnum_temps = 1",
     "[THERMODYNAMIC_INTEGRATION]\nnum_temps = 1000\nestimator = steppingstone\nresampler = systematic",
     "[THERMODYNAMIC_INTEGRATION]\nmoves_per_temperature = 3",  # resampled by strata
     *(f"[OPTIMIZER]\ntype = {word}" for word in ("bfgs", "l-bfgs", "cg", "gd", "newton", "interior-point")),
     "[TRAINING]\ninitial_sample_size = 64", "[KAN_LIKELIHOOD]\nhidden_grid_range = -2, 2",
     "[OPTIMIZER]\nprior_rate = 0",
     "[OPTIMIZER]\nschedule = cosine\nwarmup_steps = 10", "[OPTIMIZER]\nschedule = step\nstep_every = 1",
     # what is not used contradicts nothing
     *(f"[OPTIMIZER]\ntype = {word}\n[LINE_SEARCH]\nc_1 = 0.9\nc_2 = 0.1" for word in ("adam", "neldermead")),
     "[OPTIMIZER]\ntype = gd\n[LINE_SEARCH]\ntype = backtrack\nc_1 = 0.9\nc_2 = 0.1",
     "[THERMODYNAMIC_INTEGRATION]\nnum_temps = 1\nestimator = telescoped\nresampler = residual",
     "[KAN_LIKELIHOOD]\nlikelihood_model = l2\noutput_activation = tanh",
     "[TRAINING]\nbinarize = static", "[TRAINING]\nbinarize = dynamic",
     "[MIX_PRIOR]\nlayer_widths = 3, 9\n[KAN_LIKELIHOOD]\nexpert_widths = 9"],
)  # fmt: skip
def test_what_contradicts_nothing_is_accepted(text: str) -> None:
    assert {place: values(parse(text))[place] for place in table_of(text)} == {
        place: read_alone(*place, value) for place, value in table_of(text).items()
    }


def test_all_problems_are_told_at_once() -> None:
    text = "stray\n[TRAINING]\nseed = x\nseeds = 1\n[KAN_LIKELIHOOD]\nexpert_widths = 7\n[X]\n"
    assert problems(text, "no equals", "LINE_SEARCH.rho=2") == [
        "a.ini, line 1: not 'key = value' in a section: stray",
        "--set no equals: must be SECTION.key=value",
        "a.ini: [TRAINING] seeds: unknown key; did you mean 'seed'?",
        f"a.ini: [X]: unknown section; {SECTION_LIST}",
        "a.ini: [TRAINING] seed = x: must be an integer from 0 to 9223372036854775807",
        "--set: [LINE_SEARCH] rho = 2: must be a number between 0 and 1",
        f"a.ini: [KAN_LIKELIHOOD] expert_widths = 7: must be {NOT_WIDTHS}",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[TRAINING]\nseed = é".encode("latin-1"), "not a text file in UTF-8 (byte 18)"),
        ("[TRAINING]".encode("utf-16"), "not a text file in UTF-8 (byte 0)"),
        (b"\x89PNG\r\n\x1a\n", "not a text file in UTF-8 (byte 0)"),
        (None, "cannot be read (Is a directory)"),
        (False, "no such file"),
    ],
)
def test_a_file_that_is_no_text(tmp_path: Path, content: bytes | bool | None, message: str) -> None:
    file = tmp_path / "a.ini"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is None:
        file.mkdir()
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert str(caught.value) == f"{file}: {message}"


@pytest.mark.parametrize("path", ["\0", "x" * 5000, "nist_config.ini/a.ini"])
def test_a_path_that_cannot_be_opened(path: str) -> None:
    with pytest.raises(ConfigError, match=r"\A[^\n]*: cannot be read \([^\n]*\)\Z"):
        load_config(REPOSITORY / path)


@pytest.mark.parametrize(
    ("overrides", "section", "key", "value"),
    [
        (["TRAINING.seed=7"], "TRAINING", "seed", 7),
        (["training.seed = 7 "], "TRAINING", "seed", 7),
        (["TRAINING.seed=6", "TRAINING.seed=7"], "TRAINING", "seed", 7),
        (["MIX_PRIOR.\N{MICRO SIGN}_scale=7"], "MIX_PRIOR", "μ_scale", 7),
        (["TRAINING.img_resize=14,14"], "TRAINING", "img_resize", (14, 14)),
        (["TRAINING.dataset=a=b.c"], "TRAINING", "dataset", "a=b.c"),
    ],
)
def test_overrides_outrank_the_file(overrides: list[str], section: str, key: str, value: object) -> None:
    config = parse("[TRAINING]\nseed = 5\nN_test = 6", *overrides)
    assert values(config) == values(Config()) | {
        ("TRAINING", "seed"): 5, ("TRAINING", "N_test"): 6, (section, key): value,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        *((bad, f"--set {bad}: must be SECTION.key=value")
          for bad in ("", "seed", "seed=1", "TRAINING.seed", "=", "TRAINING=seed.1", "TRAINING.=1")),
        ("TRAINIG.seed=1", "--set: [TRAINIG]: unknown section; did you mean [TRAINING]?"),
        ("TRAINING.sed=1", "--set: [TRAINING] sed: unknown key; did you mean 'seed'?"),
        ("TRAINING.seed=one", "--set: [TRAINING] seed = one: must be an integer from 0 to 9223372036854775807"),
        ("TRAINING.batch_size=40000", "--set: [TRAINING] batch_size = 40000: must be at most N_train = 32000"),
        ("TRAINING.N_train=9", "a.ini: [TRAINING] batch_size = 64: must be at most N_train = 9"),
    ],
)  # fmt: skip
def test_a_wrong_override_is_told_whole(override: str, expected: str) -> None:
    assert problems("[TRAINING]\nseed = 5", override) == [expected]


def test_nothing_of_a_configuration_can_be_changed() -> None:
    config = Config()
    for name in type(config).model_fields:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(config, name, getattr(config, name))


def test_the_page_of_keys_is_generated() -> None:
    assert (REPOSITORY / "docs" / "configuration.md").read_text(encoding="utf-8") == key_table()
    assert all(f"| `{key}` | {RULES[section][key][0]} | `" in key_table() for section, key in EVERY_KEY)


def test_the_repositorys_file_is_the_references() -> None:
    parser = configparser.RawConfigParser(inline_comment_prefixes=(";",), default_section="")
    parser.optionxform = lambda optionstr: optionstr
    parser.read(REPOSITORY / "nist_config.ini", encoding="utf-8")
    held = {(s, k): v.replace(" ", "") for s in parser.sections() for k, v in parser.items(s)}
    reference = {place: value.replace(" ", "") for place, value in table_of(REFERENCE).items()}
    assert held == reference | {("TRAINING", "img_resize"): "14,14"}
    assert values(load_config(REPOSITORY / "nist_config.ini")) == values(Config()) | {
        ("TRAINING", "img_resize"): (14, 14)
    }


FIXED = {"N_train", "N_test", "batch_size", "initial_sample_size", "type", "num_temps", *ONE_VALUE}
TEXTS = {(s, k): st.sampled_from(list(RULES[s][k][1])) for s, k in EVERY_KEY if k not in FIXED}


@settings(deadline=None, derandomize=True)
@given(
    st.fixed_dictionaries({}, optional=TEXTS),
    st.floats(min_value=0, exclude_min=True, allow_infinity=False),
    st.lists(st.integers(1, 10**6), min_size=2, max_size=5),
    st.integers(64, 60000),
)
def test_valid_configurations_round_trip(
    table: dict[tuple[str, str], str], rate: float, widths: list[int], num_train: int
) -> None:
    table["OPTIMIZER", "learning_rate"] = repr(rate)
    table["MIX_PRIOR", "layer_widths"] = ", ".join(map(str, widths))
    table["KAN_LIKELIHOOD", "expert_widths"] = f"{widths[-1]}, 5"
    table["TRAINING", "N_train"] = str(num_train)
    table["THERMODYNAMIC_INTEGRATION", "num_temps"] = "1"  # with which its other keys contradict nothing
    config = parse(ini(table))
    assert config.optimizer.learning_rate == rate
    assert values(config) == values(Config()) | {place: read_alone(*place, text) for place, text in table.items()}
    again = parse(config.to_ini())
    assert again == config
    assert list(table_of(config.to_ini())) == [(s, k) for s, keys in config.to_dict().items() for k in keys]
    assert sorted(table_of(config.to_ini())) == sorted(EVERY_KEY)


@pytest.mark.parametrize("text", ["a ;b", "a #b", "#a", "a\n[LINE_SEARCH]", "a\nseed = 7"])
def test_text_round_trips_or_is_refused(text: str) -> None:
    found = outcome(lambda: parse("", f"TRAINING.update_grid={text}"))
    assert not isinstance(found, Config) or parse(found.to_ini()) == found


def outcome(load: Callable[[], Config]) -> Config | tuple[str, ...]:
    """The configuration, or its problems, of which there is one at least; any other error is passed on."""
    try:
        return load()
    except ConfigError as error:
        return error.problems or ("no problem",)


FRAGMENTS = ["[", "]", "=", "\n", "\r", "\0", ".", " ", ";", "#", "%", "\u2028", "\ufeff", "\u00b5_scale", ",", "1e999"]
FRAGMENTS += [*SECTIONS, "[TRAINING]\n", "seed", "seed = ", "dataset = ", "grid_range = ", "nan", "-1", "output_dim = "]


@settings(deadline=None, derandomize=True, max_examples=300)
@given(st.one_of(st.text(), st.lists(st.sampled_from(FRAGMENTS)).map("".join)), st.lists(st.text(), max_size=2))
def test_random_text_is_a_configuration_or_a_config_error(text: str, overrides: list[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConfigWarning)
        found = outcome(lambda: parse_config(text, "a.ini", overrides))
    assert isinstance(found, Config) or all(p.startswith(("a.ini", "--set")) for p in found)


@settings(deadline=None, derandomize=True)
@given(st.binary())
def test_random_bytes_are_a_configuration_or_a_config_error(tmp_path_factory: pytest.TempPathFactory, b: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "random.ini"
    file.write_bytes(b)
    found = outcome(lambda: load_config(file))
    assert isinstance(found, Config) or all(p.startswith(str(file)) for p in found)
