"""Configuration: an INI file to frozen, validated sections.

Every key may be absent. All problems of a file are found at once and raised as one `ConfigError`.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lvkam.errors import InputError
from lvkam.ini import read_ini
from lvkam.sections import (
    GeneratorConfig,
    GridUpdateConfig,
    LineSearchConfig,
    OptimizerConfig,
    PriorConfig,
    Section,
    ThermodynamicConfig,
    TrainingConfig,
    allowed_text,
    write_value,
)


class ConfigError(InputError):
    """Bad configuration: one line for each problem."""

    def __init__(self, problems: Sequence[str]):
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class ConfigWarning(UserWarning):
    """An older key, accepted."""


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

    def sections(self) -> Iterator[tuple[str, Section]]:
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
            lines = [f"{key} = {write_value(value)}" for key, value in section.values_by_key().items()]
            blocks.append("\n".join([f"[{name}]", *lines]))
        return "\n\n".join(blocks) + "\n"

    def problem(self, section: str, key: str, allowed: str) -> str:
        """The message for a value that turns out to be wrong later: file, section, key, value, what is allowed."""
        value = dict(self.sections())[section].values_by_key()[key]
        return f"{self.source}: [{section}] {key} = {write_value(value)}: must be {allowed}"


SECTIONS: dict[str, type[Section]] = {name: type(section) for name, section in Config().sections()}

SEARCH_ALONG_LINES = ("gd", "cg", "bfgs", "l-bfgs", "newton", "interior-point")
"""Optimisers that use [LINE_SEARCH]."""

NARROWEST_GAP = 1e-6
"""Between knots, relative to where they lie: several steps of float32."""

SPLIT_SIZES = {"MNIST": (60000, 10000), "FMNIST": (60000, 10000), "CIFAR10": (50000, 10000), "SVHN": (73257, 26032)}
"""Training and test images of the data sets known by name, so that asking for more is found with all else."""

_OLD_WITHOUT_EFFECT = ("output_dim", "inversion_sampling_interpolate", "prior_regularization_weight")


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> Config:
    """Read an INI file.

    Args:
        path: the file.
        overrides: `SECTION.key=value`, as after `--set`.

    Raises:
        ConfigError: with all problems of the file and the overrides.

    >>> load_config("nist_config.ini", ["TRAINING.N_epochs=3"]).training.num_epochs
    3
    """
    return parse_config(read_text(path), str(path), overrides)


def read_text(path: Path | str) -> str:
    """Of an INI file; raises ConfigError where it cannot be read, or is no UTF-8."""
    try:
        return Path(path).read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError([f"{path}: no such file"]) from None
    except UnicodeDecodeError as error:
        raise ConfigError([f"{path}: not a text file in UTF-8 (byte {error.start})"]) from None
    except (OSError, ValueError) as error:
        raise ConfigError([f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})"]) from None


def parse_config(text: str, source: str, overrides: Sequence[str] = ()) -> Config:
    """Read INI text; `source` names it in messages. Raises as `load_config`."""
    problems: list[str] = []
    values = _rename_old_keys(read_ini(text, source, problems), source, problems)
    values |= _rename_old_keys(_read_overrides(overrides, problems), "--set", problems)

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


Values = dict[tuple[str, str], tuple[str, str]]
"""(section, key) -> text and where it was given."""


def _read_overrides(overrides: Sequence[str], problems: list[str]) -> dict[tuple[str, str], str]:
    """`SECTION.key=value` as a file of one section would be read; the last of several counts."""
    values: dict[tuple[str, str], str] = {}
    for override in overrides:
        place, _, value = override.partition("=")
        section, _, key = place.partition(".")
        trouble: list[str] = []
        read = read_ini(f"[{section}]\n{key} = {value}", "--set", trouble)
        if trouble or len(read) != 1 or not key.strip() or "=" not in override or len(override.splitlines()) > 1:
            problems.append(f"--set {override}: must be SECTION.key=value")
        else:
            values |= read
    return values


def _rename_old_keys(values: dict[tuple[str, str], str], origin: str, problems: list[str]) -> Values:
    """Accept what older files of the reference hold, with a warning each."""
    renamed: Values = {}
    for (section, key), value in values.items():
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
    sections: dict[str, Section] = {}
    wrong: set[tuple[str, str]] = set()
    for name, kind in SECTIONS.items():
        try:
            sections[name] = kind.model_validate(content[name])
        except (ValidationError, KeyError):
            sections[name] = kind.model_validate(_without_wrong(kind, content[name], wrong, name))
    for section, key in sorted(wrong, key=list(values).index):
        value, origin = values[section, key]
        allowed = allowed_text(SECTIONS[section].fields_by_key()[key][1])
        problems.append(f"{origin}: [{section}] {key} = {value[:80]}: must be {allowed}")
    moving = sections["THERMODYNAMIC_INTEGRATION"]
    assert isinstance(moving, ThermodynamicConfig)
    if moving.moves_per_temperature and moving.resampler == "none":  # moves need one
        sections["THERMODYNAMIC_INTEGRATION"] = moving.model_copy(update={"resampler": "stratified"})
    config = Config.model_validate({**sections, "source": source})
    for section, key, allowed in _contradictions(config):
        # a contradiction with a value that is wrong itself would only confuse
        involved = {(section, key), *_PARTNERS.get((section, key), ())}
        if not involved & wrong:
            origin = values[section, key][1] if (section, key) in values else source
            problems.append(config.model_copy(update={"source": origin}).problem(section, key, allowed))
    return config


def _without_wrong(
    kind: type[Section], content: dict[str, Any], wrong: set[tuple[str, str]], section: str
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


_ESTIMATOR = ("THERMODYNAMIC_INTEGRATION", "estimator")
_TEMPERATURES = ("THERMODYNAMIC_INTEGRATION", "num_temps")
_PARTNERS = {
    ("KAN_LIKELIHOOD", "expert_widths"): [("MIX_PRIOR", "layer_widths")],
    ("KAN_LIKELIHOOD", "output_activation"): [("KAN_LIKELIHOOD", "likelihood_model")],
    ("THERMODYNAMIC_INTEGRATION", "resampler"): [_ESTIMATOR, _TEMPERATURES],
    ("THERMODYNAMIC_INTEGRATION", "moves_per_temperature"): [_ESTIMATOR, _TEMPERATURES],
    ("MIX_PRIOR", "normalization"): [_TEMPERATURES, ("THERMODYNAMIC_INTEGRATION", "moves_per_temperature")],
    ("LINE_SEARCH", "c_1"): [("LINE_SEARCH", "type"), ("OPTIMIZER", "type")],
    ("LINE_SEARCH", "c_2"): [("LINE_SEARCH", "c_1"), ("LINE_SEARCH", "type"), ("OPTIMIZER", "type")],
    ("TRAINING", "initial_sample_size"): [("TRAINING", "MC_expectation_sample_size")],
    ("TRAINING", "batch_size"): [("TRAINING", "N_train")],
    ("TRAINING", "binarize"): [("KAN_LIKELIHOOD", "likelihood_model")],
    ("TRAINING", "shard"): [
        _ESTIMATOR,
        _TEMPERATURES,
        ("MIX_PRIOR", "normalization"),
        ("THERMODYNAMIC_INTEGRATION", "resampler"),
        ("TRAINING", "gradient_samples"),
        ("TRAINING", "gradient_selection"),
    ],
    ("TRAINING", "N_train"): [("TRAINING", "dataset")],
    ("TRAINING", "N_test"): [("TRAINING", "dataset")],
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
    yield from _thermodynamic_contradictions(config)
    yield from _line_search_contradictions(config)
    yield from _shard_contradictions(config)
    training = config.training
    if training.binarize != "none" and config.generator.likelihood == "l2":
        yield "TRAINING", "binarize", "none, since a Gaussian (likelihood_model = l2) has no probability of bits"
    if training.dataset in SPLIT_SIZES:
        most_train, most_test = SPLIT_SIZES[training.dataset]
        if training.num_train > most_train:
            yield "TRAINING", "N_train", f"at most {most_train}, the training images of {training.dataset}"
        if training.num_test > most_test:
            yield "TRAINING", "N_test", f"at most {most_test}, the test images of {training.dataset}"
    if (training.initial_sample_size or 1) > training.num_samples:
        yield "TRAINING", "initial_sample_size", f"at most MC_expectation_sample_size = {training.num_samples}"
    if training.batch_size > training.num_train:
        yield "TRAINING", "batch_size", f"at most N_train = {training.num_train}"
    generator = config.generator
    for name, key, section, ends in (
        ("MIX_PRIOR", "grid_range", config.prior, config.prior.grid_range),
        ("KAN_LIKELIHOOD", "grid_range", generator, generator.grid_range),
        ("KAN_LIKELIHOOD", "hidden_grid_range", generator, generator.hidden_grid_range),
    ):
        if ends is None:
            continue
        low, high = ends
        if not low < high:
            yield name, key, allowed_text(section.fields_by_key()[key][1])
        elif high - low < NARROWEST_GAP * section.grid_size * max(1, abs(low), abs(high)):
            yield name, key, f"wide enough for {section.grid_size} intervals in single precision"


def _thermodynamic_contradictions(config: Config) -> Iterator[tuple[str, str, str]]:
    settings = config.thermodynamic
    if settings.num_temps <= 1:  # none of it is used
        return
    if settings.estimator == "telescoped":
        if settings.moves_per_temperature:
            yield "THERMODYNAMIC_INTEGRATION", "moves_per_temperature", "0, which estimator = telescoped needs"
        elif settings.resampler != "none":
            yield "THERMODYNAMIC_INTEGRATION", "resampler", "none, since estimator = telescoped resamples by itself"
    if settings.moves_per_temperature and config.prior.normalization == "contrastive":
        yield (
            "MIX_PRIOR",
            "normalization",
            "quadrature, since after moves_per_temperature no draws of the prior are left",
        )


def _line_search_contradictions(config: Config) -> Iterator[tuple[str, str, str]]:
    """Without which there need not be any acceptable step."""
    settings = config.line_search
    if config.optimizer.type not in SEARCH_ALONG_LINES or settings.type == "backtrack":
        return
    if settings.type == "hagerzhang" and settings.c_1 >= 0.5:
        yield "LINE_SEARCH", "c_1", "less than 0.5, which type = hagerzhang needs"
    elif settings.c_2 <= settings.c_1:
        yield "LINE_SEARCH", "c_2", f"greater than c_1 = {write_value(settings.c_1)}"


def _shard_contradictions(config: Config) -> Iterator[tuple[str, str, str]]:
    """What forbids processes to divide the samples."""
    thermodynamic, training, needs = config.thermodynamic, config.training, []
    if config.prior.normalization == "contrastive":
        needs.append("normalization = contrastive")
    if thermodynamic.num_temps > 1 and thermodynamic.resampler != "none":
        needs.append(f"resampler = {thermodynamic.resampler}")
    if thermodynamic.num_temps > 1 and thermodynamic.estimator == "telescoped":
        needs.append("estimator = telescoped")
    if training.gradient_samples != "all" and training.gradient_selection == "resampled":
        needs.append("gradient_selection = resampled")
    if training.shard == "samples" and needs:
        yield "TRAINING", "shard", f"batch, since {needs[0]} needs all samples of an image in one process"


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
            parts.append(f"| `{key}` | {allowed_text(field)} | `{write_value(defaults[key])}` | {field.description} |")
        parts.append("")
    return "\n".join(parts)


if __name__ == "__main__":
    print(key_table(), end="")
