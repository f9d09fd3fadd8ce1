"""The code in the documentation does what it says, and its pages name what there is."""

from __future__ import annotations

import ast
import doctest
import importlib
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch

import lvkam
from lvkam.build import build_model, layers_of, load_model, save_model
from lvkam.checkpoint import model_layout, read_checkpoint, training_layout
from lvkam.config import load_config
from lvkam.data import load_dataset
from lvkam.inference import sample_checkpoint
from lvkam.matrix import COLUMNS as MATRIX_COLUMNS
from lvkam.progress import EpochRecord
from lvkam.run_folder import JOURNAL, RUN_FILES
from lvkam.splines import BASES
from lvkam.sweep import BEST, COLUMNS, STATES, TABLE
from lvkam.univariate import ACTIVATIONS
from tests.conftest import REPOSITORY, fenced, h5_arrays, small_config, stream
from tests.test_layout import FLOORS

DOCS = REPOSITORY / "docs"
PAGES = [REPOSITORY / "README.md", *sorted(DOCS.glob("*.md"))]


def read(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


def test_the_loop_of_ones_own_runs_and_is_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(REPOSITORY / "nist_config.ini", tmp_path)
    monkeypatch.chdir(tmp_path)
    page = DOCS / "python.md"
    found = doctest.testfile(str(page), module_relative=False)
    assert found.failed == 0
    assert found.attempted >= 7
    code = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith((">>>", "..."))]
    assert len(code) < 15
    assert read_checkpoint(tmp_path / "own.h5").image_shape == (8, 8)


def test_the_examples_in_docstrings_are_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    found = [
        doctest.testmod(importlib.import_module(f"lvkam.{path.stem}"))
        for path in sorted((REPOSITORY / "lvkam").glob("*.py"))
        if ">>>" in path.read_text(encoding="utf-8")
    ]
    assert sum(result.failed for result in found) == 0
    assert sum(result.attempted for result in found) >= 10


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_picture_and_page_that_is_linked_is_there(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", text)
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


def test_every_test_that_pages_name_is_there() -> None:
    named = [
        (page.name, *found)
        for page in PAGES
        for found in re.findall(r"`(?:tests/)?((?:reliability/)?test_\w+\.py)(?:::(\w+))?`", page.read_text("utf-8"))
    ]
    assert len(named) > 40
    for page, file, name in named:
        text = (REPOSITORY / "tests" / file).read_text(encoding="utf-8")
        assert not name or f"def {name}(" in text, f"{page}: {file}::{name}"


def anchor_of(heading: str) -> str:
    """The anchor that GitHub and mkdocs make of a heading."""
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip())


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_heading_that_is_linked_is_there(page: Path) -> None:
    for link, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text(encoding="utf-8")):
        target = page.parent / link if link else page
        headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
        assert anchor in map(anchor_of, headings), f"{page.name}: {link}#{anchor}"


# --- commands


def the_cli() -> click.Group:
    return importlib.import_module("lvkam_cli.main").cli


def command_lines(page: Path) -> list[list[str]]:
    """Calls of lvkam in a page's shell blocks: their words, after `lvkam`."""
    found = []
    for line in "".join(fenced(page, "bash")).replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["torchrun"]:
            words = words[words.index("-m") + 1 :]
        if words[:1] == ["lvkam"]:
            found.append(words[1:])
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_have_the_options_that_pages_give_them(page: Path) -> None:
    cli = the_cli()
    context = click.Context(cli, info_name="lvkam", **cli.context_settings)
    for words in command_lines(page):
        command = cli if words[0].startswith("-") else cli.get_command(context, words[0])
        assert command is not None, words
        known = {option for parameter in command.get_params(context) for option in parameter.opts}
        given = {word.partition("=")[0] for word in words if word.startswith("-")}
        assert given <= known, f"{page.name}: lvkam {' '.join(words)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_configurations_take_what_pages_set_in_them(page: Path) -> None:
    for words in command_lines(page):
        settings = [value for option, value in zip(words, words[1:], strict=False) if option == "--set"]
        for word in words:
            if word.endswith(".ini") and (REPOSITORY / word).exists() and not word.endswith("_space.ini"):
                load_config(REPOSITORY / word, settings)


def test_pages_call_commands() -> None:
    calls = {page.name: command_lines(page) for page in PAGES}
    assert len(calls["README.md"]) > 10
    assert len(calls["tutorial.md"]) > 15
    assert ["train", "config/mnist_quality.ini", "--output", "logs/two"] in calls["tutorial.md"]


def test_the_command_reference_has_every_command_and_option() -> None:
    text = runpy.run_path(str(DOCS / "generate.py"))["command_reference"]()
    assert read("commands.md") == text, "python docs/generate.py > docs/commands.md"
    cli = the_cli()
    context = click.Context(cli, info_name="lvkam", **cli.context_settings)
    sections = dict(zip(*[iter(re.split(r"^## (.+)$", text, flags=re.MULTILINE)[1:])] * 2, strict=True))
    assert list(sections) == ["lvkam", *(f"lvkam {name}" for name in cli.list_commands(context))]
    for name in cli.list_commands(context):
        section, command = sections[f"lvkam {name}"], cli.get_command(context, name)
        assert command is not None
        assert command.help is not None
        assert command.help.splitlines()[0] in section
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert all(f"{option} " in section or f"{option}`" in section for option in parameter.opts)
                assert parameter.help is not None
                assert parameter.help.split(";")[0] in section


