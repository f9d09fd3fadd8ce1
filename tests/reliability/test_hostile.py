"""Files made to mislead: refused before torch is imported, and no other file's bytes come out."""

from __future__ import annotations

import json
import os
import pickle
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from lvkam.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from lvkam.experiment import run_experiment
from lvkam.hdf5 import _seal, digest
from tests.conftest import reseal, small_config
from tests.reliability.harness import ENVIRONMENT, assert_no_traceback, report

SECONDS, MEGABYTES = 2.0, 300
CANARY = f"CANARY-{secrets.token_hex(8)}"
LOGITS, COEF = "prior/mixture_logits", "generator/layers/1/coef"

DRIVER = """
import json, re, sys
from lvkam_cli.main import main
try:
    main()
except SystemExit as end:
    peak = int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1]) / 1024  # since exec
    print(json.dumps([end.code, peak, "torch" in sys.modules]), file=open("told", "w"))
"""


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good") / "run"
    run_experiment(small_config(), folder, say=lambda _: None)
    return folder


@pytest.fixture
def evil(good: Path, tmp_path: Path) -> Path:
    """A copy to spoil, and beside it what it may try to read."""
    (tmp_path / "canary.txt").write_text(CANARY * 64)
    with h5py.File(tmp_path / "canary.h5", "w") as file:
        file["secret"] = np.frombuffer((CANARY * 64).encode(), np.float32)
        file.attrs["secret"] = CANARY
    (path := tmp_path / "evil.h5").write_bytes((good / "ckpt.h5").read_bytes())
    return path


def taken(file: h5py.File, name: str) -> tuple[np.ndarray, Any]:
    array, checksum = np.asarray(file[name]), file[name].attrs["sha256"]
    del file[name]
    return array, checksum


def put(file: h5py.File, name: str, value: Any = None, **keywords: Any) -> None:
    """Replace an array by another one, with a checksum that is right for it wherever there can be one."""
    array, checksum = taken(file, name)
    if value is None and "shape" not in keywords:
        value = array
    dataset = file.create_dataset(name, data=value, **keywords)
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        checksum = digest(np.asarray(value, order="C"))
    dataset.attrs["sha256"] = checksum


def raw_external(file: h5py.File) -> None:
    array, checksum = taken(file, LOGITS)
    source = [(Path(file.filename).with_name("canary.txt"), 0, array.nbytes)]
    file.create_dataset(LOGITS, array.shape, array.dtype, external=source).attrs["sha256"] = checksum


def virtual(file: h5py.File) -> None:
    array, checksum = taken(file, LOGITS)
    layout = h5py.VirtualLayout(array.shape, array.dtype)
    layout[...] = h5py.VirtualSource(Path(file.filename).with_name("canary.h5"), "secret", array.shape)
    file.create_virtual_dataset(LOGITS, layout).attrs["sha256"] = checksum


def filtered(number: int) -> Callable[[h5py.File], None]:
    def spoil(file: h5py.File) -> None:
        array, checksum = taken(file, LOGITS)
        how = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        how.set_chunk(array.shape)
        how.set_filter(number, h5py.h5z.FLAG_OPTIONAL, (1,))
        kind, space = h5py.h5t.py_create(array.dtype), h5py.h5s.create_simple(array.shape)
        h5py.h5d.create(file["prior"].id, b"mixture_logits", kind, space, how)
        file[LOGITS].attrs["sha256"] = checksum

    return spoil


def linked(name: str, link: Callable[[h5py.File], Any]) -> Callable[[h5py.File], None]:
    def spoil(file: h5py.File) -> None:
        del file[name]
        file[name] = link(file)

    return spoil


def unallocated(chunked: bool) -> Callable[[h5py.File], None]:
    """An array far larger than the file, with the right shape for a configuration that is changed to match."""

    def spoil(file: h5py.File) -> None:
        config = str(file.attrs["config"])
        file.attrs["config"] = config.replace("expert_widths = 4, 6", "expert_widths = 4, 1000000")
        for layer, i, o in ((0, 4, 10**6), (1, 10**6, 49)):
            for name, shape in {"coef": (i, o, 8), "w_base": (i, o), "w_spline": (i, o), "grid": (i, 12)}.items():
                path = f"generator/layers/{layer}/{name}"
                _, checksum = taken(file, path)
                chunks = tuple(min(n, 64) for n in shape) if chunked else None
                file.create_dataset(path, shape, np.float32, chunks=chunks).attrs["sha256"] = checksum

    return spoil


