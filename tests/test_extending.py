"""What docs/extending.md says is done: its code is run, and its changes are made to a copy of the package."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import special, stats
from torch import Tensor

from lvkam.build import build_model, build_objective, model_arrays
from lvkam.checkpoint import model_layout
from lvkam.config import SPLIT_SIZES, Config, ConfigError, parse_config
from lvkam.data import load_dataset, load_labels
from lvkam.description import describe_data
from lvkam.errors import DataError
from lvkam.evidence import importance_log_evidence
from lvkam.model import LVKAM
from lvkam.page_model import generator_payload
from lvkam.sources import SOURCES, find
from lvkam.splines import BASES, Basis
from lvkam.univariate import FunctionFamily, UnivariateFunctions
from tests import test_page_model
from tests.conftest import (
    REPOSITORY,
    fenced,
    idx,
    small_config,
    small_model,
    small_overrides,
    small_prior,
    stream,
)

PAGE = "extending.md"
OF_BASIS, OF_LIKELIHOOD, USE_OF_LIKELIHOOD, OF_DATA_SET = fenced(REPOSITORY / "docs" / PAGE, "python")
CHANGES_FOR_BASIS, CHANGES_FOR_LIKELIHOOD = fenced(REPOSITORY / "docs" / PAGE, "diff")


def run(code: str) -> dict[str, Any]:
    """The names that code of the page defines."""
    names: dict[str, Any] = {"__name__": "extension"}
    exec(compile(code, PAGE, "exec"), names)
    return names


def change(folder: Path, diff: str) -> None:
    """Make the changes of a diff without line numbers: what each hunk expects must be there, once."""
    path, hunks = folder, []
    for line in diff.splitlines():
        if line.startswith("--- "):
            continue
        if line.startswith("+++ "):
            path = folder / line.removeprefix("+++ b/")
        elif line == "@@":
            hunks.append((path, [], []))
        else:
            _, before, after = hunks[-1]
            if line[0] in " -":
                before.append(line[1:])
            if line[0] in " +":
                after.append(line[1:])
    for path, before, after in hunks:
        text = "\n" + path.read_text(encoding="utf-8")
        expected = "\n".join(["", *before, ""])
        assert text.count(expected) == 1, f"{path.name} does not hold this once:{expected}"
        path.write_text(text.replace(expected, "\n".join(["", *after, ""]))[1:], encoding="utf-8")


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the package, in which all changes of the page are made."""
    folder = tmp_path_factory.mktemp("clone")
    shutil.copytree(REPOSITORY / "lvkam", folder / "lvkam", ignore=shutil.ignore_patterns("__pycache__", "datasets"))
    for diff in (CHANGES_FOR_BASIS, CHANGES_FOR_LIKELIHOOD):
        change(folder, diff)
    code = [line for line in OF_BASIS.splitlines() if not line.startswith(("import ", "from "))]
    function = (
        "def absolute_distance" + OF_LIKELIHOOD.partition("def absolute_distance")[2].partition("\n\n\nclass ")[0]
    )
    for name, added in (("splines.py", "\n".join(code)), ("generator.py", function)):
        with (folder / "lvkam" / name).open("a", encoding="utf-8") as file:
            file.write(f"\n\n{added}\n")
    return folder


# --- a basis


@pytest.fixture
def inverse_quadratic(monkeypatch: pytest.MonkeyPatch) -> Basis:
    """The page's basis, among the others for the time of a test."""
    monkeypatch.setitem(BASES, "IQ", BASES["RBF"])  # so that what the code puts there is taken away again
    run(OF_BASIS)
    assert BASES["IQ"] is not BASES["RBF"]
    return BASES["IQ"]


def config_with(basis: str) -> Config:
    """A configuration whose functions are of a basis that the INI dialect need not know."""
    config = small_config()
    return config.model_copy(
        update={
            "prior": config.prior.model_copy(update={"spline_function": basis}),
            "generator": config.generator.model_copy(update={"spline_function": basis}),
        }
    )


