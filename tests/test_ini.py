"""INI text to sections and keys: what counts as one key, what is a comment, which line a problem names."""

from __future__ import annotations

import configparser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lvkam.ini import key_name, read_ini, section_name

SAFE = st.text(st.characters(categories=["L", "N"], max_codepoint=0x17F), min_size=1, max_size=8)


def read(text: str) -> tuple[dict[tuple[str, str], str], list[str]]:
    problems: list[str] = []
    return read_ini(text, "a.ini", problems), problems


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("[A]\nk = v", ("A", "k"), "v"),
        ("\ufeff[A]\nk = v", ("A", "k"), "v"),
        ("[A]\r\nk = v\r\n", ("A", "k"), "v"),
        ("[A]\rk = v\r", ("A", "k"), "v"),
        ("  [A]  \n\t  k = v", ("A", "k"), "v"),
        ("[A]\nk=v", ("A", "k"), "v"),
        ("[A]\nk   =   v   ", ("A", "k"), "v"),
        ("[ a ]\nk = v", ("A", "k"), "v"),
        ("[mIx_PrIoR]\nk = v", ("MIX_PRIOR", "k"), "v"),
        ("[A]\nKey = v", ("A", "Key"), "v"),
        ("[A]\nl-bfgs_memory = 3", ("A", "l-bfgs_memory"), "3"),
        ("[A]\nk = 50%", ("A", "k"), "50%"),
        ("[A]\nj = 1\nk = %(j)s ${j}", ("A", "k"), "%(j)s ${j}"),
        ("[A]\nk = a=b", ("A", "k"), "a=b"),
        ("[A]\nk = a:b", ("A", "k"), "a:b"),
        ("[A]\nk:j = v", ("A", "k:j"), "v"),
        ("[A]\nk =", ("A", "k"), ""),
        ("[A]\nk = 0,1 ", ("A", "k"), "0,1"),
        ('[A]\nk = "v"', ("A", "k"), '"v"'),
        ("; one\n# two\n   ; three\n[A]\n# four = 4\n;[B]\nk = v", ("A", "k"), "v"),
        ("[A] ; a section\nk = v", ("A", "k"), "v"),
        ("[A] # with ] in it\nk = v", ("A", "k"), "v"),
        ("[A]\nk = v ; comment", ("A", "k"), "v"),
        ("[A]\nk = v # comment", ("A", "k"), "v"),
        ("[A]\nk = v\t;comment", ("A", "k"), "v"),
        ("[A]\nk = v ; a # b ; c", ("A", "k"), "v"),
        ("[A]\nk = ; nothing but a comment", ("A", "k"), ""),
        ("[A]\nk = v;w#x", ("A", "k"), "v;w#x"),
        ("[A]\nε_scale = 0.1", ("A", "ε_scale"), "0.1"),
        ("[A]\n\N{MICRO SIGN}_scale = 1", ("A", "\N{GREEK SMALL LETTER MU}_scale"), "1"),
        ("[A]\n\N{GREEK LUNATE EPSILON SYMBOL}_scale = 1", ("A", "\N{GREEK SMALL LETTER EPSILON}_scale"), "1"),
        ("[\N{MICRO SIGN}]\nk = v", ("\N{GREEK CAPITAL LETTER MU}", "k"), "v"),
        ("[DEFAULT]\nk = v", ("DEFAULT", "k"), "v"),
    ],
)
def test_a_line_is_one_key(text: str, key: tuple[str, str], value: str) -> None:
    values, problems = read(text)
    assert not problems
    assert values[key] == value


def test_indentation_continues_no_value() -> None:
    assert read("[A]\nj = 1\n    k = 2\n\n  [B]\n  j = 3") == (
        {("A", "j"): "1", ("A", "k"): "2", ("B", "j"): "3"},
        [],
    )


def test_keys_differ_by_case_sections_do_not() -> None:
    values, problems = read("[A]\nk = 1\nK = 2")
    assert (values, problems) == ({("A", "k"): "1", ("A", "K"): "2"}, [])
    assert read("[A]\n[a]")[1] == ["a.ini: [A]: given twice, on lines 1 and 2"]


def test_default_is_no_parent_of_other_sections() -> None:
    assert read("[DEFAULT]\nj = 1\n[A]\nk = 2")[0] == {("DEFAULT", "j"): "1", ("A", "k"): "2"}