def written(**changes: Any) -> Callable[[Path], None]:
    """Through the project's own writer, so that all checksums and the seal are right."""

    def spoil(path: Path) -> None:
        checkpoint = read_checkpoint(path)
        arrays, training = dict(checkpoint.arrays), dict(checkpoint.training)
        for name, change in changes.pop("arrays", {}).items():
            where = training if name.startswith("training/") else arrays
            if change is None:
                where.pop(name, None)
            else:
                where[name] = change(where.get(name))
        write_checkpoint(path, Checkpoint(**{**vars(checkpoint), "arrays": arrays, "training": training, **changes}))

    return spoil


def text(path: Path, old: str, new: str) -> None:
    checkpoint = read_checkpoint(path)
    assert old in checkpoint.config
    write_checkpoint(path, Checkpoint(**{**vars(checkpoint), "config": checkpoint.config.replace(old, new)}))


def sparse(path: Path) -> None:
    """A terabyte of nothing; hashing it would take an hour, whatever the seal says."""
    with path.open("r+b") as file:
        file.truncate(2**40)
        file.write(_seal("0" * 64, 2**40))


def with_nan(array: np.ndarray) -> np.ndarray:
    array = np.array(array)
    array.flat[0] = np.nan
    return array


Within = Callable[[h5py.File], Any]
WITHIN: dict[str, Within] = {
    "soft link to an array": linked(LOGITS, lambda _: h5py.SoftLink("/training/threads")),
    "soft link to a group": linked("prior/layers", lambda _: h5py.SoftLink("/generator/layers")),
    "soft link to nothing": linked(LOGITS, lambda _: h5py.SoftLink("/nothing")),
    "external link to an array": linked(LOGITS, lambda _: h5py.ExternalLink("canary.h5", "/secret")),
    "external link to a group": linked("prior", lambda _: h5py.ExternalLink("canary.h5", "/")),
    "external link within a layer": linked(COEF, lambda _: h5py.ExternalLink("canary.h5", "/secret")),
    "external link at the top, in training": linked("training", lambda _: h5py.ExternalLink("canary.h5", "/")),
    "external link, one name more": lambda f: f.__setitem__("more", h5py.ExternalLink("canary.h5", "/secret")),
    "group that holds itself": linked("prior/layers", lambda f: f["prior"]),
    "array where a group belongs": linked("prior/layers", lambda f: np.zeros(3)),
    "group where an array belongs": linked(LOGITS, lambda f: f["generator"]),
    "type where an array belongs": linked(LOGITS, lambda _: np.dtype("f4")),
    "external storage": raw_external,
    "virtual array": virtual,
    "compressed": lambda f: put(f, LOGITS, compression="gzip"),
    "compressed by another filter": lambda f: put(f, LOGITS, compression="lzf"),
    "shuffled": lambda f: put(f, LOGITS, shuffle=True, chunks=(2, 2)),
    "checksummed by HDF5": lambda f: put(f, LOGITS, fletcher32=True),
    "unknown filter": filtered(32000),
    "filter from outside": filtered(307),
    "chunked": lambda f: put(f, LOGITS, chunks=(2, 2)),
    "extendable": lambda f: put(f, LOGITS, maxshape=(None, None)),
    "text": lambda f: put(f, LOGITS, "abc"),
    "texts of any length": lambda f: put(f, LOGITS, ["a", "b"], dtype=h5py.string_dtype()),
    "bytes": lambda f: put(f, LOGITS, np.array([[b"abcd"] * 3] * 4)),
    "references": lambda f: put(f, LOGITS, f["prior"].ref, dtype=h5py.ref_dtype),
    "region references": lambda f: put(f, LOGITS, f[COEF].regionref[0], dtype=h5py.regionref_dtype),
    "records": lambda f: put(f, LOGITS, np.zeros((4, 3), "i4, f4")),
    "complex numbers": lambda f: put(f, LOGITS, np.zeros((4, 3), np.complex64)),
    "opaque bytes": lambda f: put(f, LOGITS, np.zeros((4, 3), "V4")),
    "lists": lambda f: put(f, LOGITS, shape=(4, 3), dtype=h5py.vlen_dtype(np.float32)),
    "enumeration": lambda f: put(f, LOGITS, shape=(4, 3), dtype=h5py.enum_dtype({"A": 1}, "i4")),
    "other precision": lambda f: put(f, LOGITS, np.zeros((4, 3))),
    "half precision": lambda f: put(f, LOGITS, np.zeros((4, 3), np.float16)),
    "other order of bytes": lambda f: put(f, LOGITS, np.zeros((4, 3), ">f4")),
    "integers": lambda f: put(f, LOGITS, np.zeros((4, 3), np.int32)),
    "transposed": lambda f: put(f, LOGITS, np.zeros((3, 4), np.float32)),
    "one dimension less": lambda f: put(f, LOGITS, np.zeros(12, np.float32)),
    "empty": lambda f: put(f, LOGITS, h5py.Empty("f4")),
    "nothing in it": lambda f: put(f, LOGITS, np.zeros((0, 3), np.float32)),
    "huge, never written": lambda f: put(f, LOGITS, shape=(10**6, 10**6), dtype=np.float32),
    "huge, as its configuration says, never written": unallocated(chunked=False),
    "huge, as its configuration says, in chunks": unallocated(chunked=True),
    "attribute of a megabyte": lambda f: f.attrs.__setitem__("dataset", "x" * 2**20),
    "attribute more": lambda f: f.attrs.__setitem__("more", 1),
    "attribute of many numbers": lambda f: f.attrs.__setitem__("image_shape", np.ones(4000, np.int64)),
    "attribute that is a reference": lambda f: f.attrs.create("dataset", f["prior"].ref, dtype=h5py.ref_dtype),
    "seed below zero": lambda f: f.attrs.__setitem__("seed", -1),
    "giant images": lambda f: f.attrs.__setitem__("image_shape", np.array([10**6, 10**6, 10**6])),
    "other format": lambda f: f.attrs.__setitem__("format", "another"),
    "other version": lambda f: f.attrs.__setitem__("format_version", 2),
    "no checksum": lambda f: f[LOGITS].attrs.__delitem__("sha256"),
    "wrong checksum": lambda f: f[LOGITS].attrs.__setitem__("sha256", "0" * 64),
    "wrong checksum of the whole": lambda f: f.attrs.__setitem__("sha256", "0" * 64),
}
ESCAPE = "\x1b]0;owned\x07"
BESIDE: dict[str, Callable[[Path], Any]] = {
    "numbers that are not finite": written(arrays={LOGITS: with_nan}),
    "knots that do not increase": written(arrays={"prior/layers/0/grid": lambda a: a[:, ::-1].copy()}),
    "one array more": written(arrays={"prior/more": lambda _: np.zeros(3, np.float32)}),
    "one array less": written(arrays={COEF: None}),
    "a part of training": written(arrays={"training/threads": None}),
    "counts below zero": written(arrays={"training/progress/batches": lambda _: np.asarray(-1)}),
    "a log of other epochs": written(arrays={"training/progress/log": lambda a: a * 2}),
    "another configuration": lambda p: text(p, "layer_widths = 3, 4", "layer_widths = 4, 4"),
    "a wrong configuration": lambda p: text(p, "layer_widths = 3, 4", "layer_widths = -3, 4"),
    "a configuration that is none": written(config="nothing"),
    "control characters in the configuration": lambda p: text(
        p, "gating_activation = celu", f"gating_activation = {ESCAPE}"
    ),
    "control characters in the name": written(dataset=ESCAPE),
    "sparse": sparse,
    "not sealed": lambda p: p.write_bytes(p.read_bytes()[512:]),
    "sealed for other bytes": lambda p: p.write_bytes(p.read_bytes() + b"\0"),
    "cut short": lambda p: p.write_bytes(p.read_bytes()[:-1]),
    "a pickle": lambda p: p.write_bytes(pickle.dumps({"a": np.zeros(3)})),
    "nothing": lambda p: p.write_bytes(b""),
    "a pipe": lambda p: (p.unlink(), os.mkfifo(p)),
    "a folder": lambda p: (p.unlink(), p.mkdir()),
    "a device": lambda p: (p.unlink(), p.symlink_to("/dev/zero")),
    "missing": lambda p: p.unlink(),
}


