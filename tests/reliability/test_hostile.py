"""Files made to mislead: refused before torch is imported, and no other file's bytes come out."""

from __future__ import annotations

import json
import os
import pickle
import secrets
import struct
import subprocess
import sys
import time
import zipfile
import zlib
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
from tests.reliability.harness import ENVIRONMENT, assert_no_traceback, report, settings, working_folder

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


# --- data

SaveArrays = Callable[..., None]
savez: SaveArrays = np.savez
ESCAPING = "\x1b]0;owned\x07"


class Unpickled:
    """Writes the canary's name into a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def member(path: Path, head: str, body: bytes = b"", name: str = "samples.npy") -> None:
    """A .npz file whose one array says so of itself."""
    content = b"\x93NUMPY\1\0" + struct.pack("<H", len(head)) + head.encode() + body
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)


def head(shape: str, descr: str = "<f4") -> str:
    return f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}"


def lying_about_its_size(path: Path) -> None:
    member(path, head("(50000, 1000)", "|u1"), bytes(50 * 10**6))
    content = bytearray(path.read_bytes())
    struct.pack_into("<I", content, content.index(b"PK\x01\x02") + 20, 2**31)
    path.write_bytes(content)


def in_hdf5(make: Callable[[h5py.File], Any]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with h5py.File(path, "w") as file:
            make(file)

    return write


def beside(file: h5py.File, name: str) -> Path:
    return Path(file.filename).with_name(name)


def canary_outside(file: h5py.File) -> None:
    file.create_dataset("samples", (16, 4), "u1", external=[(beside(file, "canary.txt"), 0, 64)])


def canary_mapped(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((16, 4), "f4")
    layout[...] = h5py.VirtualSource(beside(file, "canary.h5"), "secret", (16, 4))
    file.create_virtual_dataset("samples", layout)


def piece_of_a_gigabyte(file: h5py.File) -> None:
    data = file.create_dataset("samples", (10, 10), "u1", chunks=(2**15, 2**15), maxshape=(None, None), compression=9)
    deflater = zlib.compressobj(9)
    parts = [deflater.compress(bytes(2**20)) for _ in range(2**10)]
    data.id.write_direct_chunk((0, 0), b"".join([*parts, deflater.flush()]))


def png_head(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    size = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(bytes(99)))


def picture(name: str, content: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.mkdir()
        (path / name).write_bytes(content)

    return write


def folder_with(make: Callable[[Path], Any]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.mkdir()
        make(path / "a.png")

    return write


DATA: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "a pickle in an archive": (
        "evil.npz", lambda p: savez(p, samples=np.array([[Unpickled(p.with_name("unpickled"))]], dtype=object)),
    ),
    "a pickle called an archive": (
        "evil.npz", lambda p: p.write_bytes(pickle.dumps(Unpickled(p.with_name("unpickled")))),
    ),
    "a zip bomb": ("evil.npz", lambda p: np.savez_compressed(p, np.zeros((10**7, 10), np.uint8))),
    "a zip bomb that lies about its size": ("evil.npz", lying_about_its_size),
    "an array beyond all bounds": ("evil.npz", lambda p: member(p, head("(1000000000, 1000000000)"))),
    "an array of 8000 digits": ("evil.npz", lambda p: member(p, head(f"({'9' * 4000}, {'9' * 4000})"))),
    "a head without end": ("evil.npz", lambda p: member(p, "-" * 9000 + "1")),
    "a head of brackets": ("evil.npz", lambda p: member(p, "(" * 9000)),
    "a name that moves the cursor": (
        "evil.npz", lambda p: member(p, head("(2, 2)", "|O"), bytes(32), f"{ESCAPING}.npy"),
    ),
    "an archive that is a pipe": ("evil.npz", os.mkfifo),
    "an archive that is a device": ("evil.npz", lambda p: p.symlink_to("/dev/zero")),
    "an archive of noise": ("evil.npz", lambda p: p.write_bytes(np.random.default_rng(0).bytes(10**5))),
    "a soft link": ("evil.h5", in_hdf5(lambda f: f.update({"x": np.zeros((2, 2)), "samples": h5py.SoftLink("/x")}))),
    "a link into another file": (
        "evil.h5", in_hdf5(lambda f: f.update({"samples": h5py.ExternalLink("canary.h5", "/secret")})),
    ),
    "an array in another file": ("evil.h5", in_hdf5(canary_outside)),
    "an array made of another file": ("evil.h5", in_hdf5(canary_mapped)),
    "a terabyte never written": ("evil.h5", in_hdf5(lambda f: f.create_dataset("samples", (10**6, 10**6), "u1"))),
    "a terabyte never written, in pieces": (
        "evil.h5", in_hdf5(lambda f: f.create_dataset("samples", (10**6, 10**6), "u1", chunks=(1000, 1000))),
    ),
    "a piece of a gigabyte": ("evil.h5", in_hdf5(piece_of_a_gigabyte)),
    "references": ("evil.h5", in_hdf5(lambda f: f.create_dataset("samples", (2, 2), h5py.ref_dtype))),
    "a name in HDF5 that moves the cursor": (
        "evil.h5", in_hdf5(lambda f: f.update({ESCAPING: h5py.SoftLink("/x")})),
    ),
    "an HDF5 file that is a pipe": ("evil.h5", os.mkfifo),
    "a picture of 2500 megapixels": ("evil", picture("a.png", png_head(50000, 50000))),
    "a picture of 100 megapixels": ("evil", picture("a.png", png_head(10000, 10000))),
    "a picture that is a pipe": ("evil", folder_with(os.mkfifo)),
    "a picture that is a device": ("evil", folder_with(lambda p: p.symlink_to("/dev/zero"))),
    "a picture that is a program": ("evil", picture("a.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n(canary.txt) run\n")),
    "a picture that is another file": ("evil", folder_with(lambda p: p.symlink_to(p.parents[1] / "canary.txt"))),
    "a picture's name that moves the cursor": ("evil", picture(f"{ESCAPING}.png", b"")),
    "a table that is another file": ("evil.csv", lambda p: p.symlink_to(p.with_name("canary.txt"))),
    "a table of one endless line": ("evil.csv", lambda p: p.write_bytes(b"1," * 10**7)),
    "a table whose names move the cursor": ("evil.csv", lambda p: p.write_text(f"a,{ESCAPING}\n1,2\n")),
    "a table whose fields move the cursor": ("evil.csv", lambda p: p.write_text(f"a,b\n1,{ESCAPING}\n")),
    "a table of a terabyte of nothing": ("evil.csv", lambda p: (p.touch(), os.truncate(p, 2**40))),
}  # fmt: skip


@pytest.mark.parametrize("name", DATA)
def test_crafted_data_is_refused(name: str, tmp_path: Path) -> None:
    file, make = DATA[name]
    working_folder(tmp_path)
    (tmp_path / "canary.txt").write_text(CANARY * 64)
    with h5py.File(tmp_path / "canary.h5", "w") as other:
        other["secret"] = np.frombuffer((CANARY * 64).encode(), np.float32)[:64].reshape(16, 4)
    make(tmp_path / file)
    command = "check" if len(name) % 2 else "train"
    code, seconds, megabytes, torch, said = lvkam(
        tmp_path, command, "nist_config.ini", *settings(f"TRAINING.dataset={file}"), *(
            ["--output", "run"] if command == "train" else []),
    )  # fmt: skip
    assert code == 2, said
    assert len(said.strip().splitlines()) == 1, said
    assert said.startswith(f"error: nist_config.ini: [TRAINING] dataset = {file}: {file}"), said
    # what a table holds is quoted where it is no number, for its owner alone: it is his file
    assert file == "evil.csv" or CANARY not in said
    assert said.strip().isprintable()
    assert not torch
    assert seconds < SECONDS
    assert megabytes < MEGABYTES
    assert not (tmp_path / "unpickled").exists()
    assert not (tmp_path / "run").exists()
    report("crafted data refused", 1)
    report("seconds, the slowest refusal of data", round(seconds, 2))
    report("MB, the largest refusal of data", round(megabytes))
