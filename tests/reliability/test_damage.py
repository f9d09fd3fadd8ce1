"""Damaged checkpoints: cut at every 4 KiB, bits flipped. Always refused or read right, within a limit of memory.

A worker process reads them, so that a crash of the HDF5 library, or one that hangs, is seen as what it is.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest

from lvkam.experiment import run_experiment
from tests.conftest import reseal, small_config
from tests.reliability.harness import ENVIRONMENT, SOAK, report, scaled

MEMORY = 2**30

WORKER = """
import hashlib, json, resource, signal, sys
from pathlib import Path
from lvkam.checkpoint import read_checkpoint
from lvkam.errors import InputError

def summary(path):
    c = read_checkpoint(path)
    arrays = {n: hashlib.sha256(a.tobytes()).hexdigest() for n, a in {**c.arrays, **c.training}.items()}
    return [c.config, c.dataset, list(c.image_shape), c.seed, c.epoch, c.iteration, c.lvkam_version, arrays]

resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]),) * 2)
good = summary(Path(sys.argv[2]))
for line in sys.stdin:
    signal.alarm(10)
    try:
        told = "read" if summary(Path(line.strip())) == good else "WRONG"
    except InputError as error:
        told = "refused" if str(error).startswith(line.strip()) and "\\\\n" not in str(error) else f"WRONG {error}"
    signal.alarm(0)
    print(told, flush=True)
"""


class Reader:
    """A worker that tells what reading a file comes to."""

    def __init__(self, good: Path):
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(MEMORY), str(good)],
            env=ENVIRONMENT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def read(self, path: Path) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{path}\n")
        self.process.stdin.flush()
        told = self.process.stdout.readline().strip()
        if not told:
            assert self.process.stderr is not None
            pytest.fail(f"the reader ended: {self.process.wait()} {self.process.stderr.read()}")
        return told


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good") / "run"
    run_experiment(small_config(), folder, say=lambda _: None)
    return folder / "ckpt.h5"


@pytest.fixture
def reader(good: Path) -> Iterator[Reader]:
    reader = Reader(good)
    with reader.process:
        yield reader


def test_cut_at_every_block(good: Path, reader: Reader, tmp_path: Path) -> None:
    content = good.read_bytes()
    cuts = [*range(0, len(content), 4096), *range(512), len(content) - 1]
    told = []
    for cut in cuts if SOAK else cuts[:: len(cuts) // 60]:
        (path := tmp_path / "cut.h5").write_bytes(content[:cut])
        told.append(reader.read(path))
    assert set(told) == {"refused"}
    report("checkpoints cut short, refused", len(told))


@pytest.mark.parametrize("flips", [1, 2, 8])
def test_flipped_bits_are_refused(flips: int, good: Path, reader: Reader, tmp_path: Path) -> None:
    content, random_ = good.read_bytes(), random.Random(flips)
    told = []
    for _ in range(scaled(70, 2000 if flips == 1 else 500)):
        spoiled = bytearray(content)
        for place in random_.sample(range(len(content)), flips):
            spoiled[place] ^= 1 << random_.randrange(8)
        (path := tmp_path / "flipped.h5").write_bytes(spoiled)
        told.append(reader.read(path))
    assert set(told) == {"refused"}
    report("checkpoints with flipped bits, refused", len(told))


def structure(path: Path) -> list[int]:
    """Places of the bytes that belong to no array."""
    arrays: set[int] = set()

    def note(_: str, item: object) -> None:
        if isinstance(item, h5py.Dataset) and item.id.get_offset() is not None:
            begin = item.id.get_offset()
            arrays.update(range(begin, begin + item.id.get_storage_size()))

    with h5py.File(path) as file:
        file.visititems(note)
    return [place for place in range(512, path.stat().st_size) if place not in arrays]


def test_a_spoiled_structure_under_a_right_seal_is_refused_or_read_right(
    good: Path, reader: Reader, tmp_path: Path
) -> None:
    """What only malice makes: the HDF5 library itself meets the damage."""
    # of seed 0 a byte of a key's name becomes the backslash of what looks like an escaped line break
    content, places, random_ = good.read_bytes(), structure(good), random.Random(1)
    told = []
    for _ in range(scaled(300, 10000)):
        spoiled = bytearray(content)
        for place in random_.choices(places, k=random_.choice([1, 1, 2, 4])):
            spoiled[place] = random_.choice(
                [spoiled[place] ^ 1 << random_.randrange(8), random_.randrange(256), 0, 255]
            )
        (path := tmp_path / "spoiled.h5").write_bytes(spoiled)
        reseal(path)
        told.append(reader.read(path))
    assert set(told) <= {"refused", "read"}
    assert np.mean([t == "refused" for t in told]) > 0.2
    report("checkpoints with a spoiled structure under a right seal, refused", told.count("refused"))
    report("the same, the spoiled bytes being of no use, read right", told.count("read"))


def test_the_worker_tells_wrong_numbers(good: Path, reader: Reader, tmp_path: Path) -> None:
    """The tests above could fail: a file of other numbers, right in itself, is told."""
    run_experiment(small_config("TRAINING.seed=2"), tmp_path / "other", say=lambda _: None)
    assert reader.read(good) == "read"
    assert json.dumps(reader.read(tmp_path / "other" / "ckpt.h5")) == '"WRONG"'
