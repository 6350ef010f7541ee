"""What is kept of compiled kernels is whole, the user's own, and where the variables say."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mambalab.ext import cubin_cache
from mambalab.ext.cubin_cache import Image

IMAGE = Image(bytes(range(256)) * 20, "ptxas info    : Used 8 registers")


@pytest.fixture
def path(tmp_path) -> Path:
    return cubin_cache.entry(tmp_path, "13.0", "toy", "0123")


def test_what_is_written_is_read(path):
    assert cubin_cache.read(path) is None
    cubin_cache.write(path, IMAGE)
    assert cubin_cache.read(path) == IMAGE
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def _flipped(at: float):
    def flip(data: bytes) -> bytes:
        place = int(at * (len(data) - 1))
        return data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :]

    return flip


DAMAGES = {
    "empty": lambda data: b"",
    "cut after its title": lambda data: data[: len(cubin_cache.MAGIC)],
    "cut in half": lambda data: data[: len(data) // 2],
    "one byte short": lambda data: data[:-1],
    "one byte long": lambda data: data + b"\0",
    "a bit of the title": _flipped(0),
    "a bit of the checksum": lambda data: _flipped(30 / len(data))(data),
    "a bit of the log": lambda data: _flipped(100 / len(data))(data),
    "a bit of the code": _flipped(0.7),
    "the last bit": _flipped(1),
    "another file": lambda data: b"\x7fELF" + data,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_harmed_entry_is_not_read(path, damage):
    cubin_cache.write(path, IMAGE)
    path.write_bytes(damage(path.read_bytes()))
    assert cubin_cache.read(path) is None


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no users here")
@pytest.mark.parametrize(
    ("owner", "mode", "trusted"),
    [
        ("mine", 0o644, True),
        ("mine", 0o664, True),
        ("mine", 0o646, False),
        ("root's", 0o644, True),
        ("another's", 0o644, False),
    ],
)
def test_only_what_the_user_or_root_wrote_is_loaded(monkeypatch, owner, mode, trusted):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    number = {"mine": 1000, "root's": 0, "another's": 1001}[owner]
    assert cubin_cache._trusted(os.stat_result((mode, 1, 1, 1, number, 1, 1, 1, 1, 1))) == trusted


def test_a_lax_umask_does_not_open_the_cache_to_all(path):
    before = os.umask(0)
    try:
        cubin_cache.write(path, IMAGE)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755
    assert cubin_cache.read(path) == IMAGE


KILLED = """
import os, signal
from pathlib import Path
from mambalab.ext import cubin_cache
die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
{patch}
cubin_cache.write(Path({path!r}), cubin_cache.Image(b"code" * 1000, "log"))
"""


@pytest.mark.parametrize("patch", ["os.fsync = die", "Path.replace = die"])
def test_a_writer_killed_in_the_middle_leaves_nothing_that_is_read(path, patch):
    done = subprocess.run([sys.executable, "-c", KILLED.format(patch=patch, path=str(path))], check=False)
    assert done.returncode == -signal.SIGKILL
    assert cubin_cache.read(path) is None
    (left,) = list(path.parent.iterdir())
    cubin_cache.write(path, Image(b"new", ""))
    assert set(path.parent.iterdir()) == {left, path}
    long_ago = time.time() - 2 * cubin_cache.STALE_SECONDS
    os.utime(left, (long_ago, long_ago))
    cubin_cache.write(path, Image(b"newer", ""))
    assert list(path.parent.iterdir()) == [path]
    assert cubin_cache.read(path) == Image(b"newer", "")


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"MAMBALAB_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ({"MAMBALAB_CACHE": "", "XDG_CACHE_HOME": "/b"}, "/b/mambalab"),
        ({"XDG_CACHE_HOME": "relative", "HOME": "/home/ada"}, "/home/ada/.cache/mambalab"),
        ({"HOME": "/home/ada"}, "/home/ada/.cache/mambalab"),
    ],
)
def test_the_cache_lies_where_the_variables_say(monkeypatch, variables, folder):
    for name in ("MAMBALAB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cubin_cache.folder() == Path(folder)


def test_versions_are_found_newest_first_and_nothing_else_is_taken_for_one(tmp_path):
    for name in ("12.9", "13.0", "12.10", "notes.txt", "x.y"):
        (tmp_path / "cubin" / name).mkdir(parents=True)
    assert cubin_cache.versions(tmp_path) == ["13.0", "12.10", "12.9"]
    assert cubin_cache.versions(tmp_path / "none") == []