def lively_layer(basis: Basis) -> UnivariateFunctions:
    """Uneven grids, coefficients of order one, a bandwidth of 0.7."""
    layer = UnivariateFunctions(3, 4, FunctionFamily(basis=basis, grid_size=6, bandwidth=0.7), stream(0))
    assert layer.update_grid(torch.randn(200, 3, generator=stream(1))) is None
    with torch.no_grad():
        layer.coef.copy_(torch.randn(layer.coef.shape, generator=stream(2)))
    return layer


def test_a_new_basis_is_its_formula(inverse_quadratic: Basis) -> None:
    layer = lively_layer(inverse_quadratic)
    x = torch.randn(50, 3, generator=stream(3))
    state = {name: value.double().numpy() for name, value in layer.state_dict().items()}
    grid, column = state["grid"], x.double().numpy()
    spacing = (grid[:, -1] - grid[:, 0]) / (grid.shape[1] - 1)
    bumps = 1 / (1 + ((column[..., None] - grid) / (0.7 * spacing[:, None])) ** 2)  # (N, I, K)
    splines = np.einsum("nim,imo->nio", bumps, state["coef"])
    base = (column * special.expit(column))[..., None]
    expected = state["w_base"] * base + state["w_spline"] * splines
    np.testing.assert_allclose(layer.functions(x).detach().numpy(), expected, atol=5e-5)
    np.testing.assert_allclose(layer(x).detach().numpy(), expected.sum(1), atol=5e-5)


