"""Checkpoints: what was written is read bit for bit, and nothing else is taken for one."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import lvkam.checkpoint as checkpoint_module
from lvkam.build import build_model, model_arrays
from lvkam.checkpoint import (
    Checkpoint,
    CheckpointError,
    describe_checkpoint,
    read_checkpoint,
    write_atomically,
    write_checkpoint,
)
from lvkam.config import Config, parse_config

ATTRIBUTES = {"format", "format_version", "lvkam_version", "config", "dataset", "image_shape", "seed", "epoch"}
ATTRIBUTES |= {"iteration", "sha256"}
LOGITS = "prior/mixture_logits"
CONFIG = parse_config(
    "[MIX_PRIOR]\nlayer_widths = 2, 4, 3\ngrid_size = 5\nspline_function = RBF\n"
    "[KAN_LIKELIHOOD]\nexpert_widths = 3, 6\ngrid_size = 4\nspline_degree = 2\n",
    "a.ini",
)


def example() -> Checkpoint:
    rng = np.random.default_rng(0)
    return Checkpoint(
        config=CONFIG.to_ini(),
        dataset="MNIST",
        image_shape=(3, 4),
        seed=2**63 - 1,
        epoch=7,
        iteration=123456,
        lvkam_version="0.1.0",
        arrays=model_arrays(build_model(CONFIG, 12)),
        training={
            "training/rng": rng.integers(0, 256, 5056, dtype=np.uint8),
            "training/optimizer/0/exp_avg": np.array([np.nan, -np.inf, -0.0, 1e-45], dtype=np.float32),
            "training/step": np.asarray(9, dtype=np.int64),
            "training/compiled": np.asarray(True),
            "training/empty": np.zeros((0, 3)),
            "training/turned": rng.random((3, 4)).T,
        },
    )


@pytest.fixture
def written(tmp_path: Path) -> Path:
    write_checkpoint(path := tmp_path / "ckpt.h5", example())
    return path


def same(one: Checkpoint, other: Checkpoint) -> bool:
    def bits(c: Checkpoint) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
        return {n: (a.dtype.str, a.shape, a.tobytes()) for n, a in {**c.arrays, **c.training}.items()}

    def rest(c: Checkpoint) -> tuple[object, ...]:
        return c.config, c.dataset, c.image_shape, c.seed, c.epoch, c.iteration, c.lvkam_version

    return bits(one) == bits(other) and rest(one) == rest(other)


def refused(path: Path) -> str:
    """The message, without the path it must begin with."""
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert len(message.splitlines()) == 1
    return message.removeprefix(f"{path}: ")


def test_what_was_written_is_read_bit_for_bit(written: Path) -> None:
    read = read_checkpoint(written)
    assert same(read, example())
    assert read.arrays.keys() == example().arrays.keys()
    assert read.training.keys() == example().training.keys()
    assert type(read.seed) is type(read.epoch) is type(read.iteration) is type(read.image_shape[0]) is int
    write_checkpoint(written, read)
    assert same(read_checkpoint(written), read)


def test_the_layout_is_the_specifications(written: Path) -> None:
    q, p, d = 3, 2, 12
    expected: dict[str, tuple[int, ...]] = {LOGITS: (q, p)}
    for part, widths, size, degree in (("prior", (q, 4, p), 5, 3), ("generator", (q, 6, d), 4, 2)):
        # the prior's bumps stand at each of the G + 1 + 2k knots, of B-splines there are G + k
        bases = size + 1 + 2 * degree if part == "prior" else size + degree
        for n, (inputs, outputs) in enumerate(zip(widths, widths[1:], strict=False)):
            layer = f"{part}/layers/{n}"
            expected[f"{layer}/grid"] = (inputs, size + 1 + 2 * degree)
            expected[f"{layer}/coef"] = (inputs, outputs, bases)
            expected[f"{layer}/w_base"] = expected[f"{layer}/w_spline"] = (inputs, outputs)
            if part == "prior":
                expected[f"{layer}/bandwidth"] = ()
    found: dict[str, tuple[int, ...]] = {}
    with h5py.File(written) as file:
        file.visititems(lambda name, item: found.update({name: item.shape} if isinstance(item, h5py.Dataset) else {}))
        assert file.attrs.keys() == ATTRIBUTES
        assert {n: file.attrs[n] for n in ATTRIBUTES - {"image_shape", "sha256"}} == {
            "format": "lvkam-checkpoint", "format_version": 1, "lvkam_version": "0.1.0", "config": CONFIG.to_ini(),
            "dataset": "MNIST", "seed": 2**63 - 1, "epoch": 7, "iteration": 123456,
        }  # fmt: skip
        assert np.asarray(file.attrs["image_shape"]).tolist() == [3, 4]
        for name in expected:
            dataset = file[name]
            assert isinstance(dataset, h5py.Dataset)
            # a bandwidth is kept in float64, so that its logarithm is the parameter again, to the bit
            assert dataset.dtype == (np.float64 if name.endswith("bandwidth") else np.float32)
    assert {n: s for n, s in found.items() if not n.startswith("training/")} == expected
    assert {n for n in found if n.startswith("training/")} == example().training.keys()


def test_describe_is_what_the_file_holds(written: Path) -> None:
    sizes = {n: a.size for n, a in example().arrays.items() if n.split("/")[-1] != "grid"}
    assert describe_checkpoint(written) == {
        "parameters": sum(sizes.values()), "epoch": 7, "iteration": 123456, "dataset": "MNIST", "image_shape": [3, 4],
        "seed": 2**63 - 1, "lvkam_version": "0.1.0", "verified": True, "config": CONFIG.to_dict(),
    }  # fmt: skip
    assert sum(sizes.values()) == sum(p.numel() for p in build_model(CONFIG, 12).parameters())
    with h5py.File(written, "r+") as file:
        file.attrs["epoch"] = 8
    with pytest.raises(CheckpointError):
        describe_checkpoint(written)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a checkpoint of lvkam (not an HDF5 file)"),
        (b"[TRAINING]\nseed = 1\n" * 100, "not a checkpoint of lvkam (not an HDF5 file)"),
        (b"\x89HDF\r\n\x1a", "not a checkpoint of lvkam (not an HDF5 file)"),
        (None, "no such file"),
    ],
)
def test_what_is_no_hdf5_file_is_told(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    if content is not None:
        path.write_bytes(content)
    assert refused(path) == message


def test_a_folder_is_told(tmp_path: Path) -> None:
    assert refused(tmp_path)


def test_another_hdf5_file_is_told(tmp_path: Path) -> None:
    with h5py.File(path := tmp_path / "samples.h5", "w") as file:
        file["samples"] = np.zeros((2, 3, 4))
    assert refused(path) == "not a checkpoint of lvkam"


@pytest.mark.parametrize("name", sorted(ATTRIBUTES))
def test_a_missing_attribute_is_told(name: str, written: Path) -> None:
    with h5py.File(written, "r+") as file:
        del file.attrs[name]
    expected = {"format": "not a checkpoint of lvkam", "format_version": "format version None: this lvkam reads 1"}
    assert refused(written) == expected.get(name, f"damaged: the attribute {name} is missing")


@pytest.mark.parametrize("version", [0, 2, -1, "1"])
def test_another_version_is_told(version: object, written: Path) -> None:
    with h5py.File(written, "r+") as file:
        file.attrs["format_version"] = version
    assert refused(written) == f"format version {version}: this lvkam reads 1"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("format", "other"), ("lvkam_version", "0.1.1"), ("config", Config().to_ini()), ("dataset", "FMNIST"),
        ("image_shape", [4, 3]), ("image_shape", [3, 4, 1]), ("seed", 2), ("epoch", 8), ("iteration", 0),
        ("sha256", "0" * 64),
    ],
)  # fmt: skip
def test_a_changed_attribute_is_told(name: str, value: object, written: Path) -> None:
    with h5py.File(written, "r+") as file:
        file.attrs[name] = value
    expected = "not a checkpoint of lvkam" if name == "format" else "damaged: the checksum of the whole does not match"
    assert refused(written) == expected


@pytest.mark.parametrize("name", sorted(ATTRIBUTES))
def test_an_attribute_of_the_wrong_kind_is_told(name: str, written: Path) -> None:
    for value in ("", "abc", 1.5, np.inf, [1, 2], ["a", "b"], np.bytes_(b"\xff\xfe"), np.void(b"\1"), h5py.Empty("f4")):
        with h5py.File(written, "r+") as file:
            file.attrs[name] = value
        assert refused(written)


@pytest.mark.parametrize(("name", "factor"), [("epoch", 1.05), ("iteration", 1.000001), ("image_shape", 1.2)])
def test_a_number_is_not_rounded_to_the_right_one(name: str, factor: float, written: Path) -> None:
    with h5py.File(written, "r+") as file:
        file.attrs[name] = np.asarray(file.attrs[name]) * factor
    assert refused(written)


@pytest.mark.parametrize(
    "part", [b"layer_widths = 2", "ε_scale".encode(), "π_0 = uniform".encode(), b"MNIST", b"lvkam-checkpoint"]
)
@pytest.mark.parametrize("flip", [1, 0x80])
def test_a_flipped_byte_of_the_attributes_is_told(part: bytes, flip: int, written: Path) -> None:
    content = bytearray(written.read_bytes())
    places = [match.start() for match in re.finditer(re.escape(part), content)]
    assert places
    for place in places:
        content[place] ^= flip
    written.write_bytes(content)
    assert refused(written)


@pytest.mark.parametrize("name", [n for n, a in {**example().arrays, **example().training}.items() if a.size])
def test_a_flipped_byte_of_an_array_is_told(name: str, written: Path) -> None:
    with h5py.File(written) as file:
        dataset = file[name]
        assert isinstance(dataset, h5py.Dataset)
        start, size = dataset.id.get_offset(), dataset.id.get_storage_size()
    whole = written.read_bytes()
    for place in {start, start + size // 2, start + size - 1}:
        content = bytearray(whole)
        content[place] ^= 1
        written.write_bytes(content)
        assert refused(written) == f"damaged: the checksum of {name} does not match"


def taken(file: h5py.File) -> tuple[np.ndarray, object]:
    """The mixture logits and their checksum, removed from the file."""
    array, checksum = np.asarray(file[LOGITS]), file[LOGITS].attrs["sha256"]
    del file[LOGITS]
    return array, checksum


def replace(file: h5py.File, value: Any, **keywords: Any) -> None:
    _, checksum = taken(file)
    file.create_dataset(LOGITS, data=value, **keywords).attrs["sha256"] = checksum


def external(file: h5py.File) -> None:
    array, checksum = taken(file)
    (outside := Path(file.filename).with_suffix(".raw")).write_bytes(array.tobytes())
    dataset = file.create_dataset(LOGITS, array.shape, array.dtype, external=[(outside, 0, h5py.h5f.UNLIMITED)])
    dataset.attrs["sha256"] = checksum


def virtual(file: h5py.File) -> None:
    array, checksum = taken(file)
    with h5py.File(outside := Path(file.filename).with_suffix(".other"), "w") as other:
        other["a"] = array
    layout = h5py.VirtualLayout(array.shape, array.dtype)
    layout[...] = h5py.VirtualSource(outside, "a", array.shape)
    file.create_virtual_dataset(LOGITS, layout).attrs["sha256"] = checksum


CHECKSUM = f"damaged: the checksum of {LOGITS} does not match"
WHOLE = "damaged: the checksum of the whole does not match"
NOT_NUMBERS = "{} is not an array of numbers stored in the file"
LINK = "{} is a link to elsewhere, which no checkpoint holds"
SPOILED: dict[str, tuple[Callable[[h5py.File], object], str]] = {
    "other values": (lambda f: replace(f, np.zeros((3, 2), "f4")), CHECKSUM),
    "other shape": (lambda f: replace(f, example().arrays[LOGITS].reshape(2, 3)), CHECKSUM),
    "other type": (lambda f: replace(f, example().arrays[LOGITS].view("i4")), CHECKSUM),
    "no checksum": (lambda f: f[LOGITS].attrs.pop("sha256"), CHECKSUM),
    "other checksum": (lambda f: f[LOGITS].attrs.modify("sha256", "0" * 64), CHECKSUM),
    "checksums": (lambda f: f[LOGITS].attrs.create("sha256", [1, 2]), ""),
    "one array less": (lambda f: f.pop(LOGITS), WHOLE),
    "one part less": (lambda f: f.pop("training"), WHOLE),
    "one array more": (lambda f: f.copy(LOGITS, "prior/more"), WHOLE),
    "moved": (lambda f: f.move(LOGITS, "prior/logits"), WHOLE),
    "soft link": (lambda f: f.__setitem__("prior/x", h5py.SoftLink("/" + LOGITS)), LINK.format("prior/x")),
    "link to nothing": (lambda f: f.__setitem__("x", h5py.SoftLink("/nothing")), LINK.format("x")),
    "external link": (lambda f: f.__setitem__("x", h5py.ExternalLink("o.h5", "/")), LINK.format("x")),
    "linked twice": (lambda f: f.__setitem__("prior/more", f[LOGITS]), WHOLE),
    "circle": (lambda f: f.__setitem__("prior/x", f["prior"]), ""),
    "text": (lambda f: replace(f, "abc"), NOT_NUMBERS.format(LOGITS)),
    "bytes": (lambda f: replace(f, np.bytes_(b"abc")), NOT_NUMBERS.format(LOGITS)),
    "objects": (lambda f: replace(f, ["a", "b"], dtype=h5py.string_dtype()), NOT_NUMBERS.format(LOGITS)),
    "references": (lambda f: replace(f, f["prior"].ref, dtype=h5py.ref_dtype), NOT_NUMBERS.format(LOGITS)),
    "lists": (lambda f: f.create_dataset("x", (2,), h5py.vlen_dtype(np.int32)), NOT_NUMBERS.format("x")),
    "records": (lambda f: f.create_dataset("x", data=np.zeros(2, "i4, f4")), NOT_NUMBERS.format("x")),
    "complex numbers": (lambda f: f.create_dataset("x", data=np.zeros(2, complex)), NOT_NUMBERS.format("x")),
    "type": (lambda f: f.__setitem__("x", np.dtype("f4")), NOT_NUMBERS.format("x")),
    "empty": (lambda f: replace(f, h5py.Empty("f4")), ""),
    "numbers of another file": (external, NOT_NUMBERS.format(LOGITS)),
    "numbers of other files": (virtual, NOT_NUMBERS.format(LOGITS)),
}


@pytest.mark.parametrize("name", SPOILED)
def test_a_spoiled_file_is_told(name: str, written: Path) -> None:
    spoil, message = SPOILED[name]
    with h5py.File(written, "r+") as file:
        spoil(file)
    told = refused(written)
    assert told == message if message else told


@pytest.mark.parametrize("share", [0.001, 0.01, 0.1, 0.3, 0.5, 0.9, 0.999])
def test_a_file_cut_short_is_told(share: float, written: Path) -> None:
    content = written.read_bytes()
    written.write_bytes(content[: int(share * len(content))])
    assert re.match(r"damaged: |not a checkpoint of lvkam", refused(written))


def leftovers(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.name != "a")


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file(error: type[BaseException], tmp_path: Path) -> None:
    (path := tmp_path / "a").write_text("old")
    for old in (b"old", None):
        if old is None:
            path.unlink()
        with pytest.raises(error), write_atomically(path) as temporary:  # noqa: PT012 - the failure is inside the context
            assert temporary.parent == path.parent
            temporary.write_text("half")
            assert (path.read_bytes() if path.exists() else None) == old
            raise error
        assert (path.read_bytes() if path.exists() else None) == old
        assert leftovers(tmp_path) == []


def test_success_replaces_the_old_file(tmp_path: Path) -> None:
    (path := tmp_path / "a").write_text("old")
    with write_atomically(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert leftovers(tmp_path) == []


def test_the_file_is_synced_before_it_takes_its_place_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[Path, bool]] = []
    monkeypatch.setattr(checkpoint_module, "_sync", lambda path: synced.append((path, (tmp_path / "a").exists())))
    with write_atomically(tmp_path / "a") as temporary:
        temporary.write_text("new")
    assert synced == [(temporary, False), (tmp_path, True)]


def test_a_place_that_cannot_be_taken_is_left_clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path := tmp_path / "a").mkdir()
    with pytest.raises(OSError, match="Is a directory"), write_atomically(path) as temporary:
        temporary.write_text("new")
    assert leftovers(tmp_path) == []

    def full(_: Path) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoint_module, "_sync", full)
    with pytest.raises(OSError, match="No space left"), write_atomically(tmp_path / "b") as temporary:
        temporary.write_text("new")
    assert leftovers(tmp_path) == []


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(written: Path) -> None:
    old = written.read_bytes()
    broken = example()
    with pytest.raises(TypeError):
        write_checkpoint(written, Checkpoint(**{**vars(broken), "arrays": {"x": np.array([object()])}}))
    assert written.read_bytes() == old
    assert leftovers(written.parent) == [written.name]
    with pytest.raises(OSError, match="No such file"):
        write_checkpoint(written.parent / "nowhere" / "ckpt.h5", broken)


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664), (0, 0o666)])
def test_permissions_follow_the_umask(umask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        write_checkpoint(path := tmp_path / "ckpt.h5", example())
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == mode
