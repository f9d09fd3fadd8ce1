"""Configuration: INI text to frozen, validated sections.

Keys are spelled as in the reference's files, Greek letters included; fields have plain names. Every key may be
absent. All problems of a file are found at once and raised as one `ConfigError`.
"""

from __future__ import annotations

import configparser
import difflib
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo

LARGEST_COUNT = 10**9


class ConfigError(ValueError):
    """Bad configuration: one line for each problem."""

    def __init__(self, problems: Sequence[str]):
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class ConfigWarning(UserWarning):
    """An older key, accepted."""


# ------------------------------------------------------------------ keys


def _key(default: Any, meaning: str, key: str | None = None, allowed: str = "any text", **bounds: Any) -> Any:
    """A key of a section: what it allows, for messages and the table, travels with the field."""
    return Field(default=default, alias=key, description=meaning, json_schema_extra={"allowed": allowed}, **bounds)


def _count(default: int, low: int, high: int, meaning: str, key: str | None = None) -> Any:
    return _key(default, meaning, key, f"an integer from {low} to {high}", ge=low, le=high)


def _real(default: float, range_: str, meaning: str, key: str | None = None) -> Any:
    return _key(default, meaning, key, f"a number{range_}", allow_inf_nan=False, **_BOUNDS[range_])


ANY, POSITIVE, NON_NEGATIVE = "", " greater than 0", " of at least 0"
SHARE, OPEN_SHARE = " from 0 to 1", " between 0 and 1"
_BOUNDS: dict[str, dict[str, float]] = {
    ANY: {},
    POSITIVE: {"gt": 0},
    NON_NEGATIVE: {"ge": 0},
    SHARE: {"ge": 0, "le": 1},
    OPEN_SHARE: {"gt": 0, "lt": 1},
}
Activation = Literal["relu", "leakyrelu", "tanh", "sigmoid", "swish", "gelu", "selu", "silu", "elu", "celu", "none"]
Width = Annotated[int, Field(ge=1, le=10**6)]
Side = Annotated[int, Field(ge=1, le=4096)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
WORDS_FOR_NONE = {"img_resize": "native", "max_seconds": "none"}


def _write(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return ", ".join(_write(part) for part in value)
    if isinstance(value, float):
        return repr(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
    return str(value)


# ------------------------------------------------------------------ sections


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, hide_input_in_errors=True)

    @field_validator("*", mode="before")
    @classmethod
    def _from_text(cls, value: Any, info: ValidationInfo) -> Any:
        """INI text to what pydantic takes: words for None, true and false alone, comma lists."""
        if not isinstance(value, str) or info.field_name is None:
            return value
        field = cls.model_fields[info.field_name]
        if value == WORDS_FOR_NONE.get(info.field_name):
            return None
        if field.annotation is bool:
            return {"true": True, "false": False}[value.lower()]
        if "tuple" in str(field.annotation):
            return [part.strip() for part in value.split(",")]
        return value

    def values_by_key(self) -> dict[str, Any]:
        """INI key -> value, with the INI file's word where a value is None."""
        dumped = {key: getattr(self, name) for key, (name, _) in self.fields_by_key().items()}
        return {key: WORDS_FOR_NONE[key] if value is None else value for key, value in dumped.items()}

    @classmethod
    def fields_by_key(cls) -> dict[str, tuple[str, FieldInfo]]:
        """INI key -> field name and field."""
        return {field.alias or name: (name, field) for name, field in cls.model_fields.items()}


class UnivariateConfig(_Section):
    """The twelve keys that describe univariate functions."""

    spline_degree: int = _count(3, 1, 5, "degree k of the B-splines")
    base_activation: Activation = _key("silu", "the function b beside the spline")
    spline_function: Literal["B-spline", "RBF", "RSWAF"] = _key("B-spline", "the basis")
    grid_size: int = _count(12, 1, 10000, "grid intervals G")
    grid_update_ratio: float = _real(0.05, SHARE, "share of equally spaced knots in an updated grid")
    grid_range: tuple[Finite, Finite] = _key(
        (0.0, 1.0), "ends of the first grid", allowed="two numbers, the smaller one first"
    )
    epsilon_scale: float = _real(0.1, NON_NEGATIVE, "size of the noise that the splines begin with", "ε_scale")
    mu_scale: float = _real(1.0, ANY, "mean scale of the base weights", "μ_scale")
    sigma_base: float = _real(1.0, ANY, "spread of the scale of the base weights", "σ_base")
    sigma_spline: float = _real(1.0, ANY, "scale of the spline weights", "σ_spline")
    initial_bandwidth: float = _real(1.0, POSITIVE, "first bandwidth of RBF and RSWAF, in mean spacings", "init_η")
    bandwidth_trainable: bool = _key(True, "whether the bandwidth is learnt; never for B-spline", "η_trainable")


class PriorConfig(UnivariateConfig):
    """[MIX_PRIOR]: the mixture of univariate energy-based densities."""

    layer_widths: tuple[Width, ...] = _key(
        (50, 101),
        "components P, hidden widths, latent coordinates Q: from the last to the first",
        allowed="2 or more integers from 1 to 1000000, separated by commas",
        min_length=2,
        max_length=64,
    )
    reference_density: Literal["uniform", "gaussian"] = _key("uniform", "the reference density", "π_0")
    normalization: Literal["quadrature", "contrastive"] = _key(
        "quadrature", "how the log-prior is normalised in training; contrastive is the reference's biased form"
    )
    quadrature_points: int = _count(256, 32, 100000, "nodes at which a density is tabulated")

    @property
    def num_components(self) -> int:
        """P: the reference writes the widths reversed."""
        return self.layer_widths[0]

    @property
    def latent_dim(self) -> int:
        """Q."""
        return self.layer_widths[-1]


class GeneratorConfig(UnivariateConfig):
    """[KAN_LIKELIHOOD]: the generator and the likelihood."""

    widths: tuple[Width, ...] = _key(
        (101, 202),
        "latent coordinates Q, then hidden widths",
        "expert_widths",
        allowed="1 or more integers from 1 to 1000000, separated by commas",
        min_length=1,
        max_length=64,
    )
    noise_std: float = _real(
        0.0, NON_NEGATIVE, "standard deviation of the noise on the output while training", "generator_noise_var"
    )
    likelihood_std: float = _real(
        1.0, POSITIVE, "a standard deviation; training divides the likelihood by twice its square", "generator_variance"
    )
    likelihood: Literal["bernoulli", "l2"] = _key("bernoulli", "the likelihood", "likelihood_model")
    output_activation: Literal["sigmoid", "tanh", "none"] = _key("sigmoid", "what turns outputs into data")
    gating_activation: str = _key("celu", "accepted without effect, as in the reference", min_length=1)


class GridUpdateConfig(_Section):
    """[GRID_UPDATING]: when and by what the grids adapt."""

    update_prior: bool = _key(True, "whether the prior's grids adapt", "update_prior_grid")
    update_generator: bool = _key(True, "whether the generator's grids adapt", "update_llhood_grid")
    num_samples: int = _count(64, 1, 10**6, "draws that the grids adapt to", "num_grid_updating_samples")
    frequency: int = _count(50, 1, LARGEST_COUNT, "iterations until the second update", "grid_update_frequency")
    decay: float = _real(0.99, SHARE, "the period grows by (2 - decay)^iteration", "grid_update_decay")


class ThermodynamicConfig(_Section):
    """[THERMODYNAMIC_INTEGRATION]: temperatures, for training by thermodynamic integration."""

    # 69 in the reference, again when thermodynamic integration is implemented
    num_temps: int = _count(-1, -1, 10**6, "temperatures T; importance sampling if 1 or less")
    exponent: float = _real(5.0, POSITIVE, "t_k = (k/T)^p", "p")
    estimator: Literal["trapezoid", "steppingstone", "telescoped"] = _key("trapezoid", "sum over temperatures")
    resampler: Literal["none", "stratified", "systematic", "residual"] = _key("none", "resampling scheme")
    resampling_threshold: float = _real(0.5, SHARE, "resample when the effective sample size falls below this share")
    moves_per_temperature: int = _count(0, 0, 10**6, "Metropolis moves at each temperature")


class TrainingConfig(_Section):
    """[TRAINING]: data, sizes and limits."""

    batch_size: int = _count(64, 1, LARGEST_COUNT, "images in a batch")
    num_samples: int = _count(64, 1, LARGEST_COUNT, "prior samples S shared by a batch", "MC_expectation_sample_size")
    num_train: int = _count(32000, 1, LARGEST_COUNT, "training images, the first of the training split", "N_train")
    num_test: int = _count(64, 1, LARGEST_COUNT, "test images, the first of the test split", "N_test")
    num_generated: int = _count(3200, 1, LARGEST_COUNT, "images generated at the end", "num_generated_samples")
    generation_batch_size: int = _count(64, 1, LARGEST_COUNT, "images generated at a time", "batch_size_for_gen")
    num_epochs: int = _count(10, 1, LARGEST_COUNT, "epochs", "N_epochs")
    use_gpu: bool = _key(True, "use a GPU if there is one")
    dataset: str = _key("MNIST", "name of the data set", min_length=1)
    update_grid: str = _key("true", "accepted without effect, as in the reference", min_length=1)
    verbose: bool = _key(False, "print loss, gradient norm and grid updates as they happen")
    img_resize: tuple[Side, Side] | None = _key(
        None, "size to resize the images to", allowed="two integers from 1 to 4096 (height, width), or native"
    )
    seed: int = _count(1, 0, 2**63 - 1, "seed of all random numbers")
    max_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = _key(
        None, "stop training after so many seconds", allowed="a number greater than 0, or none"
    )
    compile: Literal["auto", "true", "false"] = _key("auto", "compiled kernels")
    precision: Literal["fp32", "bf16"] = _key("fp32", "precision of the generator's matrix products")
    checkpoint_every: int = _count(1, 1, LARGEST_COUNT, "epochs between checkpoints")
    checkpoint_minutes: float = _real(10.0, POSITIVE, "minutes between checkpoints within an epoch")
    gen_every: int = _count(0, 0, LARGEST_COUNT, "epochs between sample grids while training; 0: none")
    binarize: Literal["none", "static", "dynamic"] = _key("none", "binarisation of the images")
    shard: Literal["batch", "samples"] = _key("batch", "what several processes divide")
    gradient_samples: Annotated[int, Field(ge=1, le=LARGEST_COUNT)] | Literal["all"] = _key(
        "all", "samples of each image that carry gradient", allowed="all, or an integer from 1 to 1000000000"
    )
    gradient_selection: Literal["top", "resampled"] = _key("top", "how these samples are chosen")


class OptimizerConfig(_Section):
    """[OPTIMIZER]."""

    type: Literal[
        "adam", "adamw", "sgd", "rms", "bfgs", "l-bfgs", "cg", "gd", "newton", "interior-point", "neldermead"
    ] = _key("adam", "the optimiser")
    learning_rate: float = _real(0.005, POSITIVE, "its step size")
    lbfgs_memory: int = _count(100, 1, 10**6, "steps that L-BFGS remembers", "l-bfgs_memory")
    schedule: Literal["constant", "cosine", "step"] = _key("constant", "course of the learning rate")
    warmup_steps: int = _count(0, 0, LARGEST_COUNT, "steps over which the learning rate rises")


class LineSearchConfig(_Section):
    """[LINE_SEARCH]: for the optimisers that search along a line."""

    type: Literal["morethuente", "strongwolfe", "backtrack", "hagerzhang"] = _key("morethuente", "the search")
    c_1: float = _real(1e-4, OPEN_SHARE, "constant of the decrease condition")
    c_2: float = _real(0.9, OPEN_SHARE, "constant of the curvature condition")
    rho: float = _real(0.5, OPEN_SHARE, "shrinkage of backtracking")


class Config(BaseModel):
    """A whole run; the sections in the order of the file."""

    model_config = ConfigDict(frozen=True, populate_by_name=True, hide_input_in_errors=True)

    prior: PriorConfig = Field(default=PriorConfig(), alias="MIX_PRIOR")
    generator: GeneratorConfig = Field(default=GeneratorConfig(), alias="KAN_LIKELIHOOD")
    grid_update: GridUpdateConfig = Field(default=GridUpdateConfig(), alias="GRID_UPDATING")
    thermodynamic: ThermodynamicConfig = Field(default=ThermodynamicConfig(), alias="THERMODYNAMIC_INTEGRATION")
    training: TrainingConfig = Field(default=TrainingConfig(), alias="TRAINING")
    optimizer: OptimizerConfig = Field(default=OptimizerConfig(), alias="OPTIMIZER")
    line_search: LineSearchConfig = Field(default=LineSearchConfig(), alias="LINE_SEARCH")
    source: str = Field(default="defaults", exclude=True, repr=False)
    """The file it came from, for messages."""

    def sections(self) -> Iterator[tuple[str, _Section]]:
        """Section names as in the file, and their contents."""
        for name, field in type(self).model_fields.items():
            if field.alias:
                yield field.alias, getattr(self, name)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Section -> INI key -> value, fit for JSON."""
        return {name: section.values_by_key() for name, section in self.sections()}

    def to_ini(self) -> str:
        """INI text with every key; reading it gives this configuration again."""
        blocks = []
        for name, section in self.sections():
            lines = [f"{key} = {_write(value)}" for key, value in section.values_by_key().items()]
            blocks.append("\n".join([f"[{name}]", *lines]))
        return "\n\n".join(blocks) + "\n"

    def problem(self, section: str, key: str, allowed: str) -> str:
        """The message for a value that turns out to be wrong later: file, section, key, value, what is allowed."""
        value = dict(self.sections())[section].values_by_key()[key]
        return f"{self.source}: [{section}] {key} = {_write(value)}: must be {allowed}"


SECTIONS: dict[str, type[_Section]] = {name: type(section) for name, section in Config().sections()}

NOT_IMPLEMENTED: dict[tuple[str, str], tuple[Any, ...]] = {
    ("OPTIMIZER", "type"): ("bfgs", "l-bfgs", "cg", "gd", "newton", "interior-point", "neldermead"),
    ("OPTIMIZER", "schedule"): ("cosine", "step"),
    ("TRAINING", "compile"): ("true",),
    ("TRAINING", "precision"): ("bf16",),
    ("TRAINING", "binarize"): ("static", "dynamic"),
    ("TRAINING", "shard"): ("samples",),
}
"""Values that later versions will accept; `_not_implemented` adds those that are ranges."""

_OLD_WITHOUT_EFFECT = ("output_dim", "inversion_sampling_interpolate", "prior_regularization_weight")


# ------------------------------------------------------------------ reading


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> Config:
    """Read an INI file.

    Args:
        path: the file.
        overrides: `SECTION.key=value`, as after `--set`.

    Raises:
        ConfigError: with all problems of the file and the overrides.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError([f"{path}: no such file"]) from None
    except UnicodeDecodeError as error:
        raise ConfigError([f"{path}: not a text file in UTF-8 (byte {error.start})"]) from None
    except (OSError, ValueError) as error:
        raise ConfigError([f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})"]) from None
    return parse_config(text, str(path), overrides)


def parse_config(text: str, source: str, overrides: Sequence[str] = ()) -> Config:
    """Read INI text; `source` names it in messages. Raises as `load_config`."""
    problems: list[str] = []
    values = {key: (value, source) for key, value in _read_ini(text, source, problems).items()}
    for override in overrides:
        place, equals, value = override.partition("=")
        section, dot, key = place.partition(".")
        if not (equals and dot):
            problems.append(f"--set {override}: must be SECTION.key=value")
            continue
        values[_section_name(section), _key_name(key)] = (value.strip(), "--set")
    values = _rename_old_keys(values, problems)

    content: dict[str, dict[str, Any]] = {name: {} for name in SECTIONS}
    unknown_sections = set()
    for (section, key), (value, origin) in values.items():
        if section not in SECTIONS:
            if section not in unknown_sections:
                problems.append(f"{origin}: [{section}]: unknown section; {_nearest_section(section)}")
            unknown_sections.add(section)
        elif key not in SECTIONS[section].fields_by_key():
            if key:
                known = list(SECTIONS[section].fields_by_key())
                problems.append(f"{origin}: [{section}] {key}: unknown key; {_nearest(key, known)}")
        else:
            content[section][key] = value
    config = _validate(content, values, source, problems)
    if problems:
        raise ConfigError(problems)
    return config


def _section_name(text: str) -> str:
    return unicodedata.normalize("NFKC", text.strip()).upper()


def _key_name(text: str) -> str:
    return unicodedata.normalize("NFKC", text.strip())


def _read_ini(text: str, source: str, problems: list[str]) -> dict[tuple[str, str], str]:
    """(section, key) -> text; a section without keys is there with an empty key.

    Lines are normalised first, so that indentation continues no value, sections match without regard to case,
    and look-alike letters are one key; repetitions are found here, where both lines are known.
    """
    lines, section = [], ""
    seen: dict[tuple[str, str], int] = {}
    for number, raw in enumerate(text.removeprefix("\ufeff").splitlines(), start=1):
        line = raw.strip()
        if line.startswith(("#", ";")) or not line:
            continue
        if line.startswith("[") and "]" in line:
            section, key = _section_name(line[1 : line.index("]")]), ""
            line, place = f"[{section}]", f"[{section}]"
        elif "=" not in line or line.startswith("=") or not section:
            problems.append(f"{source}, line {number}: not 'key = value' in a section: {line[:80]}")
            continue
        else:
            name, _, value = line.partition("=")
            key = _key_name(name)
            line, place = f"{key} = {value.strip()}", f"[{section}] {key}"
        if (section, key) in seen:
            problems.append(f"{source}: {place}: given twice, on lines {seen[section, key]} and {number}")
            continue
        seen[section, key] = number
        lines.append(line)
    # lines that were dropped above would put keys into the wrong section
    parser = configparser.RawConfigParser(
        delimiters=("=",), comment_prefixes=(), inline_comment_prefixes=("#", ";"), strict=False,
        default_section="\0", interpolation=None,
    )  # fmt: skip
    parser.optionxform = lambda optionstr: optionstr  # keys are case-sensitive
    try:
        parser.read_string("\n".join(lines), source)
    except configparser.Error as error:
        problems.append(f"{source}: not an INI file: {error.message.splitlines()[0]}")
        return {}
    values = {(s, k): v for s in parser.sections() for k, v in parser.items(s)}
    return values | {(s, ""): "" for s in parser.sections() if not parser.items(s)}


Values = dict[tuple[str, str], tuple[str, str]]
"""(section, key) -> text and where it was given."""


def _rename_old_keys(values: Values, problems: list[str]) -> Values:
    """Accept what older files of the reference hold, with a warning each."""
    renamed: Values = {}
    for (section, key), (value, origin) in values.items():
        target = None
        if (section, key) == ("KAN_LIKELIHOOD", "layer_widths"):
            target = ("KAN_LIKELIHOOD", "expert_widths")
        elif key == "resampling_ess_threshold" and section in SECTIONS:
            target = ("THERMODYNAMIC_INTEGRATION", "resampling_threshold")
        elif key in _OLD_WITHOUT_EFFECT and section in SECTIONS:
            warnings.warn(f"{origin}: [{section}] {key}: an older key, without effect", ConfigWarning, stacklevel=4)
            continue
        if target is None:
            renamed[section, key] = (value, origin)
            continue
        if target in values:
            problems.append(f"{origin}: [{section}] {key}: an older name of {target[1]}, which is given too")
            continue
        new = f"[{target[0]}] {target[1]}"
        warnings.warn(f"{origin}: [{section}] {key}: an older name of {new}", ConfigWarning, stacklevel=4)
        renamed[target] = (value, origin)
    return renamed


def _nearest(name: str, known: list[str]) -> str:
    by_lower = {k.lower(): k for k in known}
    close = difflib.get_close_matches(name.lower(), by_lower, 1)
    return f"did you mean '{by_lower[close[0]]}'?" if close else f"known keys: {', '.join(known)}"


def _nearest_section(name: str) -> str:
    close = difflib.get_close_matches(name, SECTIONS, 1)
    return f"did you mean [{close[0]}]?" if close else "known sections: " + ", ".join(f"[{s}]" for s in SECTIONS)


def _validate(content: dict[str, dict[str, Any]], values: Values, source: str, problems: list[str]) -> Config:
    """Types and ranges first; checks across keys leave out what is wrong already."""
    sections: dict[str, _Section] = {}
    wrong: set[tuple[str, str]] = set()
    for name, kind in SECTIONS.items():
        try:
            sections[name] = kind.model_validate(content[name])
        except (ValidationError, KeyError):
            sections[name] = kind.model_validate(_without_wrong(kind, content[name], wrong, name))
    for section, key in sorted(wrong, key=list(values).index):
        value, origin = values[section, key]
        allowed = _allowed_text(SECTIONS[section].fields_by_key()[key][1])
        problems.append(f"{origin}: [{section}] {key} = {value[:80]}: must be {allowed}")
    config = Config.model_validate({**sections, "source": source})
    for section, key, allowed in _contradictions(config):
        # a contradiction with a value that is wrong itself would only confuse
        involved = {(section, key), *_PARTNERS.get((section, key), ())}
        if not involved & wrong:
            origin = values[section, key][1] if (section, key) in values else source
            problems.append(config.model_copy(update={"source": origin}).problem(section, key, allowed))
    for section, key in _not_implemented(config):
        value = dict(config.sections())[section].values_by_key()[key]
        origin = values[section, key][1] if (section, key) in values else source
        problems.append(f"{origin}: [{section}] {key} = {_write(value)}: is not implemented yet")
    return config


def _without_wrong(
    kind: type[_Section], content: dict[str, Any], wrong: set[tuple[str, str]], section: str
) -> dict[str, Any]:
    right = {}
    for key, value in content.items():
        try:
            kind.model_validate({key: value})
        except (ValidationError, KeyError):
            wrong.add((section, key))
        else:
            right[key] = value
    return right


_PARTNERS = {
    ("KAN_LIKELIHOOD", "expert_widths"): [("MIX_PRIOR", "layer_widths")],
    ("KAN_LIKELIHOOD", "output_activation"): [("KAN_LIKELIHOOD", "likelihood_model")],
    ("TRAINING", "batch_size"): [("TRAINING", "N_train")],
}


def _contradictions(config: Config) -> Iterator[tuple[str, str, str]]:
    """Section, key, and what it must be in view of the others."""
    q = config.prior.latent_dim
    if config.generator.widths[0] != q:
        yield (
            "KAN_LIKELIHOOD",
            "expert_widths",
            f"a list that begins with {q}, the number of latent coordinates (the last of [MIX_PRIOR] layer_widths)",
        )
    if config.generator.likelihood == "bernoulli" and config.generator.output_activation != "sigmoid":
        yield "KAN_LIKELIHOOD", "output_activation", "sigmoid, which likelihood_model = bernoulli needs"
    if config.training.batch_size > config.training.num_train:
        yield "TRAINING", "batch_size", f"at most N_train = {config.training.num_train}"
    for name, section in (("MIX_PRIOR", config.prior), ("KAN_LIKELIHOOD", config.generator)):
        if not section.grid_range[0] < section.grid_range[1]:
            yield name, "grid_range", "two numbers, the smaller one first"


def _not_implemented(config: Config) -> Iterator[tuple[str, str]]:
    sections = dict(config.sections())
    for (section, key), values in NOT_IMPLEMENTED.items():
        if getattr(sections[section], SECTIONS[section].fields_by_key()[key][0]) in values:
            yield section, key
    if config.thermodynamic.num_temps > 1:
        yield "THERMODYNAMIC_INTEGRATION", "num_temps"
    if config.optimizer.warmup_steps:
        yield "OPTIMIZER", "warmup_steps"
    if config.training.gen_every:
        yield "TRAINING", "gen_every"
    if config.training.gradient_samples != "all":
        yield "TRAINING", "gradient_samples"


# ------------------------------------------------------------------ the table of keys


def _allowed_text(field: FieldInfo) -> str:
    if field.annotation is bool:
        return "true or false"
    if get_origin(field.annotation) is Literal:
        return "one of " + ", ".join(get_args(field.annotation))
    assert isinstance(field.json_schema_extra, dict)
    return str(field.json_schema_extra["allowed"])


def key_table() -> str:
    """All keys by section: what they allow, their defaults and meanings, as Markdown."""
    parts = [
        "# Configuration\n\nEvery key may be absent. This page is generated: "
        "`python -m lvkam.config > docs/configuration.md`.\n"
    ]
    for name, section in Config().sections():
        parts.append(f"## [{name}]\n\n| key | allowed | default | meaning |\n|---|---|---|---|")
        defaults = section.values_by_key()
        for key, (_, field) in section.fields_by_key().items():
            parts.append(f"| `{key}` | {_allowed_text(field)} | `{_write(defaults[key])}` | {field.description} |")
        parts.append("")
    not_yet = [f"`{key} = {_write(v)}`" for (_, key), values in NOT_IMPLEMENTED.items() for v in values]
    not_yet += ["`num_temps` above 1", "`warmup_steps`", "`gen_every`", "`gradient_samples` other than `all`"]
    parts.append(f"Accepted by the dialect but refused in this version: {', '.join(not_yet)}.")
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    print(key_table(), end="")
