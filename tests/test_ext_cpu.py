"""What is special to the CPU kernels: arithmetic, bits, memory, threads and compilation."""

import inspect
import os
import platform
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ext_cases import assert_same, expected_scan, in_double, scan_case, scan_with, threads

pytest.importorskip("numba", reason="the CPU kernels are compiled by Numba")
from mambalab.ext import cpu, cpu_compile, cpu_kernels, cpu_pieces, cpu_threads, lane_math, lanes
from numba import njit

scan = scan_with("cpu")


@pytest.fixture(scope="module")
def lanewise():
    """A function that applies one of the lanes' functions, by its place in the list, to a vector of numbers."""

    @njit(error_model="numpy")
    def apply(which, numbers, results):
        for i in range(0, numbers.size, lanes.width(numbers)):
            x = lanes.load(numbers, i)
            if which == 0:
                y = lane_math.exp(x)
            elif which == 1:
                y = lane_math.softplus(x)
            elif which == 2:
                y = lane_math.sigmoid(x)
            elif which == 3:
                y = lane_math.phi(x)
            elif which == 4:
                y = lane_math.phi_slope(x)
            else:
                y = lane_math.decay(lanes.fill(numbers, 3.0), x)
            lanes.store(results, i, y)

    def call(which, numbers):
        padded = np.resize(numbers, -(-numbers.size // lanes.WIDTH) * lanes.WIDTH)
        results = np.empty_like(padded)
        apply(which, padded, results)
        return results[: numbers.size]

    call.compiled = apply
    return call


def phi(x):
    return np.where(x == 0, 1, np.expm1(x) / np.where(x == 0, 1, x))


def phi_slope(x):
    # Where the quotient would lose digits, the integral of t e^(xt) over [0, 1], by Gauss's rule.
    nodes, weights = np.polynomial.legendre.leggauss(12)
    t = (nodes + 1) / 2
    integral = (weights / 2 * t * np.exp(np.multiply.outer(np.clip(x, -2, 2), t))).sum(-1)
    return np.where(abs(x) < 2, integral, (np.exp(x) - phi(x)) / np.where(x == 0, 1, x))


FUNCTIONS = {
    "exp": (np.exp, 3),
    "softplus": (lambda x: np.logaddexp(0, x), 3),
    "sigmoid": (lambda x: 1 / (1 + np.exp(-x)), 3),
    "phi": (phi, 4),
    "phi_slope": (phi_slope, 8),
}


@pytest.mark.parametrize("which", range(len(FUNCTIONS)), ids=FUNCTIONS.keys())
@pytest.mark.parametrize("reach", [85, 3, 1e-3], ids=lambda reach: f"|x|<{reach}")
def test_lanes_are_right_to_a_few_units_in_the_last_place(lanewise, which, reach):
    exact, ulps = list(FUNCTIONS.values())[which]
    numbers = np.linspace(-reach, reach, 20001, dtype=np.float32)
    expected = exact(numbers.astype(np.float64))
    error = abs(lanewise(which, numbers) - expected) / expected
    assert error.max() <= ulps * np.finfo(np.float32).eps


@pytest.mark.parametrize("reach", [28, 1, 1e-3], ids=lambda reach: f"|a|<{reach}")
def test_a_decay_is_as_exact_as_a_rounded_rate_lets_it_be(lanewise, reach):
    a = np.linspace(-reach, reach, 20001, dtype=np.float32)
    rate = 3 * a.astype(np.float64)
    error = abs(lanewise(len(FUNCTIONS), a) - np.exp(rate)) / np.exp(rate)
    assert (error <= (2 + abs(rate)) * np.finfo(np.float32).eps).all()
    np.testing.assert_array_equal(lanewise(len(FUNCTIONS), np.array([-30, -1e5, np.nan], np.float32)), [0, 0, np.nan])


def test_lanes_keep_infinity_zero_and_nan(lanewise):
    numbers = np.array([0, -0.0, -1e-30, 88.5, 1e30, np.inf, -104, -1e30, -np.inf, np.nan], np.float32)
    powers, softplus = lanewise(0, numbers), lanewise(1, numbers)
    np.testing.assert_array_equal(powers, np.array([1, 1, 1, np.inf, np.inf, np.inf, 0, 0, 0, np.nan], np.float32))
    np.testing.assert_array_equal(softplus[[3, 4, 5, 6, 7, 8, 9]], [88.5, numbers[4], np.inf, 0, 0, 0, np.nan])


def test_softplus_and_its_slope_are_torchs_about_the_threshold():
    x = torch.tensor([19.9, 20.0, 20.1, 40.0], dtype=torch.float64).view(1, 4, 1)
    one = torch.ones(1, 1, dtype=torch.float64)
    raw = x.clone().requires_grad_()
    y = scan(one.expand(1, 4, 1), raw, 0 * one, one, one, delta_softplus=True)[0]
    y.sum().backward()
    leaf = x.clone().requires_grad_()
    torch.nn.functional.softplus(leaf).cumsum(1).sum().backward()
    torch.testing.assert_close(y, torch.nn.functional.softplus(x).cumsum(1), rtol=1e-15, atol=0)
    torch.testing.assert_close(raw.grad, leaf.grad, rtol=1e-15, atol=0)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="it reads x86 instructions")
def test_the_exponential_is_vector_code(lanewise):
    lanewise(0, np.zeros(1, np.float32))
    assembly = "\n".join(lanewise.compiled.inspect_asm().values())
    assert "mulps" in assembly or "fmadd" in assembly
    assert "expf" not in assembly


SHAPES: dict[str, dict[str, Any]] = {
    "one tile": {"b": 1, "length": 70, "d": 19, "n": 16},
    "many tiles": {"b": 3, "length": 130, "d": 130, "n": 8},
    "packed": {"b": 1, "length": 150, "d": 130, "n": 16, "bounds": (0, 1, 1, 40, 104, 150)},
    "static": {"b": 5, "length": 90, "d": 70, "n": 16, "selective": "Δ"},
    "zoh": {"b": 2, "length": 90, "d": 70, "n": 16, "discretisation": "zoh"},
    "float64": {"b": 2, "length": 90, "d": 70, "n": 16, "dtype": torch.float64},
    "complex": {"b": 2, "length": 90, "d": 70, "n": 4, "complex_names": ("A", "B", "C")},
}


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


@pytest.mark.parametrize("complex_names", [(), ("A",)], ids=["real", "complex"])
@pytest.mark.parametrize("without", [(), ("initial_state", "delta_bias", "z")], ids=["all", "few"])
def test_pieces_of_a_long_narrow_sequence_give_what_the_whole_gives(monkeypatch, complex_names, without):
    case = scan_case(1, 1000, 3, 4, complex_names=complex_names, without=without)
    case.tensors["A"] = case.tensors["A"] / 100
    whole = case.run(scan)
    monkeypatch.setattr(cpu_pieces, "SHORTEST", 60)
    pieces = case.run(scan)
    assert not torch.equal(pieces["y"], whole["y"])
    assert_same(pieces, expected_scan(case), torch.float32)
    with threads(1):
        alone = case.run(scan)
    assert all(torch.equal(pieces[name], alone[name]) for name in pieces)


def test_only_one_long_narrow_sequence_is_cut_into_pieces():
    def cut(u, cu_seqlens=None):
        return cpu_pieces.cut(u, u, -torch.ones(u.shape[2], 2), None, cu_seqlens, True)

    narrow = torch.zeros(1, 16 * 1024, 16)
    pieces = cut(narrow)
    assert pieces is not None
    assert pieces.ends.tolist() == list(range(0, 16 * 1024 + 1, 1024))
    assert all(cut(u) is None for u in (narrow[:, 1:], narrow.expand(2, -1, -1), torch.zeros(1, 16 * 1024, 17)))
    assert cut(narrow, torch.tensor([0, 16 * 1024])) is None


def test_a_growing_state_that_is_zero_stays_zero_at_any_length():
    length, one = 16 * 1024, torch.ones(1, 1)
    steps, u = torch.ones(1, length, 1), torch.zeros(1, length, 1)
    u[:, -10:] = 1
    y = scan(u, steps, one / 10, one, one)[0]
    torch.testing.assert_close(y[0, -1, 0], torch.exp(torch.arange(10) / 10).sum())


def test_a_gradient_keeps_no_other_memory():
    case = scan_case(b=1, length=300, d=2048, n=4)
    B = case.tensors["B"].requires_grad_()
    scan(**case.tensors, **case.options)[0].sum().backward()
    assert B.grad.untyped_storage().nbytes() == B.grad.nbytes


def test_chunks_give_the_bits_of_the_whole():
    case = scan_case(b=2, length=100, d=37, n=16)
    y, final = scan(**case.tensors, **case.options)
    tensors, rows, state = dict(case.tensors), [], case.tensors["initial_state"]
    for begin, end in ((0, 1), (1, 33), (33, 64), (64, 100)):
        part = {k: t[:, begin:end] if k in ("u", "delta", "B", "C", "z") else t for k, t in tensors.items()}
        out, state = scan(**part | {"initial_state": state}, **case.options)
        rows.append(out)
    assert torch.equal(torch.cat(rows, 1), y)
    assert torch.equal(state, final)


def test_nan_stays_in_its_channel_and_after_its_step():
    case = scan_case(b=1, length=80, d=40, n=4, without=("initial_state",))
    case.tensors["u"][0, 50, 21] = torch.nan
    y, final = scan(**case.tensors, **case.options)
    rows, channels = y[0].isnan().nonzero(as_tuple=True)
    assert set(rows.tolist()) == set(range(50, 80))
    assert set(channels.tolist()) == {21}
    assert final[0].isnan().all(1).nonzero().tolist() == [[21]]


@pytest.mark.parametrize("n", [1, 3, 4, 7, 16])
@pytest.mark.parametrize("step", [1e-6, 30.0, 1e4, 1e30, torch.inf])
def test_rates_of_any_size_give_what_the_definition_gives(step, n):
    case = scan_case(2, 70, 37, n, delta_softplus=False, without=("delta_bias",))
    case.tensors["delta"] = case.tensors["delta"].abs() / 10
    # One step in one row, so that chunks and groups of lanes of both kinds meet.
    case.tensors["delta"][0, 40, 20] = step
    y, wanted = scan(**case.tensors)[0], in_double(expected_scan(case)["y"])
    if step > 1e20:
        # Δ B u overflows, and where it does not the state before is forgotten.
        assert torch.equal(y.isfinite(), wanted.float().isfinite())
        y, wanted = (torch.where(wanted.float().isfinite(), x, 0) for x in (y, wanted))
    assert (y.double() - wanted).norm() <= 1e-5 * wanted.norm()


def test_a_state_that_dies_out_ends_in_zero_and_spoils_no_gradient():
    case = scan_case(1, 600, 16, 4, delta_softplus=False, without=("delta_bias", "D"))
    case.tensors["delta"] = torch.ones_like(case.tensors["delta"])
    case.tensors["u"][:, 1:] = 0
    found, expected = case.run(scan), expected_scan(case)
    error = abs(found["final_state"] - expected["final_state"])
    assert (error <= 1e-4 * abs(expected["final_state"]) + torch.finfo(torch.float32).tiny).all()
    assert not found["final_state"][abs(expected["final_state"]) < 1e-38].any()
    for name in found.keys() - {"final_state"}:
        assert_same({name: found[name]}, {name: expected[name]}, torch.float32)


def test_denormals_are_flushed_in_the_kernels_alone():
    smallest = torch.tensor([torch.finfo(torch.float32).tiny])
    case = scan_case(4, 300, 64, 16)
    case.run(scan)
    assert (smallest / 2).any()
    torch.set_flush_denormal(True)
    try:
        case.run(scan)
        assert not (smallest / 2).any()
    finally:
        torch.set_flush_denormal(False)


def test_a_growing_state_becomes_infinite():
    one = torch.ones(1, 60, 1)
    y, final = scan(one, one, torch.full((1, 1), 3.0), torch.ones(1, 1), torch.ones(1, 1))
    assert torch.isfinite(y[0, :25]).all()
    assert y[0, -1] == final == torch.inf


@pytest.mark.parametrize("length", [4096, 20000])
def test_errors_of_sums_over_steps_do_not_grow_with_length(length):
    case = scan_case(b=1, length=length, d=16, n=4, dtype=torch.float32)
    actual, exact = case.run(scan), case.double().run(scan)
    errors = {name: float((tensor - exact[name]).norm() / exact[name].norm()) for name, tensor in actual.items()}
    assert max(errors.values()) < 3e-6, errors


@pytest.mark.parametrize("shape", [{"d": 65, "n": 17}, {"d": 130, "n": 3}, {"d": 16, "n": 64}], ids=str)
def test_float32_is_as_good_as_float32_can_be(shape):
    case = scan_case(b=2, length=257, **shape)
    actual, expected = case.run(scan), expected_scan(case)
    errors = {name: float((tensor - expected[name]).norm() / expected[name].norm()) for name, tensor in actual.items()}
    assert max(errors.pop("y"), errors.pop("final_state")) < 1e-6
    assert max(errors.values()) < 3e-6, errors


@pytest.mark.parametrize("A", [0.0, -1e-8, -1e-4])
@pytest.mark.parametrize("complex_names", [(), ("A",)], ids=["real", "complex"])
def test_zoh_keeps_its_digits_where_a_hardly_decays(A, complex_names):
    case = scan_case(b=1, length=64, d=3, n=2, dtype=torch.float64, discretisation="zoh", complex_names=complex_names)
    case.tensors["A"].fill_(A)
    actual, expected = case.run(scan), expected_scan(case)
    for name, tensor in actual.items():
        assert (in_double(tensor) - expected[name]).norm() <= 1e-12 * expected[name].norm(), name


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    """A program of its own, for what can happen once in a process."""
    # A tree that is not installed is found through the path of this process.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", inspect.cleandoc(code)]
    return subprocess.run(command, check=False, capture_output=True, text=True, env=environment, timeout=600)


def test_memory_does_not_grow_with_length_times_state():
    done = run_python("""
        import resource, torch
        from mambalab.ext import cpu
        def grown(length, backward):
            u, rows = torch.ones(1, length, 64), torch.ones(1, length, 16)
            given = u, u, -torch.ones(64, 16), rows, rows, None, None, None, None, None, False, "euler"
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            cpu.scan_backward(u, torch.ones(1, 64, 16), *given) if backward else cpu.scan_forward(*given)
            return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        grown(64, False), grown(64, True)
        print(grown(2**16, False), grown(2**16, True))
        """)
    assert done.returncode == 0, done.stderr
    forward, backward = map(float, done.stdout.split())
    # u is 16 MiB, a state at each step would be 256 MiB.
    assert forward < 24
    assert backward < 64


def test_no_call_compiles_more_than_six_signatures():
    for shape in SHAPES.values():
        scan_case(**shape).run(scan)
    kernels: Any = cpu_kernels.scan_forward, cpu_kernels.scan_backward
    assert sum(len(kernel.signatures) for kernel in kernels) <= 6
    assert not any(kernel._can_compile for kernel in kernels)


def test_every_file_with_a_kernel_or_a_piece_of_one_keys_the_cache():
    folder = Path(cpu_compile.__file__).parent
    pieces = re.compile(r"^@(njit|kernel|inline|intrinsic|register_jitable|overload)", re.MULTILINE)
    compiled = {file.name for file in folder.glob("*.py") if pieces.search(file.read_text("utf-8"))}
    assert compiled == set(cpu_compile.SOURCES)


def test_the_cache_is_keyed_by_all_sources(monkeypatch):
    kernel: Any = cpu_kernels.scan_forward
    cache, codegen = cpu_compile._Cache(kernel.py_func), kernel.targetctx.codegen()
    before = cache._index_key((), codegen)
    monkeypatch.setattr(cpu_compile, "_sources", lambda: "another digest")
    assert cache._index_key((), codegen) != before


def test_kernels_compile_without_a_cache_where_no_folder_can_be_written(monkeypatch, caplog):
    def refuse(function):
        raise RuntimeError("cannot cache: no locator available")

    monkeypatch.setattr(cpu_compile, "_Cache", refuse)
    kernel: Any = njit(cpu_kernels.scan_forward.py_func)
    with caplog.at_level("INFO", "mambalab.ext"):
        cpu_compile._keep_on_disk(kernel)
    assert kernel._cache.cache_path is None
    assert ["compiling" in text or "cannot cache" in text for text in caplog.messages] == [True, True]


def test_a_miss_of_the_cache_says_that_it_compiles(monkeypatch, caplog):
    monkeypatch.setattr(cpu_compile, "_sources", lambda: "another digest")
    kernel = cpu_kernels.scan_forward
    signature = cpu_compile._signature(cpu._FORWARD, torch.float32)
    assert cpu_compile._Cache(kernel.py_func).load_overload(signature, kernel.targetctx) is None
    assert "compiling a CPU kernel" in caplog.text


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
