"""The wheel holds every file that the package reads, and works from where it is unpacked."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from mambalab.harness import demo

ROOT = Path(__file__).parents[1]
ROOMS = ("ext", "models", "tasks", "harness", "reports")
TRAINED = demo.TRAINED.relative_to(demo.TRAINED.parents[3])
SHIPPED = {"config.json", "model.safetensors", "records.jsonl", "settings.json"}
READ_AT_WORK = (".py", ".csv", ".jsonl", ".cu", ".cuh")


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Path:
    """The wheel of a copy of the source tree (a build writes into its tree), unpacked."""
    if not (ROOT / "pyproject.toml").is_file():
        pytest.skip("the tests run without their source tree")
    if int(importlib.metadata.version("setuptools").split(".")[0]) < 77:
        pytest.skip("setuptools here is older than the build needs (77)")
    folder = tmp_path_factory.mktemp("wheel")
    tree = folder / "tree"
    for room in ROOMS:
        shutil.copytree(ROOT / room, tree / room, ignore=shutil.ignore_patterns("__pycache__"))
    # One that is never shipped beside those that are.
    trained = tree / TRAINED
    trained.mkdir(parents=True, exist_ok=True)
    for name in (*SHIPPED, "log.jsonl"):
        (trained / name).touch()
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tree)
    build = ["pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(tree)]
    done = subprocess.run([sys.executable, "-m", *build], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,) = folder.glob("mambalab-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "unpacked")
    return folder / "unpacked"


@pytest.mark.parametrize("room", ROOMS)
def test_every_file_that_a_room_reads_is_in_the_wheel(unpacked, room):
    wanted = {
        str(path.relative_to(ROOT / room))
        for path in (ROOT / room).rglob("*")
        if path.suffix in READ_AT_WORK or path.name in ("py.typed", "tokenizer.json", "manifest.json")
        if "results" not in path.relative_to(ROOT).parts
    }
    held = {str(path.relative_to(unpacked / "mambalab" / room)) for path in (unpacked / "mambalab" / room).rglob("*")}
    assert "py.typed" in wanted
    assert not wanted - held


def test_the_wheel_brings_the_kernels_as_source(unpacked):
    kernels = {path.name for path in (unpacked / "mambalab" / "ext" / "csrc").iterdir()}
    assert {"common.cuh", "scan_forward.cu"} <= kernels


def test_of_all_results_the_wheel_brings_the_demos_checkpoint_alone(unpacked):
    results = unpacked / "mambalab" / "reports" / "results"
    assert {path for path in results.rglob("*") if path.is_file()} == {
        unpacked / "mambalab" / TRAINED / name for name in SHIPPED
    }


def test_the_wheel_adds_one_name_and_no_tests(unpacked):
    assert {path.name for path in unpacked.iterdir() if path.suffix != ".dist-info"} == {"mambalab"}
    assert {path.name for path in (unpacked / "mambalab").iterdir()} == set(ROOMS)


@pytest.mark.parametrize(("arguments", "says"), [(["models"], "state-spaces/mamba-130m"), (["--version"], "mambalab ")])
def test_the_unpacked_package_is_a_command(unpacked, tmp_path, arguments, says):
    done = subprocess.run(
        [sys.executable, "-m", "mambalab.harness", *arguments],
        env=os.environ | {"PYTHONPATH": str(unpacked)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert says in done.stdout
