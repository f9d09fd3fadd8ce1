"""A file is there whole or not at all, whatever goes wrong while it is written."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

import lvkam.writing as writing_module
from lvkam.run_folder import RUN_FILES
from lvkam.writing import WriteError, remove_parts, write_atomically


def others(folder: Path) -> list[str]:
    """Everything in the folder but the file `a`."""
    return sorted(p.name for p in folder.iterdir() if p.name != "a")


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_a_failure_leaves_the_old_file(error: type[BaseException], tmp_path: Path) -> None:
    (path := tmp_path / "a").write_text("old")
    # what the system refuses is told of the path; everything else is not for this module to explain
    raised = WriteError if error is OSError else error
    for old in (b"old", None):
        if old is None:
            path.unlink()
        with pytest.raises(raised) as caught, write_atomically(path) as temporary:  # noqa: PT012 - the failure is inside the context
            assert temporary.parent == path.parent
            temporary.write_text("half")
            assert (path.read_bytes() if path.exists() else None) == old
            raise error("told")
        assert str(caught.value) == (f"{path}: cannot be written (told)" if error is OSError else "told")
        assert (path.read_bytes() if path.exists() else None) == old
        assert others(tmp_path) == []


def test_success_replaces_the_old_file(tmp_path: Path) -> None:
    (path := tmp_path / "a").write_text("old")
    with write_atomically(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        # whoever finds it after a crash knows whose it is
        assert temporary.name.startswith(".a.")
        assert temporary.name.endswith(".part")
    assert path.read_text() == "new"
    assert others(tmp_path) == []


def test_a_relative_path_is_written_where_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with write_atomically(Path("b")) as temporary:
        temporary.write_text("new")
    assert (tmp_path / "b").read_text() == "new"
    assert others(tmp_path) == ["b"]


def test_the_file_is_synced_before_it_takes_its_place_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[Path, bool]] = []
    monkeypatch.setattr(writing_module, "_sync", lambda path: synced.append((path, (tmp_path / "a").exists())))
    with write_atomically(tmp_path / "a") as temporary:
        temporary.write_text("new")
    assert synced == [(temporary, False), (tmp_path, True)]


def test_a_place_that_cannot_be_taken_is_left_clean(tmp_path: Path) -> None:
    (path := tmp_path / "a").mkdir()
    with pytest.raises(WriteError) as caught, write_atomically(path) as temporary:
        temporary.write_text("new")
    assert str(caught.value) == f"{path}: cannot be written (Is a directory)"
    assert others(tmp_path) == []
    assert list(path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
def test_what_the_system_refuses_is_told_and_the_old_file_intact(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path := tmp_path / "a").write_text("old")

    def fail(_: Path) -> None:
        raise OSError(number, "in some words of its own", "/nowhere")

    monkeypatch.setattr(writing_module, "_sync", fail)
    with pytest.raises(WriteError) as caught, write_atomically(path) as temporary:
        temporary.write_text("new")
    assert str(caught.value) == f"{path}: cannot be written ({os.strerror(number)})"
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == number
    assert path.read_text() == "old"
    assert others(tmp_path) == []


def test_a_full_disk_is_told() -> None:
    # what writes into /dev/full is told by the system itself that no space is left
    error = None
    try:
        with Path("/dev/full").open("wb", buffering=0) as full:
            full.write(b"1")
    except OSError as found:
        error = found
    assert error is not None
    assert str(WriteError(Path("/dev/a"), error)) == "/dev/a: cannot be written (No space left on device)"


def test_a_folder_that_has_vanished_is_told(tmp_path: Path) -> None:
    path = tmp_path / "run" / "a"
    expected = f"{path}: cannot be written (there is no folder {path.parent})"
    with pytest.raises(WriteError) as caught, write_atomically(path):
        pytest.fail("there is nowhere to write to")
    assert str(caught.value) == expected
    path.parent.mkdir()
    with pytest.raises(WriteError) as caught, write_atomically(path) as temporary:  # noqa: PT012 - it vanishes meanwhile
        temporary.write_text("new")
        temporary.unlink()
        path.parent.rmdir()
    assert str(caught.value) == expected
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_told() -> None:
    with pytest.raises(WriteError) as caught, write_atomically(Path("/proc/a")):
        pytest.fail("there is nowhere to write to")
    assert str(caught.value) == "/proc/a: cannot be written (No such file or directory)"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_of_somebody_else_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(WriteError) as caught, write_atomically(tmp_path / "a"):
            pytest.fail("there is nowhere to write to")
    finally:
        tmp_path.chmod(0o755)
    assert str(caught.value) == f"{tmp_path / 'a'}: cannot be written (Permission denied)"


def test_a_write_error_is_an_os_error() -> None:
    # what ends a command with status 1, not with the 2 of bad input
    error = WriteError(Path("/proc/a"), OSError("words"))
    assert isinstance(error, OSError)
    assert str(error) == "/proc/a: cannot be written (words)"


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664), (0, 0o666)])
def test_permissions_follow_the_umask(umask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        with write_atomically(tmp_path / "a") as temporary:
            assert temporary.stat().st_mode & 0o077 == 0  # nobody else's while half written
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == mode


def test_parts_are_removed_and_nothing_else(tmp_path: Path) -> None:
    parts = [".ckpt.h5.abc123.part", ".ckpt.h5..part", ".loss.png.x_y.part", ".config.ini.0.part"]
    kept = [
        "ckpt.h5", "ckpt.h5.part", ".ckpt.h5", ".ckpt.h5.abc123", ".ckpt.h5.abc123.part.bak", "x.ckpt.h5.abc123.part",
        ".notes.txt.abc123.part", ".ckptxh5.abc123.part", ".best.h5x.part", ".lock", "ckpt.h5.abc123.part",
    ]  # fmt: skip
    for name in (*parts, *kept):
        (tmp_path / name).write_text(name)
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / parts[0]).write_text("mine")
    remove_parts(tmp_path, RUN_FILES)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*kept, "deeper"])
    assert all((tmp_path / name).read_text() == name for name in kept)
    assert (tmp_path / "deeper" / parts[0]).read_text() == "mine"
    remove_parts(tmp_path, RUN_FILES)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*kept, "deeper"])


@pytest.mark.parametrize("name", RUN_FILES)
def test_what_a_crash_leaves_is_what_is_removed(name: str, tmp_path: Path) -> None:
    with pytest.raises(WriteError), write_atomically(tmp_path / name) as temporary:  # noqa: PT012 - it is removed inside
        temporary.write_text("half")
        assert [p.name for p in tmp_path.iterdir()] == [temporary.name]
        remove_parts(tmp_path, [name])
        assert list(tmp_path.iterdir()) == []