def test_a_new_basis_has_the_right_gradients(inverse_quadratic: Basis) -> None:
    module = copy.deepcopy(lively_layer(inverse_quadratic)).double()
    names, parameters = zip(*module.named_parameters(), strict=True)
    assert "log_bandwidth" in names
    x = torch.randn(4, 3, dtype=torch.float64, generator=stream(4)).requires_grad_()

    def outputs(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(module, dict(zip(names, values, strict=True)), x)

    assert torch.autograd.gradcheck(outputs, (x, *parameters))
    assert torch.autograd.gradgradcheck(lambda x: inverse_quadratic.evaluate(x, module.grid, 3, None), x)


def test_a_model_of_a_new_basis_trains(inverse_quadratic: Basis) -> None:
    config = config_with("IQ")
    model, objective, rng = build_model(config, 49), build_objective(config), stream(0)
    assert all(
        layer.family.basis is inverse_quadratic for layer in model.modules() if isinstance(layer, UnivariateFunctions)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    x, losses = torch.rand(1, 49, generator=stream(1)).round().expand(32, 49), []
    for step in range(60):
        if step in {0, 20}:
            assert set(model.update_grids(64, rng, prior=True, generator=True).values()) == {None}
        loss = objective(model, x, rng)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.8 * losses[0]
    shapes = {name: array.shape for name, array in model_arrays(model).items()}
    assert shapes == {name: shape for name, (_, shape) in model_layout(config, 49).items()}


def test_the_ini_dialect_refuses_a_basis_that_its_section_does_not_list(inverse_quadratic: Basis) -> None:
    assert "IQ" in BASES
    with pytest.raises(ConfigError, match=r"spline_function = IQ: must be one of B-spline, RBF, RSWAF$"):
        small_config("KAN_LIKELIHOOD.spline_function=IQ")


def test_the_page_of_a_report_computes_a_new_basis(
    inverse_quadratic: Basis, changed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(test_page_model, "SCRIPT", changed / "lvkam" / "templates" / "generator.js")
    config = config_with("IQ")
    model = build_model(config, 9)
    model.update_grids(64, stream(0), prior=True, generator=True)
    z = torch.rand(20, 4, generator=stream(1))
    payload = generator_payload(model, config, z)
    program = "({payload, z}) => z.map((v) => Array.from(makeGenerator(payload)(v)))"
    found = test_page_model.node(program, {"payload": payload, "z": z.tolist()})
    expected = copy.deepcopy(model).double().decode(z.double()).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


# --- a likelihood


def laplace(std: float) -> LVKAM:
    plain = small_model(small_prior(), likelihood="l2")
    return run(OF_LIKELIHOOD)["LaplaceLVKAM"](plain.prior, plain.generator, "l2", torch.sigmoid, std)


@pytest.mark.parametrize("std", [0.3, 1.0])
@torch.no_grad()
def test_a_new_likelihood_is_scipys(std: float) -> None:
    model = laplace(std)
    x, z = torch.rand(4, 5, generator=stream(0)), torch.rand(6, 2, generator=stream(1))
    y = model.decode(z).double().numpy()
    expected = stats.laplace.logpdf(x.double().numpy()[:, None], y[None], 2 * std**2).sum(-1)
    np.testing.assert_allclose(model.reported_log_likelihood(x, z).numpy(), expected, rtol=1e-5, atol=1e-4)
    own = z.expand(4, 6, 2)
    np.testing.assert_allclose(model.reported_log_likelihood(x, own).numpy(), expected, rtol=1e-5, atol=1e-4)
    constant = model.log_likelihood(x, z) - model.reported_log_likelihood(x, z)
    np.testing.assert_allclose(constant.numpy(), 5 * np.log(4 * std**2), atol=1e-4)
    weights = torch.randn(4, 6, generator=stream(2))
    for latents in (z, own):
        found = model.weighted_log_likelihood(x, model.outputs(latents), weights)
        wanted = (weights * model.log_likelihood(x, z)).sum()
        np.testing.assert_allclose(found.item(), wanted.item(), rtol=1e-4, atol=1e-5)


def test_objectives_and_evidence_take_a_new_likelihood() -> None:
    model, x = laplace(0.5), torch.rand(8, 5, generator=stream(0))
    for overrides in ([], ["THERMODYNAMIC_INTEGRATION.num_temps=1", "TRAINING.gradient_samples=2"]):
        model.zero_grad()
        build_objective(small_config(*overrides))(model, x, stream(1)).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
        assert any(parameter.grad is not None and parameter.grad.any() for parameter in model.generator.parameters())
    evidence = importance_log_evidence(model, x, 200, stream(2)).log_evidence
    assert evidence.isfinite().all()


def test_a_model_of_a_configuration_takes_a_new_likelihood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(REPOSITORY / "nist_config.ini", tmp_path)
    monkeypatch.chdir(tmp_path)
    names = run(OF_LIKELIHOOD + USE_OF_LIKELIHOOD)
    assert isinstance(names["model"], names["LaplaceLVKAM"])
    names["loss"].backward()
    assert names["loss"].isfinite()


# --- a data set


def test_a_new_data_set_is_known_by_name(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng, code = np.random.default_rng(0), OF_DATA_SET
    (raw := tmp_path / "data" / "KMNIST" / "raw").mkdir(parents=True)
    written: dict[str, np.ndarray] = {}
    for prefix, count in (("train", 30), ("t10k", 12)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        images[0, 0, :2] = 0, 255
        written[f"{prefix}-images-idx3-ubyte"] = images
        written[f"{prefix}-labels-idx1-ubyte"] = rng.integers(0, 10, count, dtype=np.uint8)
    for name, array in written.items():
        (raw / name).write_bytes(content := idx(array))
        placeholder = f'"{name}": "sha256:..."'
        assert placeholder in code
        code = code.replace(placeholder, f'"{name}": "sha256:{hashlib.sha256(content).hexdigest()}"')
    monkeypatch.setitem(SOURCES, "KMNIST", SOURCES["MNIST"])  # so that what the code puts there is taken away again
    monkeypatch.setitem(SPLIT_SIZES, "KMNIST", (1, 1))
    run(code)

    found = load_dataset("KMNIST", 30, 12, data_dir=tmp_path / "data")
    for images, prefix in ((found.train, "train"), (found.test, "t10k")):
        expected = written[f"{prefix}-images-idx3-ubyte"].reshape(-1, 784) / 255
        np.testing.assert_allclose(images.numpy(), expected, atol=1e-6)
    labels = load_labels("KMNIST", "train", 30, tmp_path / "data")
    assert labels.tolist() == written["train-labels-idx1-ubyte"].tolist()
    described = describe_data("KMNIST", tmp_path / "k.png", tmp_path / "data")
    assert described["train-images-idx3-ubyte"].endswith(", verified")
    assert (tmp_path / "k.png").is_file()

    assert parse_config("", "test", ["TRAINING.dataset=KMNIST", "TRAINING.N_train=60000"]).training.num_train == 60000
    with pytest.raises(ConfigError, match="N_train = 60001: must be at most 60000, the training images of KMNIST"):
        parse_config("", "test", ["TRAINING.dataset=KMNIST", "TRAINING.N_train=60001"])
    assert not (cache / "KMNIST").exists()
    with pytest.raises(DataError, match=r"KMNIST: train-images-idx3-ubyte is missing.*tried no download"):
        find("KMNIST", "train-images-idx3-ubyte")


# --- in a clone

PROGRAM = """
import json, math, sys
from pathlib import Path

import torch

import lvkam
from lvkam.inference import sample_checkpoint
from lvkam.splines import BASES

assert Path(lvkam.__file__).parents[1] == Path.cwd(), lvkam.__file__
overrides = json.loads(sys.argv[1])
Path("small.ini").write_text("", encoding="utf-8")
config = lvkam.load_config("small.ini", overrides)
checkpoint = lvkam.run_experiment(config) / "ckpt.h5"
model = lvkam.load_model(checkpoint)
assert model.likelihood == "l1"
assert all(layer.family.basis is BASES["IQ"] for layer in (*model.prior.layers, *model.generator.layers))
sample_checkpoint(checkpoint, 10, Path("samples.h5"))

x, rng = torch.rand(3, 36), torch.Generator().manual_seed(0)
with torch.no_grad():
    z = model.prior.sample(4, rng)
    expected = -(x[:, None] - model.decode(z)).abs().sum(-1) / (2 * 0.4**2)
    torch.testing.assert_close(model.log_likelihood(x, z), expected, rtol=1e-4, atol=1e-4)
    reported = expected - 36 * math.log(4 * 0.4**2)
    torch.testing.assert_close(model.reported_log_likelihood(x, z), reported, rtol=1e-4, atol=1e-4)
    weights = torch.randn(3, 4, generator=rng)
    weighted = model.weighted_log_likelihood(x, model.outputs(z), weights)
    torch.testing.assert_close(weighted, (weights * expected).sum(), rtol=1e-4, atol=1e-4)
try:
    lvkam.load_config("small.ini", [*overrides, "TRAINING.binarize=static"])
except lvkam.ConfigError as error:
    assert "only likelihood_model = bernoulli" in str(error), error
else:
    raise AssertionError("bits without a probability")
print("done")
"""


def test_the_changes_make_both_words_of_ini_files(changed: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (220, 6, 6), dtype=np.uint8)
    np.savez(changed / "images.npz", images)
    overrides = [
        *small_overrides(), "TRAINING.dataset=images.npz", "TRAINING.img_resize=native", "TRAINING.use_gpu=false",
        "MIX_PRIOR.spline_function=IQ", "KAN_LIKELIHOOD.spline_function=IQ", "KAN_LIKELIHOOD.likelihood_model=l1",
        "KAN_LIKELIHOOD.generator_variance=0.4", "TRAINING.N_epochs=1",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(overrides)], cwd=changed, capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "done\n"


def test_a_change_that_does_not_fit_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("one\ntwo\none\n", encoding="utf-8")
    with pytest.raises(AssertionError, match=r"a\.py does not hold this once:\s+one\s"):
        change(tmp_path, "--- a/a.py\n+++ b/a.py\n@@\n-one\n+three\n")
    change(tmp_path, "--- a/a.py\n+++ b/a.py\n@@\n two\n-one\n+three\n")
    assert (tmp_path / "a.py").read_text(encoding="utf-8") == "one\ntwo\nthree\n"
