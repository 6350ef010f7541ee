"""What can be wrong where there is a GPU: each ends in a working backend or one clear line, never a wrong number."""

import os
import subprocess
import sys
from dataclasses import dataclass
from time import sleep

import pytest
import torch
from mambalab.ext import backends, cubin_cache

CUDA = next(row.missing() for row in backends.BACKENDS if row.name == "cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(CUDA is not None, reason=f"cuda: {CUDA}"),
]

# A scan on the GPU, forward and backward: which backend ran it, and a digest of every bit that came out.
SCAN = """
import hashlib, sys
import torch
from mambalab.ext import backends, cuda_launch, nvrtc, selective_scan
{before}
draw = torch.Generator().manual_seed(0)
u, delta, B, C = (torch.randn(2, 67, size, generator=draw).cuda().requires_grad_() for size in (32, 32, 16, 16))
A = -torch.rand(32, 16, generator=draw).cuda()
try:
    y = selective_scan(u, delta, A, B, C, delta_softplus=True, backend={backend!r})
    grads = torch.autograd.grad(y.sum(), (u, delta, B, C))
except (ValueError, RuntimeError) as error:
    print("refused", str(error).replace(chr(10), "<newline>"))
    sys.exit()
digest = hashlib.sha256(b"".join(t.detach().cpu().numpy().tobytes() for t in (y, *grads))).hexdigest()
print({backend!r} or backends.chosen("cuda"), digest)
"""
NO_NVRTC = "nvrtc._candidates = lambda: iter(())"
OLD_DRIVER = """
whole = cuda_launch.Driver.call
def call(self, name, *arguments):
    if name == "cuModuleLoadData":
        raise cuda_launch.DriverError(f"{name}: {self.text(222)}", 222)
    whole(self, name, *arguments)
cuda_launch.Driver.call = call
"""


@dataclass(frozen=True)
class Outcome:
    """The name of the backend that ran, or "refused"; its digest, or the line of the refusal; what was logged."""

    name: str
    rest: str
    logged: str


def start(cache, before="", backend=None, **variables):
    """A process that scans, with its compiled kernels in `cache`."""
    code = SCAN.format(before=before, backend=backend)
    environment = os.environ | {"MAMBALAB_CACHE": str(cache)} | variables
    return subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def outcome(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    name, _, rest = out.splitlines()[-1].partition(" ")
    return Outcome(name, rest, err)


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    """What comes out where nothing is wrong, and the cache that it leaves."""
    cache = tmp_path_factory.mktemp("healthy")
    found = outcome(start(cache))
    assert found.name == "cuda"
    return found, cache


def assert_falls_back_or_says(found, words):
    """The next backend took over where it can, else the refusal holds these words."""
    if found.name != "numba-cuda":
        assert found.name == "refused"
        assert words in found.rest
        assert "<newline>" not in found.rest


def assert_refused(found, *words):
    assert found.name == "refused"
    assert all(word in found.rest for word in words), found.rest
    assert "<newline>" not in found.rest


def test_without_nvrtc_it_is_the_next_backend_or_one_line(tmp_path):
    assert_falls_back_or_says(outcome(start(tmp_path, NO_NVRTC)), "no NVRTC (libnvrtc.so)")
    named = outcome(start(tmp_path, NO_NVRTC, "cuda"))
    assert_refused(named, "backend 'cuda' can't run", "no NVRTC (libnvrtc.so)", "(cure: pip install nvidia-cuda-nvrtc)")
    assert named.rest.count("cure:") == 1


def test_without_nvrtc_kernels_compiled_before_run(healthy):
    expected, cache = healthy
    found = outcome(start(cache, NO_NVRTC))
    assert (found.name, found.rest) == (expected.name, expected.rest)


def test_a_driver_that_refuses_the_kernels_is_the_next_backend_or_one_line(healthy):
    _, cache = healthy
    assert_falls_back_or_says(outcome(start(cache, OLD_DRIVER)), "the driver, which knows CUDA")
    named = outcome(start(cache, OLD_DRIVER, "cuda"))
    assert_refused(named, "the driver, which knows CUDA", "can't load kernel", "(cure: update the driver")
    assert named.rest.count("cure:") == 1


def test_a_hidden_gpu_is_one_line(tmp_path):
    code = 'from mambalab.ext import prepare\ntry:\n    prepare("cuda")\nexcept ValueError as error:\n    print(error)'
    hidden = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    said = subprocess.run([sys.executable, "-c", code], env=hidden, capture_output=True, text=True, check=True).stdout
    (line,) = said.splitlines()
    assert line.startswith("no backend can run on cuda:0: cuda: no ")


def test_a_cache_that_can_not_be_written_is_a_warning_and_the_same_result(healthy):
    expected, _ = healthy
    found = outcome(start("/dev/null/kernels"))
    assert (found.name, found.rest) == (expected.name, expected.rest)
    (line,) = found.logged.splitlines()
    assert "can't be kept in /dev/null/kernels" in line


DAMAGES = {
    "cut": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "a bit": lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:],
    "foreign": lambda data: os.urandom(len(data)),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_damaged_kernels_in_the_cache_are_compiled_again(healthy, damage):
    expected, cache = healthy
    entries = {path: path.read_bytes() for path in cache.rglob("*") if path.is_file()}
    assert entries
    for path, data in entries.items():
        path.write_bytes(damage(data))
    found = outcome(start(cache))
    assert (found.name, found.rest) == (expected.name, expected.rest)
    # The compiler's bytes may differ from run to run, so only that they are whole can be asked.
    assert all(cubin_cache.read(path) is not None for path in entries)


def test_processes_that_compile_at_once_all_get_the_same(healthy, tmp_path):
    expected, cache = healthy
    processes = [start(tmp_path) for _ in range(3)]
    for process in processes:
        found = outcome(process)
        assert (found.name, found.rest, found.logged) == (expected.name, expected.rest, "")
    names = [{path.relative_to(place) for path in place.rglob("*")} for place in (cache, tmp_path)]
    assert names[0] == names[1]


def test_a_process_killed_while_it_compiles_harms_nobody(healthy, tmp_path):
    expected, _ = healthy
    process = start(tmp_path)
    while process.poll() is None and not any(path.is_file() for path in tmp_path.rglob("*")):
        sleep(0.01)
    process.kill()
    process.communicate()
    found = outcome(start(tmp_path))
    assert (found.name, found.rest) == (expected.name, expected.rest)


def test_a_gpu_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(
        ValueError, match=r"^no backend can run on cuda:(\d+): cuda: .*invalid device ordinal"
    ) as refusal:
        backends.pick(f"cuda:{torch.cuda.device_count()}")
    assert len(str(refusal.value).splitlines()) == 1
