"""The doctor says what works, what does not, why, and what cures it; and it never falls ill itself."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
from hub_layout import fill, flip_a_bit
from mambalab.harness import doctor
from mambalab.harness.data import write_manifest
from mambalab.harness.doctor import Finding, diagnose, render


def _of(findings: list[Finding], subject: str) -> Finding:
    return next(finding for finding in findings if finding.subject == subject)


def _only(monkeypatch, *names: str) -> None:
    monkeypatch.setattr(doctor, "PROBES", {name: doctor.PROBES[name] for name in names})


def test_every_probe_has_something_to_say_and_none_breaks_here():
    findings = diagnose()
    subjects = {finding.subject for finding in findings}
    assert {"python", "mambalab", "torch", "lm-eval", "cpu", "backend reference", "threads", "hub", "data"} <= subjects
    assert {"hub cache", "datasets cache", "numba cache", "kernel cache", "nvrtc", "tokenizer"} <= subjects
    assert "hub reachable" not in subjects
    assert not [finding.text for finding in findings if "this check broke" in finding.text]
    assert _of(findings, "backend reference").state == "ok"


def test_findings_are_aligned_and_counted_with_the_cure_below():
    text = render(
        [
            Finding(state="ok", subject="python", text="3.12"),
            Finding(state="problem", subject="numba", text="not\ninstalled", cure="pip install numba"),
            Finding(state="warning", subject="threads", text="9 for 2 cores"),
        ]
    )
    assert text.splitlines() == [
        "ok       python   3.12",
        "problem  numba    not installed",
        "                  cure: pip install numba",
        "warning  threads  9 for 2 cores",
        "1 problem, 1 warning",
    ]


def test_the_home_directory_is_not_shown(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    assert "ada" not in render([Finding(state="ok", subject="hub cache", text="/home/ada/.cache")])


def test_a_state_of_another_name_is_refused():
    with pytest.raises(ValueError, match="state must be one of ok, warning, problem, not 'fine'"):
        Finding(state="fine", subject="a", text="b")


@pytest.mark.parametrize("error", [ImportError("libomp.so: cannot open\nmore"), OSError("bad ELF"), KeyError("x")])
def test_a_probe_that_breaks_is_a_finding(monkeypatch, error):
    def broken():
        yield Finding(state="ok", subject="first", text="said before")
        raise error

    monkeypatch.setattr(doctor, "PROBES", {"broken": broken})
    findings = diagnose()
    assert [finding.state for finding in findings][-1] == "problem"
    assert findings[-1].text.startswith(f"this check broke: {type(error).__name__}: ")
    assert "\n" not in findings[-1].text


@pytest.mark.parametrize(
    ("installed", "state", "says"),
    [
        (None, "problem", "not installed (needs numba>=0.61)"),
        ("0.60.0", "problem", "0.60.0, but needs >=0.61"),
        ("0.61.0", "ok", "0.61.0 (needs >=0.61)"),
        ("0.70.0rc1", "ok", "0.70.0rc1"),
    ],
)
def test_a_dependency_is_held_against_its_floor(monkeypatch, installed, state, says):
    _only(monkeypatch, "dependencies")
    monkeypatch.setattr(doctor, "version", lambda name: installed)
    monkeypatch.setattr(doctor, "project", lambda: {"dependencies": ["numba>=0.61"]})
    monkeypatch.setattr(doctor.importlib, "import_module", lambda name: None)
    (found,) = diagnose()
    assert (found.subject, found.state) == ("numba", state)
    assert says in found.text
    assert bool(found.cure) == (state != "ok")


def test_a_dependency_that_does_not_load_is_a_problem_with_its_own_words(monkeypatch):
    def undefined(name):
        raise ImportError("undefined symbol: _ZN3c10\nin lib.so")

    _only(monkeypatch, "dependencies")
    monkeypatch.setattr(doctor, "project", lambda: {"dependencies": ["torch>=2.11"]})
    monkeypatch.setattr(doctor.importlib, "import_module", undefined)
    (found,) = diagnose()
    assert found.state == "problem"
    assert "does not load: ImportError: undefined symbol: _ZN3c10" in found.text
    assert "--force-reinstall 'torch>=2.11'" in found.cure


def test_an_installed_package_reads_its_floors_from_its_metadata_without_extras(monkeypatch):
    _only(monkeypatch, "dependencies")
    monkeypatch.setattr(doctor, "project", dict)
    lines = ["click>=8.1", "numba-cuda>=0.30; extra == 'numba-cuda'", "absent>=1; python_version < '3'"]
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda name: lines)
    assert [finding.subject for finding in diagnose()] == ["click"]


def test_an_old_python_is_a_problem(monkeypatch):
    _only(monkeypatch, "python")
    monkeypatch.setattr(doctor.platform, "python_version", lambda: "3.10.14")
    (found,) = diagnose()
    assert (found.state, found.text) == ("problem", "3.10.14 (needs >=3.11)")
    assert found.cure


BLOCKED = {
    "torch": {"torch", "devices", "backends", "threads"},
    "numba": {"numba"},
    "packaging": {"python", "dependencies"},
    "huggingface_hub": {"hub", "caches"},
}


@pytest.mark.parametrize(("module", "problems"), BLOCKED.items(), ids=BLOCKED)
def test_a_library_that_can_not_be_imported_is_a_finding_and_not_a_traceback(module, problems):
    code = (
        f"import sys; sys.modules[{module!r}] = None\n"
        "from mambalab.harness import doctor\n"
        "for finding in doctor.diagnose(): print(finding.subject, finding.state, sep='=')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = {subject: state for subject, _, state in (line.rpartition("=") for line in done.stdout.splitlines())}
    assert {subject for subject in problems if said.get(subject) == "problem"} == problems
    assert said["mambalab"] == "ok"
    assert said["data"] == "ok"


def test_a_broken_extension_is_a_finding(monkeypatch):
    _only(monkeypatch, "backends", "data")
    monkeypatch.setitem(sys.modules, "mambalab.ext", None)
    monkeypatch.delenv("MAMBALAB_DATA", raising=False)
    backends, data = diagnose()
    assert (backends.subject, backends.state) == ("backends", "problem")
    assert "this check broke: " in backends.text
    assert data.state == "ok"


@pytest.mark.parametrize(
    ("device", "state", "found"),
    [
        ("cpu", "usable", "ok"),
        ("cpu", "missing", "warning"),
        ("cpu", "refused", "problem"),
        ("cuda", "missing", "ok"),
        ("any", "refused", "problem"),
    ],
)
def test_each_backend_has_its_state_reason_and_cure(monkeypatch, device, state, found):
    import torch
    from mambalab.ext import backends

    row = SimpleNamespace(name="row", device=device, state=state, reason="no such luck", cure="try again")
    if state == "usable":
        row.reason = row.cure = ""
    _only(monkeypatch, "backends")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(backends, "status", lambda: [row])
    (finding,) = diagnose()
    assert (finding.subject, finding.state, finding.cure) == ("backend row", found, row.cure)
    assert row.reason in finding.text


def test_a_missing_gpu_backend_matters_where_there_is_a_gpu(monkeypatch):
    import torch
    from mambalab.ext import backends

    row = SimpleNamespace(name="cuda", device="cuda", state="missing", reason="no NVRTC", cure="pip install it")
    _only(monkeypatch, "backends")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(backends, "status", lambda: [row])
    assert [finding.state for finding in diagnose()] == ["warning"]


def test_more_threads_than_cores_is_a_warning(monkeypatch):
    _only(monkeypatch, "threads")
    monkeypatch.setattr(doctor, "usable_cores", lambda: 0)
    (found,) = diagnose()
    assert (found.state, found.cure) == ("warning", "set OMP_NUM_THREADS=0")


@pytest.mark.parametrize(("offline", "cached", "state"), [(0, 0, "ok"), (1, 0, "warning"), (1, 1, "ok")])
def test_offline_without_the_tokenizer_is_a_warning(monkeypatch, offline, cached, state):
    hub = pytest.importorskip("huggingface_hub")
    _only(monkeypatch, "hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", bool(offline))
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *_: "/cache/tokenizer.json" if cached else None)
    switches, tokenizer = diagnose()
    assert ("HF_HUB_OFFLINE is set" in switches.text) == bool(offline)
    assert tokenizer.state == state


@pytest.mark.parametrize("reachable", [True, False])
def test_the_hub_is_asked_only_when_told_to(monkeypatch, reachable):
    asked = []

    def ask(dataset):
        asked.append(dataset)
        if not reachable:
            raise ConnectionError("Name or service not known")

    monkeypatch.setattr(doctor, "PROBES", {})
    monkeypatch.setattr("mambalab.harness.data.hub_revision", ask)
    assert diagnose() == []
    assert asked == []
    (found,) = diagnose(hub=True)
    assert found.state == ("ok" if reachable else "problem")
    assert len(asked) == 1


def test_a_cache_that_can_not_be_written_is_a_warning_with_its_variable(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    _only(monkeypatch, "caches")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "file" / "cache"))
    found = _of(diagnose(), "numba cache")
    assert found.state == "warning"
    assert "NUMBA_CACHE_DIR" in found.cure
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "not" / "yet" / "there"))
    assert _of(diagnose(), "numba cache").state == "ok"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(("gpu", "state"), [(True, "warning"), (False, "ok")])
def test_a_missing_nvrtc_matters_where_there_is_a_gpu(monkeypatch, gpu, state):
    import torch
    from mambalab.ext import nvrtc

    _only(monkeypatch, "compiler")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(nvrtc, "missing", lambda: "no NVRTC (cure: pip install it)")
    found = _of(diagnose(), "nvrtc")
    assert (found.state, found.text) == (state, "no NVRTC (cure: pip install it)")


def test_the_compiler_is_named_with_its_version_and_place(monkeypatch):
    from mambalab.ext import nvrtc

    _only(monkeypatch, "compiler")
    monkeypatch.setattr(nvrtc, "missing", lambda: None)
    monkeypatch.setattr(nvrtc, "library", lambda: SimpleNamespace(version="13.0", path="/lib/libnvrtc.so.13"))
    found = _of(diagnose(), "nvrtc")
    assert (found.state, found.text) == ("ok", "13.0, /lib/libnvrtc.so.13")


def test_a_kernel_cache_that_can_not_be_written_is_a_warning_with_its_variable(monkeypatch, tmp_path):
    from mambalab.ext import cubin_cache

    (tmp_path / "file").write_text("")
    _only(monkeypatch, "compiler")
    monkeypatch.setenv("MAMBALAB_CACHE", str(tmp_path / "file" / "cache"))
    found = _of(diagnose(), "kernel cache")
    assert found.state == "warning"
    assert "MAMBALAB_CACHE" in found.cure
    monkeypatch.setenv("MAMBALAB_CACHE", str(tmp_path / "cache"))
    assert _of(diagnose(), "kernel cache").state == "ok"
    monkeypatch.setattr(cubin_cache, "folder", lambda: None)
    assert "MAMBALAB_CACHE" in _of(diagnose(), "kernel cache").cure


@pytest.mark.parametrize("place", ["", "zero_shot"])
def test_the_data_directory_is_checked_where_it_or_its_zero_shot_lies(monkeypatch, tmp_path, place):
    fill(tmp_path / place)
    _only(monkeypatch, "data")
    monkeypatch.setenv("MAMBALAB_DATA", str(tmp_path))
    (found,) = diagnose()
    assert found.state == "ok"
    assert "no manifest; lambada_openai 2, hellaswag 2, piqa 2, arc_easy 2, arc_challenge 2, winogrande 2" in found.text


def test_a_data_directory_may_hold_only_some_tasks(monkeypatch, tmp_path):
    fill(tmp_path / "all")
    (tmp_path / "some" / "baber").mkdir(parents=True)
    (tmp_path / "all" / "baber" / "piqa").rename(tmp_path / "some" / "baber" / "piqa")
    write_manifest(tmp_path / "some")
    _only(monkeypatch, "data")
    monkeypatch.setenv("MAMBALAB_DATA", str(tmp_path / "some"))
    (found,) = diagnose()
    assert found.state == "ok"
    assert "matches its manifest; piqa 2, no lambada_openai" in found.text


@pytest.mark.parametrize("damage", ["changed", "cut", "gone"])
def test_broken_data_are_a_problem_in_one_line(monkeypatch, tmp_path, damage):
    fill(tmp_path / "data")
    path = tmp_path / "data" / "baber" / "piqa" / "validation.jsonl"
    if damage == "changed":
        write_manifest(tmp_path / "data")
        flip_a_bit(path)
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-9])
    _only(monkeypatch, "data")
    monkeypatch.setenv("MAMBALAB_DATA", str(tmp_path / ("none" if damage == "gone" else "data")))
    (found,) = diagnose()
    assert found.state == "problem"
    assert "mambalab fetch" in found.cure
    assert "\n" not in found.text
