"""What a sweep searches: an INI file with ranges and choices where a configuration has values.

    [OPTIMIZER]
    learning_rate = 0.003 .. 0.1 log
    [TRAINING]
    gradient_samples = 1 .. 8
    precision = fp32 | bf16
    [TOGETHER]
    latents = MIX_PRIOR.layer_widths=5, 15 & KAN_LIKELIHOOD.expert_widths=15, 128 | MIX_PRIOR.layer_widths=5, 21 & ...

Sections and keys are those of a configuration. What has to change together stands in [TOGETHER], under a name of one's
own: settings joined by `&`, choices between `|`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

from lvkam.config import SECTIONS, Config, ConfigError, parse_config, read_text
from lvkam.ini import read_ini

TOGETHER = "TOGETHER"
_RANGE = re.compile(r"(?P<low>\S+)\s*\.\.\s*(?P<high>\S+?)(?P<log>\s+log)?")


class Range(NamedTuple):
    """Numbers between two, both among them."""

    low: float
    high: float
    is_integer: bool
    is_log: bool
    """Whether their logarithms are spread evenly."""


class Choices(NamedTuple):
    """One of several texts."""

    values: tuple[str, ...]


class Dimension(NamedTuple):
    """A setting that is searched, or several that change together."""

    name: str
    """SECTION.key, or TOGETHER.name."""
    domain: Range | Choices

    def overrides(self, value: Any) -> list[str]:
        """`--set` values for a number, or for the text of a choice."""
        if self.name.startswith(f"{TOGETHER}."):
            return [part.strip() for part in str(value).split("&")]
        return [f"{self.name}={value}"]


def read_space(path: Path, config: Config) -> list[Dimension]:
    """The dimensions of a file, in its order.

    Raises:
        ConfigError: every key that no configuration has, every value that it cannot have beside those of `config`, and
            whatever is no range and no choice.
    """
    problems: list[str] = []
    table = read_ini(read_text(path), str(path), problems)
    dimensions = []
    for (section, key), text in table.items():
        known = section == TOGETHER or (section in SECTIONS and key in SECTIONS[section].fields_by_key())
        if not key:
            continue
        if not known:
            problems += _refused(config, [f"{section}.{key}={text}"], path)
        elif (dimension := _dimension(section, key, text, path, config, problems)) is not None:
            dimensions.append(dimension)
    if not dimensions and not problems:
        problems.append(f"{path}: no key has a range (0.1 .. 1) or choices (a | b)")
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return dimensions


def _dimension(section: str, key: str, text: str, path: Path, config: Config, problems: list[str]) -> Dimension | None:
    """Of one key; what is wrong with it is added to the problems."""
    place = f"{path}: [{section}] {key} = {text}"
    choices = tuple(part.strip() for part in text.split("|"))
    found = Dimension(f"{section}.{key}", Choices(choices))
    if section != TOGETHER and (match := _RANGE.fullmatch(text)):
        ends = match["low"], match["high"]
        wrong = [problem for end in ends for problem in _refused(config, found.overrides(end), path)]
        if wrong:
            problems += wrong
            return None
        low, high = (_number(section, key, end) for end in ends)
        if low is None or high is None or not low < high:
            problems.append(f"{place}: must be two numbers, the smaller one first")
            return None
        if match["log"] and low <= 0:
            problems.append(f"{place}: must begin above 0, where logarithms are spread evenly")
            return None
        return found._replace(domain=Range(low, high, isinstance(low, int), match["log"] is not None))
    if len(choices) < 2 or len(set(choices)) < len(choices):
        problems.append(f"{place}: must be a range (0.1 .. 1, or 0.1 .. 1 log), or different choices (a | b)")
        return None
    wrong = [problem for choice in choices for problem in _refused(config, found.overrides(choice), path)]
    problems += wrong
    return None if wrong else found


def _number(section: str, key: str, text: str) -> float | None:
    """As the key has it: an integer or a float; None if it is no number."""
    kind = SECTIONS[section]
    name, _ = kind.fields_by_key()[key]
    value = getattr(kind.model_validate({key: text}), name)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _refused(config: Config, overrides: list[str], path: Path) -> list[str]:
    """What speaks against some settings beside those of a configuration."""
    try:
        parse_config(config.to_ini(), config.source, overrides)
    except ConfigError as error:
        return [problem.replace("--set", str(path), 1) for problem in error.problems]
    return []