def lvkam(folder: Path, *arguments: str) -> tuple[int, float, float, bool, str]:
    """Status, seconds, megabytes, whether torch was imported, and all that was said."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, *arguments],
        cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    seconds = time.perf_counter() - began
    assert_no_traceback(done.stderr)
    assert done.returncode == 0, done.stderr
    code, peak, torch = json.loads((folder / "told").read_text())
    (folder / "told").unlink()
    return code, seconds, peak, torch, done.stdout + done.stderr


def contents(folder: Path) -> Iterator[bytes]:
    for path in folder.rglob("*"):
        if path.is_file() and not path.name.startswith("canary") and path.name != "evil.h5" and not path.is_symlink():
            yield path.read_bytes()


@pytest.mark.parametrize("name", [*WITHIN, *BESIDE])
def test_a_crafted_file_is_refused(name: str, evil: Path, good: Path) -> None:
    if name in WITHIN:
        with h5py.File(evil, "r+") as file:
            WITHIN[name](file)
        reseal(evil)
    else:
        BESIDE[name](evil)
    code, seconds, megabytes, torch, said = lvkam(evil.parent, "info", evil.name)
    assert code == 2, said
    assert len(said.strip().splitlines()) == 1
    assert said.startswith("error: evil.h5"), said
    assert CANARY not in said
    assert "\x1b" not in said
    assert not torch
    assert seconds < SECONDS
    assert megabytes < MEGABYTES
    report("crafted files refused", 1)
    report("seconds, the slowest refusal", round(seconds, 2))
    report("MB, the largest refusal", round(megabytes))


@pytest.mark.parametrize("name", ["external link to an array", "external storage", "virtual array", "wrong checksum"])
def test_no_command_reads_on(name: str, evil: Path, good: Path) -> None:
    with h5py.File(evil, "r+") as file:
        WITHIN[name](file)
    reseal(evil)
    folder = evil.parent
    (run := folder / "run").mkdir()
    (run / "ckpt.h5").write_bytes(evil.read_bytes())
    (folder / "a.ini").write_text(small_config().to_ini())
    before = sorted(p.name for p in folder.rglob("*"))
    for arguments in (
        ("sample", "evil.h5"),
        ("evaluate", "evil.h5", "--json"),
        ("plot", "evil.h5", "--what", "temperatures"),
        ("info", "evil.h5", "--json"),
        ("train", "a.ini", "--output", "run", "--resume"),
    ):
        code, _, megabytes, torch, said = lvkam(folder, *arguments)
        assert code == 2, said
        assert not torch
        assert megabytes < MEGABYTES
        assert CANARY not in said
    assert sorted(p.name for p in folder.rglob("*")) == before
    assert not any(CANARY.encode() in content for content in contents(folder))


def test_a_checkpoint_cannot_name_a_file_to_read(evil: Path) -> None:
    """A path as the name of the data set: nothing on this machine is opened for a file that came from elsewhere."""
    written(dataset=str(evil.with_name("canary.txt")))(evil)
    for command in (("evaluate", "evil.h5"), ("plot", "evil.h5", "--what", "temperatures")):
        code, *_, said = lvkam(evil.parent, *command)
        assert code == 2
        assert CANARY not in said


def test_the_good_file_is_read(good: Path, evil: Path) -> None:
    code, seconds, megabytes, torch, said = lvkam(evil.parent, "info", "evil.h5", "--json")
    assert code == 0, said
    assert json.loads(said)["verified"] is True
    assert not torch
    assert megabytes < MEGABYTES
    assert seconds < SECONDS
