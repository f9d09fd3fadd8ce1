"""Pictures of a checkpoint: every kind of every sort of model, and nothing overwritten."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence
from scipy.stats import kstest

from lvkam.build import build_model, load_checkpoint, save_model
from lvkam.errors import DataError
from lvkam.experiment import run_experiment
from lvkam.function_figures import MOST_PANELS
from lvkam.inspection import strongest_functions
from lvkam.pictures import EVOLUTION, KINDS, plot_checkpoint
from lvkam.plots import BLUE
from lvkam.run_folder import OutputError
from lvkam.subject import PictureError, Subject
from lvkam.training import random_stream
from lvkam.univariate import UnivariateFunctions
from tests.conftest import small_config, table_overrides, write_table

MODELS = {
    "shallow uniform": ("KAN_LIKELIHOOD.expert_widths=4", "KAN_LIKELIHOOD.spline_function=RSWAF"),
    "deep gaussian": ("MIX_PRIOR.layer_widths=3, 2, 4", "MIX_PRIOR.π_0=gaussian", "MIX_PRIOR.spline_function=RBF"),
}


def checkpoint_of(folder: Path, *overrides: str) -> Path:
    config = small_config(*overrides)
    save_model(folder / "ckpt.h5", build_model(config, 49), config, (7, 7))
    return folder / "ckpt.h5"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    # of a table's rows, whose pictures are the others
    write_table(folder / "a.csv")
    config = small_config(*table_overrides(folder / "a.csv"), "TRAINING.gen_every=1")
    return run_experiment(config, folder / "run", say=lambda _: None) / "ckpt.h5"


def test_the_commands_kinds_are_the_librarys() -> None:
    assert list(importlib.import_module("lvkam_cli.plot").KINDS) == [*KINDS, EVOLUTION]


@pytest.mark.parametrize("name", MODELS)
def test_every_kind_is_drawn_of_every_model(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lvkam.pictures.MOST_DRAWN", 3)
    monkeypatch.setattr("lvkam.subject.POSTERIOR_SAMPLES", 500)
    checkpoint = checkpoint_of(tmp_path, *MODELS[name])
    ending = {"shallow uniform": "svg", "deep gaussian": "PDF"}[name]
    said: list[str] = []
    files = {kind: tmp_path / f"{kind}.{ending}" for kind in KINDS} | {EVOLUTION: tmp_path / "e.gif"}
    written = plot_checkpoint(checkpoint, files, num_images=3, leave_out=said.append)
    # which was not trained
    assert [reason.partition(":")[0] for reason in said] == ["loss", "evolution"]
    assert written == [file for kind, file in files.items() if kind not in {"loss", EVOLUTION}]
    starts = {"PDF": b"%PDF", "svg": b"<?xml"}
    assert all(file.read_bytes().startswith(starts[ending]) for file in written)
    assert {path.name for path in tmp_path.iterdir()} == {"ckpt.h5", *(file.name for file in written)}


def test_every_kind_is_drawn_of_a_table(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lvkam.pictures.MOST_DRAWN", 3)
    monkeypatch.setattr("lvkam.subject.POSTERIOR_SAMPLES", 500)
    files = {kind: tmp_path / f"{kind}.png" for kind in KINDS}
    said: list[str] = []
    data = str(trained.parents[1] / "a.csv")
    written = plot_checkpoint(trained, files, num_images=3, data=data, leave_out=said.append)
    assert said == [f"nearest: {trained}: is a model of rows; nearest neighbours are drawn of images"]
    assert len(written) == len(KINDS) - 1
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in written)
    subject = Subject(trained, load_checkpoint(trained), 1)
    titles = {axes.get_title() for axes in KINDS["functions"](subject).axes}
    columns = {title.split()[1] for title in titles} & {"length", "width", r"\$speed\$", "$speed$"}
    assert columns
    assert columns <= {"length", "width", r"\$speed\$"}  # a dollar sign is no mathematics


def test_the_density_that_is_drawn_is_the_one_that_is_sampled(tmp_path: Path) -> None:
    # 8 coordinates at 1e-4 each: false alarm once in 1,200 changes of the seed
    for overrides in MODELS.values():
        loaded = load_checkpoint(checkpoint_of(tmp_path, *overrides))
        model = loaded.model
        with torch.no_grad():
            for parameter in model.prior.parameters():
                parameter.mul_(1.5)  # far from flat
        z = model.prior.sample(20000, random_stream(3, "inspection")).numpy()
        figure = KINDS["prior"](Subject(tmp_path, loaded, 1, coordinates=tuple(range(model.prior.latent_dim))))
        for q, axes in enumerate(figure.axes):
            # the curve as it is drawn: straight lines between its points
            nodes, curve = (np.asarray(values, float) for values in axes.lines[-1].get_data())
            assert axes.lines[-1].get_color() == BLUE
            area = np.concatenate([[0], np.cumsum(np.diff(nodes) * (curve[1:] + curve[:-1]) / 2)])
            assert area[-1] == pytest.approx(1, abs=2e-3)
            assert kstest(np.interp(z[:, q], nodes, area / area[-1]), "uniform").pvalue > 1e-4
        (tmp_path / "ckpt.h5").unlink()


def test_a_hundred_coordinates_and_more_stay_legible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lvkam.subject.DRAWS", 8)
    monkeypatch.setattr("lvkam.pictures.HISTOGRAM", 50)
    sizes = ("MIX_PRIOR.layer_widths=2, 130", "KAN_LIKELIHOOD.expert_widths=130, 3")
    subject = Subject(tmp_path, load_checkpoint(checkpoint_of(tmp_path, *sizes)), 1)
    figure = KINDS["prior"](subject)
    assert len(figure.axes) == MOST_PANELS
    width, height = figure.get_size_inches()
    assert width / 12 > 1.5
    assert height / 10 > 1.2
    assert figure.get_supxlabel().startswith("latent coordinate, 120 of 130 coordinates")


def test_strong_functions_reach_the_data(tmp_path: Path) -> None:
    # of half the pixels a large bias would make always black ones, whose logits vary most of all
    loaded = load_checkpoint(checkpoint_of(tmp_path))
    last = loaded.model.generator.layers[-1]
    assert isinstance(last, UnivariateFunctions)
    with torch.no_grad():
        last.coef[..., ::2] = 5 * last.coef[..., ::2] - 60 / last.num_inputs / last.w_spline[:, None, ::2]
    subject = Subject(tmp_path, loaded, 1)
    for curve in strongest_functions(subject.layers[-1], 6):
        assert curve.output % 2 == 1
    plain = subject.layers[-1].layer.functions(subject.layers[-1].inputs).var(0)
    assert (plain.max(1).indices % 2 == 0).all()  # which without the output activation are stronger


def test_the_same_seed_draws_the_same_and_another_one_others(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(tmp_path)
    files = {name: {"traversal": tmp_path / f"{name}.png"} for name in "abc"}
    plot_checkpoint(checkpoint, files["a"])
    plot_checkpoint(checkpoint, files["b"])
    plot_checkpoint(checkpoint, files["c"], seed=2)
    pictures = {path.name: path.read_bytes() for path in tmp_path.glob("?.png")}
    assert pictures["a.png"] == pictures["b.png"] != pictures["c.png"]


def test_coordinates_are_drawn_as_they_are_named(tmp_path: Path) -> None:
    loaded = load_checkpoint(checkpoint_of(tmp_path))
    subject = Subject(tmp_path, loaded, 1, coordinates=(2, 0))
    axes = KINDS["traversal"](subject).axes[0]
    assert [label.get_text().split()[0] for label in axes.get_yticklabels()] == ["$z_{2}$", "$z_{0}$"]
    assert [a.get_title().split(",")[0] for a in KINDS["prior"](subject).axes] == ["$z_{2}$", "$z_{0}$"]
    activity = Subject(tmp_path, loaded, 1).activities
    assert list(Subject(tmp_path, loaded, 1).order) == sorted(range(4), key=lambda q: -activity[q])
    with pytest.raises(PictureError, match="coordinate 4: its model has 0 to 3"):
        KINDS["traversal"](Subject(tmp_path, loaded, 1, coordinates=(1, 4)))


def test_nothing_is_overwritten_and_endings_are_checked(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(tmp_path)
    plot_checkpoint(checkpoint, {"samples": tmp_path / "a.png"})
    before = (tmp_path / "a.png").read_bytes()
    with pytest.raises(OutputError, match=r"a\.png: exists already"):
        plot_checkpoint(checkpoint, {"prior": tmp_path / "b.png", "samples": tmp_path / "a.png"})
    with pytest.raises(OutputError, match=r"a\.jpg: must end in \.png, \.pdf or \.svg"):
        plot_checkpoint(checkpoint, {"samples": tmp_path / "a.jpg"})
    with pytest.raises(OutputError, match=r"a\.gif: must end in"):
        plot_checkpoint(checkpoint, {"samples": tmp_path / "a.gif"})
    with pytest.raises(PictureError, match="121 images have no room in one figure; at most 120 have"):
        plot_checkpoint(checkpoint, {"posterior": tmp_path / "p.png"}, num_images=121)
    with pytest.raises(PictureError, match="holds a model alone"):
        plot_checkpoint(checkpoint, {"loss": tmp_path / "l.png"})
    assert {path.name for path in tmp_path.iterdir()} == {"ckpt.h5", "a.png"}
    assert (tmp_path / "a.png").read_bytes() == before
    plot_checkpoint(checkpoint, {"samples": tmp_path / "a.png"}, seed=7, overwrite=True)
    assert (tmp_path / "a.png").read_bytes() != before


def test_the_pictures_of_a_training_become_a_moving_one(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained.parent, tmp_path / "run")
    checkpoint, output = tmp_path / "run" / "ckpt.h5", tmp_path / "evolution.gif"
    assert plot_checkpoint(checkpoint, {EVOLUTION: output}) == [output]
    with Image.open(output) as moving:
        frames = [np.asarray(frame.convert("RGB"))[24:] for frame in ImageSequence.Iterator(moving)]
    assert len(frames) == 2
    for epoch, frame in enumerate(frames):
        with Image.open(tmp_path / "run" / "evolution" / f"epoch_{epoch:05}.png") as picture:
            small = np.asarray(picture.resize((frame.shape[1], frame.shape[0]), Image.Resampling.LANCZOS))
        assert np.abs(frame.astype(int) - small).mean() < 1.5
    with pytest.raises(OutputError, match="exists already"):
        plot_checkpoint(checkpoint, {EVOLUTION: output})
    with pytest.raises(OutputError, match=r"a\.png: must end in \.gif"):
        plot_checkpoint(checkpoint, {EVOLUTION: tmp_path / "a.png"})
    (tmp_path / "run" / "evolution" / "epoch_00001.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"epoch_00001\.png: no readable image"):
        plot_checkpoint(checkpoint, {EVOLUTION: tmp_path / "b.gif"})
    assert not (tmp_path / "b.gif").exists()
    shutil.rmtree(tmp_path / "run" / "evolution")
    with pytest.raises(PictureError, match=r"evolution: holds no pictures of a training: .* TRAINING\.gen_every=1"):
        plot_checkpoint(checkpoint, {EVOLUTION: tmp_path / "b.gif"})
