"""Features said by name: fitted the same way from the same seed, kept, verified, refused when damaged."""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from lvkam import features
from lvkam.data import load_labels, load_samples, static_bits
from lvkam.errors import DataError
from lvkam.features import (
    INCEPTION,
    FeaturesError,
    LeNet,
    fit,
    inception_features,
    labelled_classifier,
    lenet_features,
    pca_features,
    split_for_classifier,
)
from tests.conftest import few_of_mnist, h5_arrays, reseal, stream

SHAPE = (7, 7)


def test_a_classifier_is_fitted_once_and_verified(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = few_of_mnist(tmp_path / "data", 3000, 500)
    monkeypatch.setattr(features, "STEPS", 150)
    before, told = torch.get_rng_state(), list[str]()
    first = labelled_classifier("MNIST", SHAPE, few, say=told.append)
    path = cache / "features" / "MNIST-7x7.h5"
    assert first.path == path
    assert told == [f"fitting a classifier to MNIST at 7x7; it is kept in {path}"]
    content = path.read_bytes()
    again = labelled_classifier("MNIST", SHAPE, say=told.append)
    assert (again.name, again.accuracy, len(told)) == (first.name, first.accuracy, 1)
    assert torch.equal(torch.get_rng_state(), before)
    arrays = h5_arrays(path)
    layers = ("conv1", "conv2", "dense", "classes")
    assert set(arrays) == {f"{layer}.{kind}" for layer in layers for kind in ("bias", "weight")}
    assert 0.7 < first.accuracy < 1
    # accuracy and features are those of the network in the file
    test = load_samples("MNIST", None, SHAPE, few).x
    seen = lenet_features(again).of(test)
    assert (seen.shape, seen.requires_grad) == ((500, features.WIDTH), False)
    logits = seen.numpy() @ arrays["classes.weight"].T + arrays["classes.bias"]
    assert (logits.argmax(1) == load_labels("MNIST", "test", 500, few).numpy()).mean() == first.accuracy

    refit = r"\. lvkam fit-features MNIST --size 7,7 --overwrite fits it anew\Z"
    path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    with pytest.raises(FeaturesError, match=r"MNIST-7x7\.h5: damaged: its bytes do not match its seal" + refit):
        labelled_classifier("MNIST", SHAPE)
    path.write_bytes(content.replace(b"lvkam-features", b"lvkam-featureS"))
    reseal(path)
    with pytest.raises(FeaturesError, match=r"not of MNIST at \(7, 7\)" + refit):
        labelled_classifier("MNIST", SHAPE)
    (path.parent / "MNIST-8x8.h5").write_bytes(content)  # another size's
    with pytest.raises(FeaturesError, match=r"not of MNIST at \(8, 8\)"):
        labelled_classifier("MNIST", (8, 8))
    # the same data and seed: the same name
    assert labelled_classifier("MNIST", SHAPE, few, overwrite=True).name == first.name


def test_a_classifier_of_bits_is_another_one(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few, told = few_of_mnist(tmp_path / "data", 3000, 500), list[str]()
    monkeypatch.setattr(features, "STEPS", 150)
    grey = labelled_classifier("MNIST", SHAPE, few)
    found = labelled_classifier("MNIST", SHAPE, few, bits=True, say=told.append)
    path = cache / "features" / "MNIST-7x7-bits.h5"
    assert told == [f"fitting a classifier to MNIST, binarised at 7x7; it is kept in {path}"]
    assert (found.path, found.name == grey.name) == (path, False)
    # it is tested on bits, and knows them better
    bits = static_bits(load_samples("MNIST", None, SHAPE, few).x, "test")
    labels = load_labels("MNIST", "test", 500, few)
    right = [int((c.network(bits).argmax(1) == labels).sum()) for c in (grey, found)]
    assert found.accuracy == right[1] / 500
    assert right[1] > right[0]
    path.write_bytes(grey.path.read_bytes())
    refit = r"\. lvkam fit-features MNIST --size 7,7 --bits --overwrite fits it anew\Z"
    with pytest.raises(FeaturesError, match=r"not of MNIST, binarised at \(7, 7\)" + refit):
        labelled_classifier("MNIST", SHAPE, bits=True)


def test_what_has_no_labels_has_no_classifier(cache: Path) -> None:
    with pytest.raises(DataError, match=r"\Ax\.npz: only MNIST, FMNIST, CIFAR10, SVHN have labels"):
        labelled_classifier("x.npz", SHAPE)
    with pytest.raises(DataError, match=r"\AMNIST: images \(3, 9\); a classifier needs 4 pixels each way"):
        labelled_classifier("MNIST", (3, 9))
    assert not cache.exists()


def test_images_held_back_are_fitted_to_by_nobody() -> None:
    fitted, held = split_for_classifier(600)
    assert (len(fitted), len(held)) == (500, 100)
    assert sorted([*fitted.tolist(), *held.tolist()]) == list(range(600))
    assert len(split_for_classifier(90_000)[1]) == 10_000


def test_colours_and_small_images() -> None:
    network = LeNet((4, 5, 3), 2)
    x = torch.rand(300, 60, generator=stream(0))
    labels = (x.view(-1, 20, 3)[..., 0].mean(1) > 0.5).long()  # how red
    fit(network, x, labels, stream(1), steps=200)
    assert (network(x).argmax(1) == labels).double().mean() > 0.9


@pytest.mark.parametrize("width", [8, 70])
def test_principal_components_are_those_of_numpy(width: int) -> None:
    train = torch.randn(200, width, generator=stream(0)) @ torch.randn(width, width, generator=stream(1)) + 3
    found = pca_features(train)
    number = min(width, 50)
    assert found.name == f"pca{number}"
    x = train.numpy().astype(np.float64)
    basis = np.linalg.svd(x - x.mean(0))[2][:number].T
    basis *= np.sign(basis[np.abs(basis).argmax(0), range(number)])
    np.testing.assert_allclose(found.of(train[:9]).numpy(), (x - x.mean(0))[:9] @ basis, atol=1e-8)


def test_inception_is_used_only_where_its_verified_weights_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Network:
        def __init__(self, name: str, features_list: list[str], feature_extractor_weights_path: str) -> None:
            seen.append((name, features_list, feature_extractor_weights_path))

        def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor]:
            assert (x.dtype, x.shape[1:]) == (torch.uint8, (3, 2, 2))
            return (x.float().mean((2, 3)),)

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)  # not installed
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert inception_features((2, 2)) is None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: importlib.machinery.ModuleSpec(name, None))
    module = types.ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = Network  # type: ignore[attr-defined] a stand-in for the package
    monkeypatch.setitem(sys.modules, "torch_fidelity", types.ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert inception_features((2, 2)) is None
    weights = tmp_path / "checkpoints" / INCEPTION
    weights.parent.mkdir()
    weights.write_bytes(b"other")
    with pytest.raises(FeaturesError, match=r"has other bytes than the published weights"):
        inception_features((2, 2))
    assert not seen
    monkeypatch.setattr(features, "INCEPTION_SHA256", hashlib.sha256(b"other").hexdigest())
    for shape in ((2, 2), (2, 2, 3)):
        found = inception_features(shape)
        assert found is not None
        assert found.of(torch.ones(60, int(np.prod(shape)))).unique().tolist() == [255]
    assert seen[0] == ("inception-v3-compat", ["2048"], str(weights))
