"""The numba-cuda backend: in numba's simulator, as PTX, and on a GPU under streams and graphs."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from ext_cases import assert_same, bare_scan, scan_case
from mambalab.ext import backends, numba_cuda_probe
from mambalab.ext.numba_cuda_plan import Plan, room_for

HERE = Path(__file__).parent
(ROW,) = (row for row in backends.BACKENDS if row.name == "numba-cuda")


def passed(cases: str, **environment: str) -> int:
    """How many tests of the file `cases` pass in a fresh process; none may do anything else."""
    command = [sys.executable, "-m", "pytest", "-vv", "-p", "no:cacheprovider", str(HERE / cases)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **environment}, cwd=HERE.parent
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert "SKIPPED" not in done.stdout
    return done.stdout.count(" PASSED")


def test_it_agrees_with_the_definition_in_the_simulator():
    assert passed("numba_cuda_simulated.py", NUMBA_ENABLE_CUDASIM="1", OMP_NUM_THREADS="1") > 150


@pytest.mark.skipif(
    find_spec("numba_cuda") is None, reason="numba-cuda is not installed, so there is no PTX to look at"
)
def test_every_kernel_compiles_without_a_gpu():
    assert passed("numba_cuda_ptx.py") >= 14


def test_a_machine_without_a_gpu_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert numba_cuda_probe.missing.__wrapped__() == "torch finds no NVIDIA GPU"


def test_a_machine_without_numba_cuda_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(numba_cuda_probe, "find_spec", lambda name: None)
    assert numba_cuda_probe.missing.__wrapped__() == "numba-cuda is not installed"


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        (
            ImportError("no module named cuda\n\nlong story"),
            "a trivial kernel fails: ImportError: no module named cuda",
        ),
        (RuntimeError("\n  [222] PTX is newer\n"), "a trivial kernel fails: RuntimeError: [222] PTX is newer"),
        (OSError(), "a trivial kernel fails: OSError: no message"),
    ],
)
def test_a_kernel_that_fails_is_one_line(monkeypatch, problem, said):
    def fail(*_):
        raise problem

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(numba_cuda_probe, "find_spec", lambda name: name)
    monkeypatch.setattr(torch.cuda, "current_device", fail)
    assert numba_cuda_probe.missing.__wrapped__() == said


@pytest.mark.parametrize("n", [1, 3, 4, 16, 17, 64, 100, 128, 255, 256, 300, 600])
@pytest.mark.parametrize("d", [1, 5, 1536])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("is_complex", [False, True], ids=["real", "complex"])
def test_a_plan_fits_a_block(n, d, dtype, is_complex):
    plan = Plan(
        dtype=dtype, is_complex=is_complex, n=n, room=room_for(d), selective_B=True, selective_C=True, zoh=False
    )
    assert plan.padded >= n
    assert plan.blocks_across(d) * plan.channels >= d
    assert plan.threads <= 1024
    assert plan.backward_tile <= plan.forward_tile
    assert plan.span % plan.backward_tile == 0
    assert plan.span % plan.keep_tile == 0
    assert plan.backward_bytes <= 48 * 1024
    assert plan.forward_bytes <= 48 * 1024


def test_more_states_than_fit_are_refused():
    with pytest.raises(ValueError, match=r"can't take n = 9999 states in torch\.float32"):
        Plan(dtype=torch.float32, is_complex=False, n=9999, room=1, selective_B=True, selective_C=True, zoh=False)


@pytest.mark.gpu
@pytest.mark.skipif(ROW.missing() is not None, reason=f"numba-cuda: {ROW.missing()}")
def test_it_runs_on_the_current_stream_and_in_a_graph():
    backends.prepare("cuda", ROW.name)
    tensors = {name: tensor.cuda() for name, tensor in scan_case(length=40, d=40).tensors.items()}
    expected = dict(zip("yh", bare_scan(ROW.name)(**tensors), strict=True))
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.cuda.stream(stream), torch.cuda.graph(graph, stream=stream):
        captured = dict(zip("yh", bare_scan(ROW.name)(**tensors), strict=True))
    for tensor in captured.values():
        tensor.fill_(torch.nan)
    graph.replay()
    torch.cuda.synchronize()
    assert_same(captured, expected, torch.float32)
