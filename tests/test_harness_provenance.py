"""Provenance says what ran, from wherever it ran, and nothing about who ran it."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from mambalab.harness import provenance as provenance_file
from mambalab.harness.provenance import (
    ROOMS,
    file_digest,
    git_state,
    gpu,
    machine,
    package_digest,
    provenance,
    versions,
    without_home,
)

ROOT = Path(__file__).resolve().parent.parent
GIVEN = {"backend": "cpu", "kernel": "k", "device": "cpu", "dtype": "float32", "command": "mambalab eval m"}


@pytest.fixture
def site(tmp_path):
    """A copy of the five rooms as an installer would lay them out."""
    for room in ROOMS:
        shutil.copytree(ROOT / room, tmp_path / "mambalab" / room, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def _digest_in(site: Path) -> str:
    code = "from mambalab.harness.provenance import package_digest; print(package_digest())"
    environment = os.environ | {"PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_digest_of_an_installed_copy_is_the_checkouts(site):
    assert _digest_in(site) == package_digest()


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("ext/new.py", True),
        ("ext/csrc/scan.cu", True),
        ("reports/results/table.py", False),
        ("reports/published/table3.csv", False),
        ("harness/miniature/new.jsonl", False),
        ("tasks/__pycache__/x.pyc", False),
    ],
)
def test_the_digest_follows_code_and_nothing_else(site, name, counts):
    before = _digest_in(site)
    path = site / "mambalab" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x = 1\n")
    assert (_digest_in(site) != before) == counts


def test_the_digest_follows_a_rename_and_a_changed_byte_but_no_time_stamp(site):
    own = site / "mambalab" / "harness" / "store.py"
    before = _digest_in(site)
    os.utime(own, (0, 0))
    assert _digest_in(site) == before
    own.write_text(own.read_text().replace("durably", "durable"))
    changed = _digest_in(site)
    own.with_name("errors.py").rename(own.with_name("mistakes.py"))
    (site / "mambalab" / "harness" / "manifest.py").rename(site / "mambalab" / "harness" / "list.py")
    assert len({before, changed, _digest_in(site)}) == 3


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A git checkout of the rooms, with provenance.py believing that it lives there."""
    for room in ROOMS:
        (tmp_path / room).mkdir()
        (tmp_path / room / "a.py").write_text("")
    (tmp_path / "reports" / "results").mkdir()
    (tmp_path / "reports" / "results" / "records.jsonl").write_text("")
    (tmp_path / ".gitignore").write_text(".venv/\n__pycache__/\n")
    shutil.copy(ROOT / "harness" / "provenance.py", tmp_path / "harness")
    monkeypatch.setattr(provenance_file, "__file__", str(tmp_path / "harness" / "provenance.py"))
    return tmp_path


def _commit(folder: Path) -> str:
    git = ["git", "-C", str(folder), "-c", "user.name=t", "-c", "user.email=t@t"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "all"], check=True)
    return subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()


def test_a_clean_checkout_gives_its_commit(checkout):
    commit = _commit(checkout)
    assert git_state() == {"commit": commit, "dirty": False}


@pytest.mark.parametrize(
    ("name", "dirty"),
    [
        ("ext/a.py", True),
        ("models/new.py", True),
        ("harness/provenance.py", True),
        ("README.md", False),
        ("ext/__pycache__/a.pyc", False),
        ("reports/results/records.jsonl", False),
        ("reports/results/new/table.md", False),
    ],
)
def test_dirty_means_that_code_differs_from_the_commit(checkout, name, dirty):
    _commit(checkout)
    (checkout / name).parent.mkdir(parents=True, exist_ok=True)
    (checkout / name).write_text("changed = True\n")
    assert git_state()["dirty"] is dirty


def test_no_commit_without_git_in_the_path(checkout, monkeypatch):
    _commit(checkout)
    monkeypatch.setenv("PATH", str(checkout))
    assert git_state() == {"commit": None, "dirty": None}


def test_no_commit_outside_a_checkout(checkout):
    assert git_state() == {"commit": None, "dirty": None}


def test_no_commit_for_a_package_installed_inside_somebody_elses_checkout(checkout, monkeypatch):
    installed = checkout / ".venv" / "mambalab" / "harness" / "provenance.py"
    installed.parent.mkdir(parents=True)
    shutil.copy(ROOT / "harness" / "provenance.py", installed)
    _commit(checkout)
    monkeypatch.setattr(provenance_file, "__file__", str(installed))
    assert git_state() == {"commit": None, "dirty": None}


