"""What is special to the scan's CPU kernels: pieces of long sequences, numbers at the edges, digits and memory."""

import pytest
import torch
from cpu_cases import run_python, scan
from ext_cases import assert_same, expected_scan, in_double, scan_case, threads

pytest.importorskip("numba", reason="the CPU kernels are compiled by Numba")
from mambalab.ext import cpu_pieces


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
