"""Launching on real GPUs: streams, threads, graph capture, and a GPU that is not the current one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mambalab.ext import cuda_launch, nvrtc
from mambalab.ext.cuda_launch import Kernel


def _gpus() -> int:
    return torch.cuda.device_count() if cuda_launch.missing() is None else 0


needs_gpu = pytest.mark.skipif(_gpus() < 1, reason=str(cuda_launch.missing()))
needs_two_gpus = pytest.mark.skipif(_gpus() < 2, reason=f"needs two GPUs, here are {_gpus()}")

SOURCE = """
struct Arguments { float* x; long long length; double slope; };
extern "C" __global__ void scale(const Arguments a) {
  extern __shared__ float tile[];
  long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  tile[threadIdx.x + OFFSET] = i < a.length ? a.x[i] : 0;
  __syncthreads();
  if (i < a.length) a.x[i] = a.slope * tile[threadIdx.x + OFFSET] + 1;
}
"""


def _scale(device: torch.device, folder: Path, offset: int = 0) -> Callable[[torch.Tensor], None]:
    """A function that makes every number of a tensor 2 x + 1, by a kernel loaded now."""
    (folder / "scale.cu").write_text(SOURCE)
    image = nvrtc.cubin("scale.cu", (("OFFSET", offset),), cuda_launch.architecture(device), csrc=folder)
    kernel = Kernel(device, image, "scale")

    def run(x: torch.Tensor) -> None:
        words = (x.data_ptr(), x.numel(), cuda_launch.double_word(2.0))
        kernel.launch(-(-x.numel() // 128), 128, 4 * (128 + offset), words)

    return run


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("offset", [0, 24 * 1024], ids=["plain", "97 KiB shared"])
def test_a_real_launch_computes(tmp_path, offset):
    x = torch.arange(1000.0, device="cuda")
    _scale(x.device, tmp_path, offset)(x)
    assert torch.equal(x.cpu(), 2 * torch.arange(1000.0) + 1)


@pytest.mark.gpu
@needs_gpu
def test_a_launch_follows_the_current_stream(tmp_path):
    x = torch.zeros(1 << 20, device="cuda")
    run = _scale(x.device, tmp_path)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        x.fill_(3)
        run(x)
    stream.synchronize()
    assert torch.equal(x, torch.full_like(x, 7))


@pytest.mark.gpu
@needs_gpu
def test_a_thread_that_never_touched_the_gpu_can_launch(tmp_path):
    from threading import Thread

    x = torch.ones(100, device="cuda")
    run = _scale(x.device, tmp_path)
    thread = Thread(target=run, args=(x,))
    thread.start()
    thread.join()
    assert torch.equal(x.cpu(), torch.full((100,), 3.0))


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("loaded", ["before", "inside"])
def test_a_captured_launch_replays_as_it_ran(tmp_path, loaded):
    x = torch.ones(1000, device="cuda")
    run = _scale(x.device, tmp_path) if loaded == "before" else None
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run = run or _scale(x.device, tmp_path, offset=1)
        run(x)
    assert torch.equal(x.cpu(), torch.ones(1000))
    graph.replay()
    graph.replay()
    eager = torch.ones(1000, device="cuda")
    run(eager)
    run(eager)
    assert torch.equal(x, eager)


@pytest.mark.gpu
@needs_gpu
def test_a_refused_launch_is_one_line(tmp_path):
    x = torch.ones(8, device="cuda")
    (tmp_path / "scale.cu").write_text(SOURCE)
    image = nvrtc.cubin("scale.cu", (("OFFSET", 0),), cuda_launch.architecture(x.device), csrc=tmp_path)
    kernel = Kernel(x.device, image, "scale")
    with pytest.raises(RuntimeError, match=r"^can't launch kernel scale on cuda:0: .*INVALID"):
        kernel.launch(1, 2048, 0, (x.data_ptr(), 8, 0))
    with pytest.raises(RuntimeError, match=r"^kernel scale asks for \d+ bytes of shared memory a block on cuda:0"):
        kernel.launch(1, 32, 1 << 20, (x.data_ptr(), 8, 0))


@pytest.mark.gpu
@needs_gpu
def test_an_image_that_is_none_is_one_line(monkeypatch):
    monkeypatch.setattr(nvrtc, "cubin", lambda *given: b"\x7fELF" + bytes(1000))
    with pytest.raises(RuntimeError, match=r"^the driver, which knows CUDA .*, can't load kernel toy as NVRTC "):
        cuda_launch.kernel(torch.device("cuda", 0), "toy.cu", "toy", (("IMAGE", 0),))


@pytest.mark.gpu
@needs_two_gpus
def test_a_kernel_of_another_gpu_runs_there_and_the_current_device_stays(tmp_path):
    x = torch.ones(1000, device="cuda:1")
    run = _scale(x.device, tmp_path)
    assert torch.cuda.current_device() == 0
    run(x)
    assert torch.cuda.current_device() == 0
    assert torch.ones(1, device="cuda").device.index == 0
    assert torch.equal(x.cpu(), torch.full((1000,), 3.0))
