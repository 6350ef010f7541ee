"""How work on the CPU is shared out: the same bits on any number of threads, from any thread, and after a fork."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from cpu_cases import SHAPES, run_python, scan
from ext_cases import scan_case, threads

pytest.importorskip("numba", reason="the CPU kernels are compiled by Numba")
from mambalab.ext import cpu_threads

# More than one share of work.
LARGE: dict[str, Any] = {"b": 1, "length": 1000, "d": 130, "n": 16}


@pytest.mark.parametrize("shape", [*SHAPES.values(), LARGE], ids=[*SHAPES.keys(), "large"])
def test_the_number_of_threads_and_the_run_change_no_bit(shape):
    case, results = scan_case(**shape), []
    for count in (1, 2, 2):
        with threads(count):
            results.append(case.run(scan))
    for other in results[1:]:
        assert all(torch.equal(tensor, other[name]) for name, tensor in results[0].items())


def test_work_is_shared_out_once_and_on_several_threads():
    seen, meet = [], threading.Barrier(2, timeout=60)

    def work(first, last):
        seen.append((first, last, threading.get_ident()))
        meet.wait()

    with threads(2):
        cpu_threads.share_out(work, 5, 2)
    assert sorted(share[:2] for share in seen) == [(0, 2), (2, 5)]
    assert len({share[2] for share in seen}) == 2


def test_what_a_share_raises_comes_back():
    def work(first, last):
        if first == 3:
            raise MemoryError(f"{first} {last}")

    with threads(2), pytest.raises(MemoryError, match="3 4"):
        cpu_threads.share_out(work, 4, 4)


def test_threads_of_python_stand_in_where_openmp_is_missing(monkeypatch):
    case = scan_case(**LARGE)
    expected = scan(**case.tensors, **case.options)
    monkeypatch.setattr(cpu_threads, "_openmp", lambda: None)
    with threads(2):
        assert all(map(torch.equal, scan(**case.tensors, **case.options), expected))


def test_several_threads_may_scan_at_once():
    case = scan_case(**LARGE)
    expected = scan(**case.tensors, **case.options)
    with ThreadPoolExecutor(3) as pool:
        for results in pool.map(lambda _: scan(**case.tensors, **case.options), range(6)):
            assert all(map(torch.equal, results, expected))


def test_a_forked_child_gets_one_line_and_the_cure():
    done = run_python("""
        import os, torch
        from mambalab.ext import cpu
        torch.set_num_threads(2)
        x = torch.ones(1, 2048, 64)
        given = x, x, -torch.ones(64, 16), torch.ones(64, 16), torch.ones(64, 16), *[None] * 5, False, "euler"
        y, _ = cpu.scan_forward(*given)
        child = os.fork()
        if child == 0:
            try:
                cpu.scan_forward(*given)
            except RuntimeError as error:
                print(error, flush=True)
            torch.set_num_threads(1)
            os._exit(7 if torch.equal(cpu.scan_forward(*given)[0], y) else 1)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        """)
    message, status = done.stdout.splitlines()
    assert "forked" in message
    assert "'spawn'" in message
    assert status == "7"