def test_a_git_hooks_variables_do_not_mislead(checkout, monkeypatch, tmp_path_factory):
    commit = _commit(checkout)
    elsewhere = tmp_path_factory.mktemp("other")
    (elsewhere / "b").write_text("")
    assert _commit(elsewhere) != commit
    monkeypatch.setenv("GIT_DIR", str(elsewhere / ".git"))
    assert git_state() == {"commit": commit, "dirty": False}


def test_versions_name_what_is_installed_and_none_for_what_is_not(monkeypatch):
    import numpy

    assert versions()["numpy"] == numpy.__version__
    assert versions()["python"] == platform.python_version()
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", versions()["mambalab"] or "")
    monkeypatch.setattr(provenance_file, "DISTRIBUTIONS", ("numpy", "no-such-distribution"))
    assert versions()["no-such-distribution"] is None


def test_provenance_imports_no_torch():
    code = (
        "import sys; from mambalab.harness.provenance import provenance\n"
        "provenance(backend='b', kernel=None, device='cuda:0', dtype='float16', command='')\n"
        "print(sorted(set(sys.modules) & {'torch', 'numba', 'lm_eval', 'datasets', 'pandas', 'transformers'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_machine_names_processor_cores_and_threads():
    torch = pytest.importorskip("torch")
    found = machine()
    assert found["cpu"].strip()
    assert 1 <= found["cores"] <= (os.cpu_count() or 1)
    assert found["threads"] == torch.get_num_threads()
    assert found["device_name"] is None


def test_provenance_on_a_gpu_names_driver_cuda_and_compiler(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    monkeypatch.setattr(provenance_file, "_driver_version", lambda: "580.1")
    found = provenance(backend="b", kernel=None, device="cuda:0", dtype="float32", command="")
    assert (found["device_name"], found["driver"]) == ("NVIDIA H200", "580.1")
    assert {"cuda", "nvrtc"} <= found.keys()
    assert gpu("cpu") == {}


def test_no_management_library_is_no_driver_version(monkeypatch):
    def absent(name):
        raise OSError(name)

    monkeypatch.setattr(provenance_file.ctypes, "CDLL", absent)
    assert provenance_file._driver_version() is None


def test_a_record_can_say_where_its_number_comes_from():
    found = provenance(**GIVEN, checkpoint={"source": "m", "digest": "d", "layout": "hf"}, data={"a/b/c": "0"})
    wanted = {"version", "digest", "commit", "dirty", "python", "versions", "device", "cpu", "threads", "dtype"}
    assert wanted | {"backend", "kernel", "command", "checkpoint", "data"} <= found.keys()
    assert found["digest"] == package_digest()
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize("extra", ["digest", "versions", "cpu", "backend"])
def test_an_extra_key_never_replaces_what_was_measured(extra):
    if extra == "backend":
        with pytest.raises(ValueError, match="needs the name of the backend"):
            provenance(**GIVEN | {"backend": ""})
    else:
        with pytest.raises(ValueError, match=f"has its own {extra}"):
            provenance(**GIVEN, **{extra: "mine"})


def test_no_name_of_host_or_user_and_no_home_directory(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setenv("USER", "ada")
    found = provenance(
        **GIVEN | {"command": "mambalab eval /home/ada/m --data=/home/ada/d"},
        tokenizer={"/home/ada/tok": ["/home/ada"]},
    )
    text = json.dumps(found)
    assert found["command"] == "mambalab eval ~/m --data=~/d"
    assert found["tokenizer"] == {"~/tok": ["~"]}
    assert "ada" not in text
    assert len(socket.gethostname()) < 4 or socket.gethostname() not in text


def test_the_checkpoints_source_stays_as_the_user_gave_it(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    found = provenance(**GIVEN, checkpoint={"source": "/home/ada/mamba"})
    assert found["checkpoint"]["source"] == "/home/ada/mamba"


@pytest.mark.parametrize(
    ("home", "text", "shown"),
    [
        ("/ada", "/ada/a /adapt/b /data/ada/c", "~/a /adapt/b /data/ada/c"),
        ("/ada", "'/ada':/ada,/ada", "'~':~,~"),
        ("/ada/", "--data=/ada/a", "--data=~/a"),
        ("/", "/data/a", "/data/a"),
    ],
)
def test_only_the_home_directory_itself_is_shortened(monkeypatch, home, text, shown):
    monkeypatch.setenv("HOME", home)
    assert without_home(text) == shown


@pytest.mark.parametrize("size", [0, 1, 3_000_001])
def test_a_files_digest_is_its_contents_sha256(tmp_path, size):
    content = bytes(i % 251 for i in range(size))
    (tmp_path / "a").write_bytes(content)
    assert file_digest(tmp_path / "a") == hashlib.sha256(content).hexdigest()
