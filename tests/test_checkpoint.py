"""Checkpoints: what was written is read bit for bit, and nothing else is taken for one."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from lvkam.build import (
    build_config_optimizer,
    build_model,
    build_objective,
    model_arrays,
    optimizer_arrays,
    set_optimizer_arrays,
)
from lvkam.checkpoint import (
    OPTIMIZER_STATE,
    Checkpoint,
    CheckpointError,
    count_parameters,
    describe_checkpoint,
    learnt,
    model_layout,
    read_checkpoint,
    training_layout,
    write_checkpoint,
)
from lvkam.config import Config, parse_config
from lvkam.hdf5 import LONGEST_TEXT
from lvkam.optimizers import FIRST_ORDER, SEARCHING, build_optimizer
from lvkam.progress import EpochRecord, TrainingState
from lvkam.standardisation import Standardisation
from lvkam.writing import WriteError
from tests.conftest import reseal, small_config

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
    log = [EpochRecord(a, n, b, c, n == 1, d, e) for n, (a, b, c, d, e) in enumerate(rng.random((8, 5)).tolist())]
    state = TrainingState(
        7, 123456, 1.5, 3, 99.25, 17.5, True, False, 123400, 5000, 2, 0.125, rng.integers(0, 256, 5056, dtype=np.uint8),
        rng.integers(0, 256, 5056, dtype=np.uint8), log,
    )  # fmt: skip
    training = {
        "training/compiled": np.asarray(True),
        "training/on_gpu": np.asarray(False),
        "training/bfloat16": np.asarray(True),
        "training/threads": np.asarray(4),
        "training/data_sha256": rng.integers(0, 256, 32, dtype=np.uint8),
        **{f"training/progress/{name}": array for name, array in state.to_arrays().items()},
    }
    for name, (dtype, shape) in training_layout(CONFIG, 12, 7).items():
        if name.startswith("training/optimizer/"):
            # axes in another order, as the coefficients' are in memory
            training[name] = np.asarray(rng.random(shape[::-1]), dtype).T
            if name.endswith("/step"):
                training[name] = np.asarray(123456, dtype)
    # an optimiser's numbers are nobody's but its own: their bits are kept, whatever they mean
    odd = np.array([0.1, -3e38, -0.0, 1e-45, 3e38, -1], np.float32).reshape(3, 2)
    training[f"training/optimizer/{LOGITS}/exp_avg"] = odd
    return Checkpoint(
        config=CONFIG.to_ini(),
        dataset="MNIST",
        image_shape=(3, 4),
        seed=2**63 - 1,
        epoch=7,
        iteration=123456,
        lvkam_version="0.1.0",
        arrays=model_arrays(build_model(CONFIG, 12)),
        training=training,
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
    assert message.startswith((f"{path}: ", f"{path} (config)"))
    # of a configuration all problems are told, each on a line of its own
    lines = message.splitlines()
    assert len(lines) == 1 or all(line.startswith(f"{path} (config)") for line in lines)
    assert all(line.isprintable() for line in lines)
    return message.removeprefix(f"{path}: ").removeprefix(str(path))


SEAL = "damaged: its bytes do not match its seal"
SIZE = "damaged: not of the size that its seal says"


def spoiled(path: Path, spoil: Callable[[h5py.File], object]) -> str:
    """Why a file is refused that somebody has changed, and sealed again; without the new seal it is the seal."""
    size = path.stat().st_size
    with h5py.File(path, "r+") as file:
        spoil(file)
    assert refused(path) == (SEAL if path.stat().st_size == size else SIZE)
    reseal(path)
    return refused(path)


def test_a_new_seal_is_the_old_one_while_nothing_has_changed(written: Path) -> None:
    before = written.read_bytes()
    reseal(written)
    assert written.read_bytes() == before


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
    assert {n for n in example().arrays if learnt(CONFIG, n)} == sizes.keys()
    assert describe_checkpoint(written) == {
        "parameters": sum(sizes.values()), "epoch": 7, "iteration": 123456, "dataset": "MNIST", "image_shape": [3, 4],
        "seed": 2**63 - 1, "lvkam_version": "0.1.0", "verified": True, "config": CONFIG.to_dict(),
    }  # fmt: skip
    assert sum(sizes.values()) == sum(p.numel() for p in build_model(CONFIG, 12).parameters())
    with h5py.File(written, "r+") as file:
        file.attrs["iteration"] = 8
    for message in (SEAL, WHOLE):
        with pytest.raises(CheckpointError) as caught:
            describe_checkpoint(written)
        assert str(caught.value) == f"{written}: {message}"
        reseal(written)


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
    assert refused(tmp_path) == "not a file"


def test_another_hdf5_file_is_told(tmp_path: Path) -> None:
    with h5py.File(path := tmp_path / "samples.h5", "w") as file:
        file["samples"] = np.zeros((2, 3, 4))
    assert refused(path) == "not a checkpoint of lvkam (an HDF5 file without a seal)"
    with h5py.File(path, "w", userblock_size=512) as file:
        file["samples"] = np.zeros((2, 3, 4))
    assert refused(path) == "not a checkpoint of lvkam (not an HDF5 file)"
    reseal(path)
    assert refused(path) == "damaged: the attribute format is missing"


@pytest.mark.parametrize("name", sorted(ATTRIBUTES))
def test_a_missing_attribute_is_told(name: str, written: Path) -> None:
    assert spoiled(written, lambda f: f.attrs.pop(name)) == f"damaged: the attribute {name} is missing"


def test_an_attribute_more_is_told(written: Path) -> None:
    assert spoiled(written, lambda f: f.attrs.create("more", 1)) == "holds an attribute more than such a file does"


@pytest.mark.parametrize("version", [0, 2, -1, 2**63])
def test_another_version_is_told(version: int, written: Path) -> None:
    told = spoiled(written, lambda f: f.attrs.create("format_version", version))
    assert told == f"format version {version}: this lvkam reads 1"


KIND = "damaged: the attribute {} is of the wrong kind"
WHOLE = "damaged: the checksum of the whole does not match"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("format", "other", "not a checkpoint of lvkam"),
        ("lvkam_version", "0.1.1", WHOLE),
        ("config", CONFIG.to_ini().replace("seed = 1\n", "seed = 2\n"), WHOLE),
        ("config", Config().to_ini(), "holds prior/layers/1, which no such file does"),
        ("config", "nonsense", " (config), line 1: not 'key = value' in a section: nonsense"),
        (
            "config", "[TRAINING]\nseeds = 1\n",
            " (config): [TRAINING] seeds: unknown key; did you mean 'seed'?",
        ),
        ("dataset", "FMNIST", WHOLE),
        ("image_shape", [4, 3], WHOLE),
        (
            "image_shape", [3, 4, 1],
            "damaged: (3, 4, 1), {'seed': 9223372036854775807, 'epoch': 7, 'iteration': 123456}: not numbers of a run",
        ),
        (
            "image_shape", [3, 5],
            "generator/layers/1/coef holds float32 (6, 12, 6), its configuration means float32 (6, 15, 6)",
        ),
        (
            "image_shape", [3, 0],
            "damaged: (3, 0), {'seed': 9223372036854775807, 'epoch': 7, 'iteration': 123456}: not numbers of a run",
        ),
        (
            "image_shape", [10**6 + 1, 1],
            "damaged: (1000001, 1), {'seed': 9223372036854775807, 'epoch': 7, 'iteration': 123456}: "
            "not numbers of a run",
        ),
        ("seed", 2, WHOLE),
        ("seed", -1, "damaged: (3, 4), {'seed': -1, 'epoch': 7, 'iteration': 123456}: not numbers of a run"),
        (
            "epoch", 8,
            "training/progress/log holds float64 (8, 7), its configuration means float64 (9, 7)",
        ),
        (
            "epoch", 2**64 - 1,
            "training/progress/log holds float64 (8, 7), its configuration means float64 (18446744073709551616, 7)",
        ),
        ("iteration", 0, WHOLE),
        (
            "iteration", -5,
            "damaged: (3, 4), {'seed': 9223372036854775807, 'epoch': 7, 'iteration': -5}: not numbers of a run",
        ),
        ("sha256", "0" * 64, WHOLE),
    ],
)  # fmt: skip
def test_a_changed_attribute_is_told(name: str, value: object, message: str, written: Path) -> None:
    assert spoiled(written, lambda f: f.attrs.create(name, value)) == message


NUMBERS = {"format_version", "seed", "epoch", "iteration", "image_shape"}
NO_ATTRIBUTE = (
    1.5, np.inf, ["a", "b"], [[1, 2], [3, 4]], [1, 2, 3, 4], np.bytes_(b"\xff\xfe"), np.bytes_(b"abc"), np.void(b"\1"),
    h5py.Empty("f4"), h5py.Empty("i8"), True, "a\x1b[31m", "a" * (LONGEST_TEXT + 1), "a\u202eb",
)  # fmt: skip


@pytest.mark.parametrize("name", sorted(ATTRIBUTES))
def test_an_attribute_of_the_wrong_kind_is_told(name: str, written: Path) -> None:
    other = ["", "abc"] if name in NUMBERS else [1, -1, 2**63]
    several = [] if name == "image_shape" else [[1], [1, 2], []]
    with h5py.File(written, "r+") as file:
        del file.attrs[name]
    whole = written.read_bytes()
    for value in (*NO_ATTRIBUTE, *other, *several):
        written.write_bytes(whole)
        with h5py.File(written, "r+") as file:
            file.attrs[name] = value
        reseal(written)
        assert refused(written) == KIND.format(name), value


@pytest.mark.parametrize(("name", "factor"), [("epoch", 1.05), ("iteration", 1.000001), ("image_shape", 1.2)])
def test_a_number_is_not_rounded_to_the_right_one(name: str, factor: float, written: Path) -> None:
    told = spoiled(written, lambda f: f.attrs.create(name, np.asarray(f.attrs[name]) * factor))
    assert told == KIND.format(name)


@pytest.mark.parametrize(
    ("part", "messages"),
    [
        (b"layer_widths = 2", (r" \(config\): \[MIX_PRIOR\] mayer_widths: unknown key; .*", KIND.format("config"))),
        # the other epsilon is read as this one: the same configuration in other bytes
        ("ε_scale".encode(), (WHOLE, KIND.format("config"))),
        # no letter at all
        ("π_0 = uniform".encode(), (KIND.format("config"), KIND.format("config"))),
        (b"seed = 1", (r" \(config\): \[TRAINING\] reed: unknown key; did you mean 'seed'\?", KIND.format("config"))),
        (b"MNIST", (WHOLE, KIND.format("config"))),
        (b"lvkam-checkpoint", ("not a checkpoint of lvkam", KIND.format("format"))),
    ],
)
def test_a_flipped_byte_of_the_attributes_is_told(part: bytes, messages: tuple[str, str], written: Path) -> None:
    whole = written.read_bytes()
    places = [match.start() for match in re.finditer(re.escape(part), whole)]
    assert places
    for flip, message in zip((1, 0x80), messages, strict=True):
        content = bytearray(whole)
        for place in places:
            content[place] ^= flip
        written.write_bytes(content)
        assert refused(written) == SEAL
        reseal(written)
        assert re.fullmatch(message, refused(written), re.DOTALL)


@pytest.mark.parametrize("name", sorted({**example().arrays, **example().training}))
def test_a_flipped_byte_of_an_array_is_told(name: str, written: Path) -> None:
    with h5py.File(written) as file:
        dataset = file[name]
        assert isinstance(dataset, h5py.Dataset)
        start, size = dataset.id.get_offset(), dataset.id.get_storage_size()
    whole = written.read_bytes()
    assert whole[start : start + size] == {**example().arrays, **example().training}[name].tobytes()
    for place in {start, start + size // 2, start + size - 1}:
        content = bytearray(whole)
        content[place] ^= 1
        written.write_bytes(content)
        assert refused(written) == SEAL
        reseal(written)
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


def put(name: str, value: Any) -> Callable[[h5py.File], object]:
    """What replaces whatever is there."""

    def spoil(file: h5py.File) -> None:
        if name in file:
            del file[name]
        file[name] = value

    return spoil


def circle(file: h5py.File) -> None:
    del file["prior/layers"]
    file["prior/layers"] = file["prior"]


def unwritten(file: h5py.File) -> None:
    array, checksum = taken(file)
    file.create_dataset(LOGITS, array.shape, array.dtype).attrs["sha256"] = checksum


def same_array(**keywords: Any) -> Callable[[h5py.File], object]:
    """The mixture logits, the same numbers stored in another way."""
    return lambda file: replace(file, np.asarray(file[LOGITS]), **keywords)


def holds(what: str) -> str:
    return f"{LOGITS} holds {what}, its configuration means float32 (3, 2)"


CHECKSUM = f"damaged: the checksum of {LOGITS} does not match"
MISSING = f"damaged: {LOGITS} is missing"
MORE = "holds {}, which no such file does"
LINK = "{} is a link to elsewhere, which no such file holds"
STORED = f"{LOGITS} is not stored plainly within the file"
SPOILED: dict[str, tuple[Callable[[h5py.File], object], str]] = {
    "other values": (lambda f: replace(f, np.zeros((3, 2), "f4")), CHECKSUM),
    "other shape": (lambda f: replace(f, example().arrays[LOGITS].reshape(2, 3)), holds("float32 (2, 3)")),
    "other type": (lambda f: replace(f, example().arrays[LOGITS].view("i4")), holds("int32 (3, 2)")),
    "other order": (lambda f: replace(f, example().arrays[LOGITS].astype(">f4")), holds(">f4 (3, 2)")),
    "wider type": (lambda f: replace(f, example().arrays[LOGITS].astype(float)), holds("float64 (3, 2)")),
    "no checksum": (lambda f: f[LOGITS].attrs.pop("sha256"), "damaged: the attribute sha256 is missing"),
    "other checksum": (lambda f: f[LOGITS].attrs.modify("sha256", "0" * 64), CHECKSUM),
    "checksums": (lambda f: f[LOGITS].attrs.create("sha256", [1, 2]), KIND.format("sha256")),
    "one array less": (lambda f: f.pop(LOGITS), MISSING),
    "one array of the training less": (
        lambda f: f.pop("training/progress/log"), "damaged: training/progress/log is missing",
    ),
    "one part less": (lambda f: f.pop("training"), WHOLE),
    "one array more": (lambda f: f.copy(LOGITS, "prior/more"), MORE.format("prior/more")),
    "one group more": (lambda f: f.create_group("generator/layers/0/more"), MORE.format("generator/layers/0/more")),
    "moved": (lambda f: f.move(LOGITS, "prior/logits"), MISSING),
    "soft link": (put("prior/x", h5py.SoftLink("/" + LOGITS)), MORE.format("prior/x")),
    "soft link in an array's place": (put(LOGITS, h5py.SoftLink("/prior/layers/0/w_base")), LINK.format(LOGITS)),
    "soft link in a group's place": (put("generator", h5py.SoftLink("/prior")), LINK.format("generator")),
    "link to nothing": (put(LOGITS, h5py.SoftLink("/nothing")), LINK.format(LOGITS)),
    "external link": (put(LOGITS, h5py.ExternalLink("o.h5", "/")), LINK.format(LOGITS)),
    "external link to a training": (put("training", h5py.ExternalLink("o.h5", "/")), LINK.format("training")),
    "linked twice": (lambda f: f.__setitem__("prior/more", f[LOGITS]), MORE.format("prior/more")),
    "circle": (lambda f: f.__setitem__("prior/x", f["prior"]), MORE.format("prior/x")),
    "a group in an array's place": (
        lambda f: (f.pop(LOGITS), f.create_group(LOGITS)), f"{LOGITS} is not an array",
    ),
    "an array in a group's place": (put("prior/layers", np.zeros(2)), "prior/layers is not a group"),
    "training that is an array": (put("training", np.zeros(2)), "training is not a group"),
    "text": (lambda f: replace(f, "abc"), holds("object ()")),
    "bytes": (lambda f: replace(f, np.bytes_(b"abc")), holds("|S3 ()")),
    "objects": (lambda f: replace(f, ["a", "b"], dtype=h5py.string_dtype()), holds("object (2,)")),
    "references": (lambda f: replace(f, f["prior"].ref, dtype=h5py.ref_dtype), holds("object ()")),
    "lists": (
        lambda f: (f.pop(LOGITS), f.create_dataset(LOGITS, (3, 2), h5py.vlen_dtype(np.int32))), holds("object (3, 2)"),
    ),
    "records": (lambda f: replace(f, np.zeros((3, 2), "i4, f4")), holds("[('f0', '<i4'), ('f1', '<f4')] (3, 2)")),
    "complex numbers": (lambda f: replace(f, np.zeros((3, 2), complex)), holds("complex128 (3, 2)")),
    "truth values": (lambda f: replace(f, np.zeros((3, 2), bool)), holds("bool (3, 2)")),
    "type": (put(LOGITS, np.dtype("f4")), f"{LOGITS} is neither a group nor an array"),
    "empty": (lambda f: replace(f, h5py.Empty("f4")), holds("float32 None")),
    "numbers of another file": (external, STORED),
    "numbers of other files": (virtual, STORED),
    "chunks": (same_array(chunks=(1, 2)), STORED),
    "compressed": (same_array(compression="gzip"), STORED),
    "shuffled": (same_array(shuffle=True), STORED),
    "never written": (unwritten, f"{LOGITS} announces 24 bytes and stores 0"),
}  # fmt: skip


@pytest.mark.parametrize("name", SPOILED)
def test_a_spoiled_file_is_told(name: str, written: Path) -> None:
    spoil, message = SPOILED[name]
    assert spoiled(written, spoil) == message


def test_a_circle_in_a_groups_place_is_told(written: Path) -> None:
    assert spoiled(written, circle) in {f"damaged: prior/layers/{n} is missing" for n in range(2)}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (LOGITS, [[0, 1], [np.nan, 2], [3, 4]], f"{LOGITS} holds numbers that are not finite"),
        (LOGITS, [[0, 1], [-np.inf, 2], [3, 4]], f"{LOGITS} holds numbers that are not finite"),
        ("prior/layers/0/bandwidth", 0.0, "prior/layers/0/bandwidth holds 0.0, which is not greater than 0"),
        ("prior/layers/0/bandwidth", -2.5, "prior/layers/0/bandwidth holds -2.5, which is not greater than 0"),
        ("prior/layers/0/bandwidth", np.inf, "prior/layers/0/bandwidth holds numbers that are not finite"),
        (f"training/optimizer/{LOGITS}/step", -3.0, f"training/optimizer/{LOGITS}/step holds -3.0, which is no count"),
        (f"training/optimizer/{LOGITS}/step", 0.5, f"training/optimizer/{LOGITS}/step holds 0.5, which is no count"),
        ("training/progress/batches", -1, "damaged: a count of its training is too small"),
        ("training/progress/grid_update_period", -1, "damaged: a count of its training is too small"),
        ("training/progress/last_grid_update", -1, "damaged: a count of its training is too small"),
        ("training/progress/skipped_grid_updates", -1, "damaged: a count of its training is too small"),
    ],
)
def test_numbers_that_cannot_be_are_told_though_all_checksums_fit(
    name: str, value: Any, message: str, tmp_path: Path
) -> None:
    good = example()
    arrays, training = dict(good.arrays), dict(good.training)
    part = training if name in training else arrays
    part[name] = np.asarray(value, part[name].dtype)
    write_checkpoint(path := tmp_path / "bad.h5", Checkpoint(**{**vars(good), "arrays": arrays, "training": training}))
    assert refused(path) == message


@pytest.mark.parametrize("column", [0, 3, -1])
def test_knots_that_do_not_increase_are_told_though_all_checksums_fit(column: int, tmp_path: Path) -> None:
    good, name = example(), "generator/layers/1/grid"
    grid = good.arrays[name].copy()
    if column == 0:
        grid[0, 1] = grid[0, 0]  # one knot twice
    else:
        grid[column] = grid[column, ::-1]
    write_checkpoint(path := tmp_path / "bad.h5", Checkpoint(**{**vars(good), "arrays": {**good.arrays, name: grid}}))
    assert refused(path) == f"{name} holds knots that do not increase"


def test_a_log_of_other_epochs_is_told_though_all_checksums_fit(tmp_path: Path) -> None:
    good, name = example(), "training/progress/log"
    log = good.training[name].copy()
    log[3, 1] = 4
    training = {**good.training, name: log}
    write_checkpoint(path := tmp_path / "bad.h5", Checkpoint(**{**vars(good), "training": training}))
    assert refused(path) == "damaged: its log is not that of 7 epochs"


def test_a_model_alone_is_read_but_holds_no_progress(tmp_path: Path) -> None:
    model = Checkpoint(**{**vars(example()), "training": {}})
    write_checkpoint(path := tmp_path / "model.h5", model)
    read = read_checkpoint(path)
    assert same(read, model)
    with pytest.raises(CheckpointError, match="a model alone: nothing that a training could go on with"):
        _ = read.progress
    with h5py.File(path) as file:
        assert sorted(file) == ["generator", "prior"]


def test_the_progress_is_what_was_written(written: Path) -> None:
    progress, expected = read_checkpoint(written).progress, example().progress
    assert (progress.epoch, progress.iteration, progress.batches, progress.best_nll) == (7, 123456, 3, 0.125)
    assert progress.log == expected.log
    assert [record.epoch for record in progress.log] == list(range(8))
    assert progress.stream.tobytes() == expected.stream.tobytes()


Entries = dict[str, tuple[np.dtype, tuple[int, ...]]]


def entries(arrays: dict[str, np.ndarray], prefix: str = "") -> Entries:
    return {f"{prefix}{name}": (array.dtype, array.shape) for name, array in arrays.items()}


@pytest.mark.parametrize("trainable", ["true", "false"])
@pytest.mark.parametrize("widths", ["3, 4", "3, 5, 2, 4", "1, 4"])
@pytest.mark.parametrize("basis", ["B-spline", "RBF", "RSWAF"])
@pytest.mark.parametrize("optimizer", sorted(FIRST_ORDER))
def test_the_layouts_are_those_of_models_and_optimisers(
    optimizer: str, basis: str, widths: str, trainable: str
) -> None:
    config = small_config(
        f"MIX_PRIOR.spline_function={basis}", f"MIX_PRIOR.layer_widths={widths}", "MIX_PRIOR.spline_degree=2",
        f"MIX_PRIOR.η_trainable={trainable}", f"KAN_LIKELIHOOD.spline_function={basis}",
        "KAN_LIKELIHOOD.expert_widths=4, 6, 7", f"OPTIMIZER.type={optimizer}",
    )  # fmt: skip
    model = build_model(config, 9)
    assert entries(model_arrays(model)) == model_layout(config, 9)
    of_training = training_layout(config, 9, 5)
    of_optimizer = {n: e for n, e in of_training.items() if n.startswith("training/optimizer/")}
    rule = build_optimizer(optimizer, model.parameters(), 0.01)
    assert optimizer_arrays(model, rule) == {}
    for _ in range(2):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        rule.step()
        assert entries(optimizer_arrays(model, rule), "training/optimizer/") == of_optimizer
    sizes = {name: array.size for name, array in model_arrays(model).items()}
    parameters = {name: size for name, size in sizes.items() if learnt(config, name)}
    assert sum(parameters.values()) == sum(p.numel() for p in model.parameters())
    assert len(parameters) == len(list(model.parameters()))
    assert len(of_optimizer) == len(OPTIMIZER_STATE[optimizer]) * len(parameters)
    others = of_training.keys() - of_optimizer.keys()
    progress = TrainingState(log=[EpochRecord(0, n, 0, 0, False, 0, 0) for n in range(6)]).to_arrays()
    assert {n: of_training[n] for n in others if "progress" in n} == entries(progress, "training/progress/")
    assert {n: of_training[n] for n in others if "progress" not in n} == {
        "training/compiled": (np.dtype(bool), ()),
        "training/on_gpu": (np.dtype(bool), ()),
        "training/bfloat16": (np.dtype(bool), ()),
        "training/threads": (np.dtype(np.int64), ()),
        "training/data_sha256": (np.dtype(np.uint8), (32,)),
    }


@pytest.mark.parametrize("basis", ["B-spline", "RBF"])
@pytest.mark.parametrize("optimizer", sorted(SEARCHING))
def test_the_layouts_are_those_of_optimisers_that_lower_functions(optimizer: str, basis: str) -> None:
    config = small_config(
        f"MIX_PRIOR.spline_function={basis}", "MIX_PRIOR.layer_widths=3, 5, 4", f"OPTIMIZER.type={optimizer}",
        "OPTIMIZER.l-bfgs_memory=2", "KAN_LIKELIHOOD.η_trainable=false", "KAN_LIKELIHOOD.spline_function=RSWAF",
    )  # fmt: skip
    model = build_model(config, 9)
    count = sum(p.numel() for p in model.parameters())
    assert count_parameters(config, 9) == count
    layout = training_layout(config, 9, 0)
    of_optimizer = {n: e for n, e in layout.items() if n.startswith("training/optimizer/")}
    rule = build_config_optimizer(config, model)
    assert entries(optimizer_arrays(model, rule), "training/optimizer/") == of_optimizer
    sizes = {"bfgs": count**2, "l-bfgs": 4 * count, "cg": 2 * count}
    held = sum(math.prod(shape) for name, (_, shape) in of_optimizer.items() if not name.endswith("/step"))
    assert held == sizes.get(optimizer, 0)
    for index, array in enumerate(sorted(of_optimizer)):  # and back, into the memory that parameters share
        shape = of_optimizer[array][1]
        value = np.full(shape, index + 1, np.float32)
        set_optimizer_arrays(model, rule, {array.removeprefix("training/optimizer/"): value})
        assert (optimizer_arrays(model, rule)[array.removeprefix("training/optimizer/")] == value).all()


@pytest.mark.parametrize("optimizer", sorted(FIRST_ORDER))
def test_every_parameter_has_its_state_after_one_step_of_training(optimizer: str) -> None:
    # otherwise a file would be written that the layout refuses
    for overrides in ([], ["MIX_PRIOR.layer_widths=1, 4"], ["MIX_PRIOR.normalization=contrastive"],
                      ["TRAINING.gradient_samples=1"], ["THERMODYNAMIC_INTEGRATION.num_temps=1"]):  # fmt: skip
        config = small_config(f"OPTIMIZER.type={optimizer}", *overrides)
        model = build_model(config, 9)
        rule = build_optimizer(optimizer, model.parameters(), 0.01)
        x = torch.rand(5, 9, generator=torch.Generator().manual_seed(0))
        build_objective(config)(model, x, torch.Generator().manual_seed(1)).backward()
        rule.step()
        expected = {n for n in training_layout(config, 9, 0) if n.startswith("training/optimizer/")}
        assert {f"training/optimizer/{n}" for n in optimizer_arrays(model, rule)} == expected


@pytest.mark.parametrize("share", [0.001, 0.01, 0.1, 0.3, 0.5, 0.9, 0.999])
def test_a_file_cut_short_is_told(share: float, written: Path) -> None:
    content = written.read_bytes()
    written.write_bytes(content[: int(share * len(content))])
    assert refused(written) == SIZE


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (0, "not a checkpoint of lvkam (not an HDF5 file)"),
        (7, "not a checkpoint of lvkam (not an HDF5 file)"),
        (8, SIZE),
        (511, SIZE),
        (512, SIZE),
        (513, SIZE),
    ],
)
def test_a_file_cut_short_within_its_seal_is_told(size: int, message: str, written: Path) -> None:
    written.write_bytes(written.read_bytes()[:size])
    assert refused(written) == message


@pytest.mark.parametrize("share", [0.03, 0.1, 0.3, 0.5, 0.9, 0.999])
def test_a_file_cut_short_and_sealed_again_is_told(share: float, written: Path) -> None:
    content = written.read_bytes()
    written.write_bytes(content[: int(share * len(content))])
    reseal(written)
    assert refused(written).startswith("damaged: ")


def test_bytes_behind_the_end_are_told(written: Path) -> None:
    written.write_bytes(written.read_bytes() + b"\0")
    assert refused(written) == SIZE


def leftovers(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.name != "a")


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(written: Path) -> None:
    old = written.read_bytes()
    broken = example()
    with pytest.raises(TypeError):
        write_checkpoint(written, Checkpoint(**{**vars(broken), "arrays": {"x": np.array([object()])}}))
    assert written.read_bytes() == old
    assert leftovers(written.parent) == [written.name]
    nowhere = written.parent / "nowhere" / "ckpt.h5"
    with pytest.raises(WriteError) as caught:
        write_checkpoint(nowhere, broken)
    assert str(caught.value) == f"{nowhere}: cannot be written (there is no folder {nowhere.parent})"


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664), (0, 0o666)])
def test_permissions_follow_the_umask(umask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        write_checkpoint(path := tmp_path / "ckpt.h5", example())
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == mode


# --- of tables

NAMES = ("größe in cm", "$x^2$", "a, b")


def of_table(
    columns: tuple[str, ...] = NAMES, mean: object = (1e-9, -2.5, 1 / 3), std: object = (1e-7, 7e5, 0.1)
) -> Checkpoint:
    return Checkpoint(
        config=CONFIG.to_ini(), dataset="a.csv", image_shape=(3,), seed=1, epoch=2, iteration=3, lvkam_version="0.1.0",
        arrays=model_arrays(build_model(CONFIG, 3)),
        standardisation=Standardisation(columns, np.array(mean, float), np.array(std, float)),
    )  # fmt: skip


@pytest.fixture
def table(tmp_path: Path) -> Path:
    write_checkpoint(path := tmp_path / "table.h5", of_table())
    return path


def test_a_standardisation_is_read_to_the_bit(table: Path) -> None:
    read = read_checkpoint(table)
    found, expected = read.standardisation, of_table().standardisation
    assert found is not None
    assert expected is not None
    assert (found.columns, found.mean.tobytes(), found.std.tobytes()) == (
        NAMES, expected.mean.tobytes(), expected.std.tobytes(),
    )  # fmt: skip
    assert same(read, of_table())
    write_checkpoint(table, read)
    assert same(read_checkpoint(table), read)
    with h5py.File(table) as file:
        assert sorted(file) == ["data", "generator", "prior"]
        assert str(file.attrs["columns"]).split("\n") == list(NAMES)
        arrays = {name: np.asarray(file[f"data/{name}"]) for name in ("mean", "std")}
    assert {name: array.tolist() for name, array in arrays.items()} == {
        "mean": [1e-9, -2.5, 1 / 3], "std": [1e-7, 7e5, 0.1],
    }  # fmt: skip
    assert describe_checkpoint(table)["columns"] == list(NAMES)


def test_of_images_there_is_no_standardisation(written: Path) -> None:
    assert read_checkpoint(written).standardisation is None
    assert "columns" not in describe_checkpoint(written)
    told = spoiled(written, lambda f: f.attrs.create("columns", "a"))
    assert told == "holds an attribute more than such a file does"
    write_checkpoint(written, example())
    assert spoiled(written, lambda f: f.create_dataset("data/mean", data=np.zeros(2))) == MORE.format("data")


def numbers(name: str, value: Any, **keywords: Any) -> Callable[[h5py.File], object]:
    """Another array of the standardisation, with the checksum of the one that was there."""

    def spoil(file: h5py.File) -> None:
        checksum = file[name].attrs["sha256"]
        del file[name]
        file.create_dataset(name, data=value, **keywords).attrs["sha256"] = checksum

    return spoil


OF_TABLES: dict[str, tuple[Callable[[h5py.File], object], str]] = {
    "no names": (lambda f: f.attrs.pop("columns"), "damaged: the attribute columns is missing"),
    "a number for names": (lambda f: f.attrs.create("columns", 1), KIND.format("columns")),
    "a list of names": (lambda f: f.attrs.create("columns", ["a", "b", "c"]), KIND.format("columns")),
    "names that move the cursor": (lambda f: f.attrs.create("columns", "a\nb\n\x1b[2J"), KIND.format("columns")),
    "other names": (lambda f: f.attrs.create("columns", "a\nb\nc"), WHOLE),
    "no means": (lambda f: f.pop("data/mean"), "damaged: data/mean is missing"),
    "nothing": (lambda f: f.pop("data"), "damaged: data is missing"),
    "one array more": (lambda f: f.create_dataset("data/more", data=1.0), MORE.format("data/more")),
    "other means": (numbers("data/mean", np.zeros(3)), "damaged: the checksum of data/mean does not match"),
    "fewer": (numbers("data/std", np.ones(2)), "data/std holds float64 (2,), its configuration means float64 (3,)"),
    "rounded": (
        numbers("data/std", np.ones(3, np.float32)),
        "data/std holds float32 (3,), its configuration means float64 (3,)",
    ),
    "in pieces": (numbers("data/std", np.ones(3), chunks=(1,)), "data/std is not stored plainly within the file"),
    "a link": (put("data/std", h5py.SoftLink("/data/mean")), LINK.format("data/std")),
    "an external link": (put("data", h5py.ExternalLink("other.h5", "/")), LINK.format("data")),
    "images": (
        lambda f: f.attrs.create("image_shape", [1, 3]), "holds data, which no such file does",
    ),
    "another number of columns": (
        lambda f: f.attrs.create("image_shape", [4]),
        "generator/layers/1/coef holds float32 (6, 3, 6), its configuration means float32 (6, 4, 6)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OF_TABLES)
def test_a_spoiled_file_of_a_table_is_told(name: str, table: Path) -> None:
    spoil, message = OF_TABLES[name]
    assert spoiled(table, spoil) == message


@pytest.mark.parametrize("name", ["data/mean", "data/std"])
def test_a_flipped_byte_of_a_standardisation_is_told(name: str, table: Path) -> None:
    with h5py.File(table) as file:
        place = file[name].id.get_offset()
    content = bytearray(table.read_bytes())
    content[place + 5] ^= 1
    table.write_bytes(content)
    assert refused(table) == SEAL
    reseal(table)
    assert refused(table) == f"damaged: the checksum of {name} does not match"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"columns": ("a", "b")}, "damaged: no standardisation of its 3 columns"),
        ({"columns": ("a", "b", "c", "d")}, "damaged: no standardisation of its 3 columns"),
        ({"std": (1, 0, 1)}, "damaged: no standardisation of its 3 columns"),
        ({"std": (1, -1, 1)}, "damaged: no standardisation of its 3 columns"),
        ({"std": (1, np.nan, 1)}, "data/std holds numbers that are not finite"),
        ({"std": (1, np.inf, 1)}, "data/std holds numbers that are not finite"),
        ({"mean": (1, -np.inf, 1)}, "data/mean holds numbers that are not finite"),
    ],
)
def test_a_standardisation_that_cannot_be_is_told_though_all_checksums_fit(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    write_checkpoint(path := tmp_path / "bad.h5", of_table(**changes))
    assert refused(path) == message
