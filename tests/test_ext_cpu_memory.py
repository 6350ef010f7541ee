"""Large results come from blocks that are used again, and only when nobody has them any more."""

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from mambalab.ext import cpu_memory
from mambalab.ext.cpu_memory import LARGE, fresh

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere results are plain tensors")
COUNT = LARGE // 4


@pytest.fixture(autouse=True)
def blocks(monkeypatch):
    """An empty store."""
    kept = []
    monkeypatch.setattr(cpu_memory, "_blocks", kept)
    return kept


def test_memory_is_used_again_once_the_last_view_is_gone():
    tensor = fresh(COUNT // 8, 8, dtype=torch.float32)
    place, view = tensor.data_ptr(), tensor[:, 3].t()
    del tensor
    other = fresh(COUNT, dtype=torch.float32)
    assert other.data_ptr() != place
    del view
    assert fresh(COUNT, dtype=torch.float32).data_ptr() == place


def test_memory_that_a_graph_or_another_thread_has_is_left_alone():
    leaf = torch.ones(COUNT, requires_grad=True)
    held = fresh(COUNT, dtype=torch.float32).fill_(2)
    product = leaf * held
    place = held.data_ptr()
    del held
    assert fresh(COUNT, dtype=torch.float32).data_ptr() != place
    product.sum().backward()
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda i: fresh(COUNT, dtype=torch.float32).fill_(i), range(32)))
    assert [float(tensor.mean()) for tensor in made] == list(range(32))


def test_idle_blocks_are_bounded(monkeypatch, blocks):
    monkeypatch.setattr(cpu_memory, "KEPT", 3 * LARGE)
    made = [fresh(COUNT, dtype=torch.float32) for _ in range(6)]
    assert len(blocks) == 6
    made.clear()
    again = fresh(COUNT, dtype=torch.float32)
    assert sum(map(len, blocks)) <= 4 * LARGE
    del again
    fresh(2 * COUNT, dtype=torch.float32)
    assert sum(map(len, blocks)) <= 3 * LARGE
    fresh(4 * COUNT, dtype=torch.float32)
    assert all(len(block) <= 3 * LARGE for block in blocks)


def test_small_results_are_plain_tensors_and_shapes_are_kept(blocks):
    small = fresh(3, 5, dtype=torch.float64)
    assert small.shape == (3, 5)
    assert not blocks
    large = fresh(2, COUNT // 2, 1, dtype=torch.complex64)
    assert (large.shape, large.dtype, large.is_contiguous()) == ((2, COUNT // 2, 1), torch.complex64, True)


def test_a_hint_that_the_kernel_refuses_is_only_a_hint(monkeypatch):
    class Refusing(cpu_memory.mmap.mmap):
        def madvise(self, *advice):
            raise OSError(22, "Invalid argument")

    monkeypatch.setattr(cpu_memory.mmap, "mmap", Refusing)
    assert float(fresh(COUNT, dtype=torch.float32).fill_(3)[-1]) == 3


def test_too_large_a_result_is_torchs_error():
    with pytest.raises(RuntimeError, match="memory"):
        fresh(2**45, dtype=torch.float32)
