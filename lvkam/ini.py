"""INI text as sections, keys and values, all of them still text.

Sections match without regard to case; look-alike letters of a key (MICRO SIGN and GREEK MU) are one; a key or a
section given twice is a problem that names both lines.
"""

from __future__ import annotations

import configparser
import re
import unicodedata


def section_name(text: str) -> str:
    """A section's name as it is compared: in capitals."""
    return unicodedata.normalize("NFKC", text.strip()).upper()


def key_name(text: str) -> str:
    """A key as it is compared: with compatible letters made equal."""
    return unicodedata.normalize("NFKC", text.strip())


def read_ini(text: str, source: str, problems: list[str]) -> dict[tuple[str, str], str]:
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
        if header := re.fullmatch(r"\[([^]]*)\]\s*([#;].*)?", line):
            section, key = section_name(header[1]), ""
            line, place = f"[{section}]", f"[{section}]"
        elif "=" not in line or line.startswith(("=", "[")) or not section:
            problems.append(f"{source}, line {number}: not 'key = value' in a section: {line[:80]}")
            continue
        else:
            name, _, value = line.partition("=")
            key = key_name(name)
            line, place = f"{key} = {value.strip()}", f"[{section}] {key}"
        if (section, key) in seen:
            problems.append(f"{source}: {place}: given twice, on lines {seen[section, key]} and {number}")
        else:
            seen[section, key] = number
        lines.append(line)
    parser = configparser.RawConfigParser(
        delimiters=("=",), comment_prefixes=(), inline_comment_prefixes=("#", ";"), strict=False,
        default_section="", interpolation=None,
    )  # fmt: skip
    parser.optionxform = lambda optionstr: optionstr  # keys are case-sensitive
    try:
        parser.read_string("\n".join(lines), source)
    except configparser.Error as error:
        problems.append(f"{source}: not an INI file: {error.message.splitlines()[0]}")
        return {}
    values = {(s, k): v for s in parser.sections() for k, v in parser.items(s)}
    return values | {(s, ""): "" for s in parser.sections() if not parser.items(s)}