# --- files


def small_checkpoint(folder: Path, *overrides: str) -> None:
    """An untrained model whose functions are far from straight, and samples of it: `ckpt.h5`, `samples.h5`."""
    config = small_config(*overrides)
    model = build_model(config, 49)
    first, last = (layer for path, layer in layers_of(model) if path.startswith("generator"))
    with torch.no_grad():
        first.coef.copy_(torch.randn(first.coef.shape, generator=stream(1)))
        model.update_grids(64, stream(0), prior=True, generator=True)
        last.coef.copy_(3 * torch.randn(last.coef.shape, generator=stream(2)))
    save_model(folder / "ckpt.h5", model, config, (7, 7))
    sample_checkpoint(folder / "ckpt.h5", 60, folder / "samples.h5", save_latents=True)


@pytest.mark.parametrize(
    ("basis", "activation", "degree"),
    [
        *((basis, "silu", degree) for basis in BASES for degree in (1, 3)),
        *(("B-spline", activation, 2) for activation in ACTIVATIONS),
    ],
)
def test_the_plain_reader_computes_the_samples(
    basis: str, activation: str, degree: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_checkpoint(
        tmp_path,
        f"KAN_LIKELIHOOD.spline_function={basis}",
        f"KAN_LIKELIHOOD.base_activation={activation}",
        f"KAN_LIKELIHOOD.spline_degree={degree}",
        "KAN_LIKELIHOOD.init_η=0.7",
    )
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for code in fenced(DOCS / "file-formats.md", "python"):
        assert "lvkam" not in re.sub(r"#.*", "", code)  # but in comments
        exec(compile(code, "file-formats.md", "exec"), names)
    drawn = h5_arrays(tmp_path / "samples.h5")
    assert np.ptp(drawn["samples"]) > 0.2
    found = names["recompute"]("ckpt.h5", drawn["latents"])
    exact = load_model(tmp_path / "ckpt.h5").double().decode(torch.from_numpy(drawn["latents"]).double())
    np.testing.assert_allclose(found.reshape(len(found), -1), exact.numpy(), atol=1e-9)
    # in single precision: what RSWAF's wide bumps make of grids that have been updated cancels
    assert names["difference"] == np.abs(found - drawn["samples"]).max() < (2e-3 if basis == "RSWAF" else 2e-5)


@pytest.mark.parametrize("output", ["sigmoid", "tanh", "none"])
def test_the_plain_reader_clips_as_samples_are_clipped(output: str, tmp_path: Path) -> None:
    small_checkpoint(tmp_path, "KAN_LIKELIHOOD.likelihood_model=l2", f"KAN_LIKELIHOOD.output_activation={output}")
    names: dict[str, Any] = {}
    exec(compile(fenced(DOCS / "file-formats.md", "python")[0], "file-formats.md", "exec"), names)
    drawn = h5_arrays(tmp_path / "samples.h5")
    assert (drawn["samples"].min() == 0) == (output != "sigmoid")
    found = names["recompute"](tmp_path / "ckpt.h5", drawn["latents"])
    np.testing.assert_allclose(found, drawn["samples"], atol=2e-5)


def test_the_page_of_formats_names_what_there_is(tmp_path: Path) -> None:
    page = read("file-formats.md")
    header = ",".join(EpochRecord(0.0, 0, 0.0, 0.0, False, 0.0, 0.0).as_row())
    assert f"\n{header}\n" in page
    assert f"\n{','.join(COLUMNS)},OPTIMIZER.learning_rate,...\n" in page
    assert f"`{','.join(MATRIX_COLUMNS)}`" in page
    for name in (*RUN_FILES, TABLE, BEST, JOURNAL, *STATES.values()):
        assert f"`{name}`" in page, name
    small_checkpoint(tmp_path, "KAN_LIKELIHOOD.spline_function=RBF")
    config = small_config("KAN_LIKELIHOOD.spline_function=RBF")
    (layout,) = (
        block for block in re.findall(r"^```\n(.*?)^```$", page, re.DOTALL | re.MULTILINE) if "/prior" in block
    )
    # /part/layers/<n>/name and /training/name[/...]: the names that stand beside a group, or those of both parts
    for path in (*model_layout(config, 49), *training_layout(config, 49, 2)):
        part, name = path.split("/")[0], path.split("/")[1 if path.startswith("training") else -1]
        assert f"/{part}/" in layout
        assert re.search(rf"\b{name}\b", layout), path
    for array in h5_arrays(tmp_path / "ckpt.h5"):
        assert re.search(rf"\b{array.split('/')[-1]}\b", layout), array


def test_the_data_of_the_tutorial_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for code in fenced(DOCS / "tutorial.md", "python"):
        exec(compile(code, "tutorial.md", "exec"), {})
    images = load_dataset("images.npz", 1000, 200)
    assert (images.image_shape, images.what, len(images.test)) == ((20, 20), "images", 200)
    table = load_dataset("table.csv", 2500, 500)
    assert table.standardisation is not None
    assert (table.standardisation.columns, len(table.test)) == (("length", "width", "mass"), 500)


# --- the site


def test_the_site_has_every_page_and_no_other() -> None:
    _, _, navigation = (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")
    listed = re.findall(r": ([\w-]+\.md)$", navigation, re.MULTILINE)
    assert len(set(listed)) == len(listed)
    assert set(listed) == {page.name for page in DOCS.glob("*.md")}


OFFLINE = """
import socket, sys

def no_network(*_, **__):
    raise AssertionError("the network was used")

socket.socket.connect = socket.getaddrinfo = no_network
from mkdocs.__main__ import cli

cli(["build", "--strict", "--config-file", sys.argv[1], "--site-dir", sys.argv[2]])
"""


def test_the_site_builds_without_a_warning_and_asks_the_network_for_nothing(tmp_path: Path) -> None:
    site = tmp_path / "site"
    built = subprocess.run(
        [sys.executable, "-c", OFFLINE, REPOSITORY / "mkdocs.yml", site], cwd=tmp_path, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr
    pages = {path.stem: path.read_text(encoding="utf-8") for path in site.glob("*.html")}
    assert pages.keys() >= {page.stem for page in DOCS.glob("*.md")}
    for name, page in pages.items():  # neither when it is read
        assert not re.search(r"<(script|img|link|iframe)\b[^>]*\b(src|href)=.?(https?:)?//", page), name
    assert (site / "docs").exists() is False
    for name in lvkam.__all__:
        assert f'id="{getattr(lvkam, name).__module__}.{name}"' in pages["api"]


def test_the_home_page_leads_to_every_page() -> None:
    linked = set(re.findall(r"\]\(([\w-]+\.md)\)", read("index.md")))
    assert linked == {page.name for page in DOCS.glob("*.md")} - {"index.md"}


def test_links_out_of_the_documentation_work_on_the_site() -> None:
    hooks = runpy.run_path(str(DOCS / "hooks.py"))
    page = (
        "[a page](../README.md#what-to-expect), [README.md](../README.md), ![a picture](../benchmarking/x.png), "
        "[a preset](../config/table.ini), [here](data.md)"
    )
    expected = (
        "a page (`README.md`), `README.md`, ![a picture](benchmarking/x.png), [a preset](config/table.ini), "
        "[here](data.md)"
    )
    assert hooks["on_page_markdown"](page, page=None, config=None, files=None) == expected
    for path in DOCS.glob("*.md"):
        assert "](../" not in hooks["on_page_markdown"](path.read_text(encoding="utf-8")), path.name


def test_the_api_page_has_every_public_name() -> None:
    directives = re.findall(r"^::: (\S+)$", read("api.md"), re.MULTILINE)
    for name in lvkam.__all__:
        assert f"{getattr(lvkam, name).__module__}.{name}" in directives
    for directive in directives:
        module, _, name = directive.rpartition(".")
        found = getattr(importlib.import_module(module), name)
        assert found.__doc__
    members = re.findall(r"members: \[(.+)\]", read("api.md"))
    classes = [lvkam.Config, *(getattr(importlib.import_module(f"lvkam.{m}"), n) for m, n in (
        ("objectives", "Objective"), ("prior", "MixturePrior"), ("univariate", "UnivariateFunctions"),
    ))]  # fmt: skip
    for names, kind in zip(members, classes, strict=True):
        assert all(getattr(kind, name).__doc__ for name in names.split(", "))


def first_sentence(module: str) -> str:
    """Of the docstring of a module, in one line."""
    path = REPOSITORY / Path(*module.split(".")).with_suffix(".py")
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert docstring is not None
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    return re.split(r"(?<=\.) ", paragraph)[0]


def test_the_page_of_the_architecture_tells_the_truth() -> None:
    rows = re.findall(r"^\| (\d+) \| `(.+?)` \| (.+) \|$", read("architecture.md"), re.MULTILINE)
    expected = {
        (str(floor), f"{module.replace('.', '/')}.py", first_sentence(module))
        for module, floor in FLOORS.items()
        if module != "lvkam_cli"
    }
    commands = (str(FLOORS["lvkam_cli"]), "cli/*.py", "The command line of lvkam.")
    assert len(rows) == len(set(rows))
    assert set(rows) == expected | {commands}
    assert [int(floor) for floor, _, _ in rows] == sorted(FLOORS.values())


def test_the_citation_is_of_this_version() -> None:
    citation = (REPOSITORY / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {version('lvkam')}\n" in citation
    assert "arXiv:2506.14167" in citation
    assert "doi" not in citation.lower()
