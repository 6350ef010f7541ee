"""What every test shares: shapes checked from the signatures, two threads, and where the real data is."""

import os
import re
import shutil
from importlib.util import find_spec
from pathlib import Path

import jaxtyping
import pytest
import torch

EXT = Path(__file__).parents[1] / "ext"
# Numba compiles the source of functions on lanes, so the hook must not wrap them.
compiled = re.compile(r"^ *(from|import) (numba|llvmlite|\.lanes|\.lane_math|\.numba_cuda_arrays)\b", re.MULTILINE)
checked = [f"mambalab.ext.{file.stem}" for file in EXT.glob("*.py") if not compiled.search(file.read_text("utf-8"))]
hooked = find_spec("beartype") is not None
if hooked:
    jaxtyping.install_import_hook([*checked, "mambalab.models", "mambalab.tasks"], "beartype.beartype")
torch.set_num_threads(2)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--part", default="1/1", help="I/N: run the I-th of N parts, of tests that follow each other")


# After -m and -k have chosen, for the parts are to be of one size.
@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    part, parts = map(int, str(config.getoption("--part")).split("/"))
    first, last = ((part - 1) * len(items) // parts, part * len(items) // parts)
    config.hook.pytest_deselected(items=[*items[:first], *items[last:]])
    items[:] = items[first:last]
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU, and torch finds none"))


def pytest_report_header() -> list[str]:
    return [] if hooked else ["beartype is not installed: shapes are not checked from the signatures"]


@pytest.fixture
def unchecked(monkeypatch):
    """Turn the shape checks of the signatures off: our own errors are under test, or torch.compile traces the call."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture(autouse=True)
def emulated(request, monkeypatch):
    """Put the emulated row into the table, for the tests that run on it alone."""
    callspec = getattr(request.node, "callspec", None)
    row = callspec.params.get("backend") if callspec else None
    if getattr(row, "name", None) == "cuda-emulated":
        from mambalab.ext import backends

        monkeypatch.setattr(backends, "BACKENDS", (*backends.BACKENDS, row))


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of the real sets and the tokenizer, from MAMBALAB_DATA."""
    folder = os.environ.get("MAMBALAB_DATA")
    if not folder:
        pytest.skip("MAMBALAB_DATA does not say where the real data is")
    if not Path(folder).is_dir():
        pytest.skip(f"MAMBALAB_DATA names {folder}, which is no folder")
    return Path(folder)


@pytest.fixture(scope="session")
def places(tmp_path_factory) -> dict[str, Path]:
    """Small checkpoints by name ("mamba", "hf", "neox") and the miniature data ("data"): not to be changed."""
    from command import MINIATURE, write_checkpoints

    return write_checkpoints(tmp_path_factory.mktemp("checkpoints")) | {"data": MINIATURE}


@pytest.fixture
def evaluated(places, tmp_path, unchecked):
    """A function that evaluates a document of a task, checks that it is refused with nothing written, and gives why."""
    from command import files, mambalab, refused

    def evaluate(model: Path, data: Path = places["data"], task: str = "piqa", *options: object) -> str:
        before = files(tmp_path)
        arguments = ("--data", data, "--tasks", task, "--limit", 1, "--out", tmp_path / "out", *options)
        line = refused(mambalab("eval", model, *arguments))
        assert files(tmp_path) == before
        return line

    return evaluate


@pytest.fixture(scope="module")
def quick():
    """Thousands of tiny steps, in which checking shapes and waiting for a second thread would take most of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jaxtyping.config, "jaxtyping_disable", True)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def whole(quick, tmp_path_factory) -> Path:
    """A training run that nothing interrupted."""
    from train_kills import TINY, run

    folder = tmp_path_factory.mktemp("runs") / "whole"
    result = run(folder)
    assert (result.step, result.done) == (TINY.steps, True)
    return folder


@pytest.fixture(scope="module")
def stopped(quick, tmp_path_factory) -> Path:
    """A training run that stopped at each of its first 20 lines, the last of which is that of step 80."""
    from mambalab.tasks import run_files
    from train_kills import run

    folder = tmp_path_factory.mktemp("runs") / "stopped"
    for _ in range(20):
        assert not run(folder, seconds=0.0).done
    assert run_files.checkpoints(folder)[0] == run_files.checkpoint_path(folder, 80)
    return folder


@pytest.fixture
def halfway(stopped, tmp_path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(stopped, tmp_path / "run"))