@pytest.mark.parametrize("text", ["", "\ufeff", "\n \n\t\n", "# only\n; comments"])
def test_nothing_is_no_problem(text: str) -> None:
    assert read(text) == ({}, [])


def test_a_section_without_keys_is_kept() -> None:
    assert read("[A]\n[B]\nk = 1") == ({("A", ""): "", ("B", "k"): "1"}, [])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[A]\nk = 1\n\n; c\nk = 2", "a.ini: [A] k: given twice, on lines 2 and 5"),
        ("[A]\nk = 1\nk = 1", "a.ini: [A] k: given twice, on lines 2 and 3"),
        ("\ufeff[A]\nk = 1\n[B]\nk = 1\n[A]", "a.ini: [A]: given twice, on lines 1 and 5"),
        ("[A]\nk = 1\n[a]\nk = 2\n", "a.ini: [A]: given twice, on lines 1 and 3"),
        ("[A]\n\u00b5 = 1\r\n\u03bc = 2", "a.ini: [A] \u03bc: given twice, on lines 2 and 3"),
        ("k = 1", "a.ini, line 1: not 'key = value' in a section: k = 1"),
        ("# c\n\n  k = 1  \n[A]", "a.ini, line 3: not 'key = value' in a section: k = 1"),
        ("[A]\nk", "a.ini, line 2: not 'key = value' in a section: k"),
        ("[A]\nk : 1", "a.ini, line 2: not 'key = value' in a section: k : 1"),
        ("[A]\n= 1", "a.ini, line 2: not 'key = value' in a section: = 1"),
        ("[A]\n[B", "a.ini, line 2: not 'key = value' in a section: [B"),
        ("[A]\n" + "x" * 200, "a.ini, line 2: not 'key = value' in a section: " + "x" * 80),
    ],
)
def test_a_problem_names_its_lines(text: str, problem: str) -> None:
    assert problem in read(text)[1]


def test_all_problems_are_found() -> None:
    assert read("stray\n[A]\nk = 1\nj\nk = 2\n[A]\n")[1] == [
        "a.ini, line 1: not 'key = value' in a section: stray",
        "a.ini, line 4: not 'key = value' in a section: j",
        "a.ini: [A] k: given twice, on lines 3 and 5",
        "a.ini: [A]: given twice, on lines 2 and 6",
    ]


@pytest.mark.parametrize("text", ["[A] k = 1", "[]\nk = 1", "[A]\nk #j = 1", "[\0]\nk = 1"])
def test_what_is_not_understood_is_told(text: str) -> None:
    values, problems = read(text)
    # a NUL character is a name like any other, as long as what stands below it is not lost
    assert problems or ("\0", "k") in values


@pytest.mark.parametrize("name", [" seed ", "Seed", "\N{MICRO SIGN}_scale", "\ufb01le"])
def test_names_are_settled_once(name: str) -> None:
    assert key_name(key_name(name)) == key_name(name)
    assert section_name(section_name(name)) == section_name(name) == section_name(name.lower())


@settings(deadline=None, derandomize=True)
@given(st.dictionaries(SAFE.map(str.upper), st.dictionaries(SAFE, SAFE, min_size=1, max_size=3), max_size=3))
def test_plain_files_read_as_configparser_does(content: dict[str, dict[str, str]]) -> None:
    text = "".join(f"[{s}]\n" + "".join(f"{k} = {v}\n" for k, v in keys.items()) for s, keys in content.items())
    values, problems = read(text)
    names = [section_name(s) for s in content]
    keys = [(s, key_name(k)) for s, inner in content.items() for k in inner]
    if len(set(names)) < len(names) or len(set(keys)) < len(keys):
        assert problems
        return
    parser = configparser.RawConfigParser(delimiters=("=",), default_section="\0")
    parser.optionxform = lambda optionstr: optionstr
    parser.read_string(text)
    expected = {(section_name(s), key_name(k)): v for s in parser.sections() for k, v in parser.items(s)}
    assert (values, problems) == (expected, [])


@settings(deadline=None, derandomize=True)
@given(st.text())
def test_random_text_never_raises(text: str) -> None:
    values, problems = read(text)
    assert all(isinstance(v, str) for v in values.values())
    assert all("\n" not in p for p in problems)
