"""Benchmarks compute what they print, refuse a wrong result, and say why a peer is not there. Nothing here is timed."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

import pytest
import torch
from mambalab.ext import selective_scan
from mambalab.harness import bench, bench_inputs, bench_scan, floor
from mambalab.harness.bench import RedCheck, Times, interleave
from mambalab.harness.bench_inputs import Shape, draw, exact, relative_error
from mambalab.harness.bench_peers import PEERS, Candidate, Peer
from mambalab.harness.bench_scan import (
    BYTES,
    EXP2,
    METRICS,
    OURS,
    LeftOut,
    Measured,
    Settings,
    check,
    measure,
    moved,
    run,
    why_not,
)
from mambalab.reports import record as records_file
from mambalab.reports import regenerate
from mambalab.reports.bench import notes
from mambalab.reports.tables import bench_table
from reports_cases import PROVENANCE

TINY = Shape(2, 6, 11, 3)


class Clock:
    """Time that passes only when a call says so."""

    def __init__(self):
        self.now, self.order = 0.0, []

    def __call__(self):
        return self.now

    def takes(self, name, *seconds):
        """A call of the given lengths, the last of them for ever after."""
        lengths = iter(seconds)
        last = seconds[-1]

        def call():
            self.order.append(name)
            self.now += next(lengths, last)

        return call


def test_the_median_is_of_the_measured_calls_alone():
    clock = Clock()
    times = interleave({"a": clock.takes("a", 90.0, 5.0, 1.0, 3.0)}, repeats=3, clock=clock)
    assert times["a"].seconds == (5.0, 1.0, 3.0)
    assert (times["a"].median, times["a"].best) == (3.0, 1.0)


def test_candidates_take_turns_and_the_order_turns_round():
    clock = Clock()
    interleave({name: clock.takes(name, 1.0) for name in "ab"}, repeats=3, clock=clock)
    assert "".join(clock.order) == "ab" + "ab" + "ba" + "ab"


def test_a_short_call_is_repeated_within_a_round_after_one_unmeasured():
    clock = Clock()
    times = interleave({"short": clock.takes("short", 0.05), "long": clock.takes("long", 1.0)}, repeats=3, clock=clock)
    assert len(times["short"].seconds) == 3 * int(bench.ROUND_SECONDS / 0.05)
    assert len(times["long"].seconds) == 3
    assert clock.order.count("short") == 1 + 3 * (1 + int(bench.ROUND_SECONDS / 0.05))


@pytest.mark.parametrize(("seconds", "rounds"), [(100.0, 3), (0.4, 3), (0.25, 4), (1e-6, bench.ROUNDS[1])])
def test_rounds_adapt_to_the_length_of_a_call(seconds, rounds):
    clock = Clock()
    times = interleave({"a": clock.takes("a", seconds)}, clock=clock)
    per_round = bench.CALLS if seconds < 0.01 else 1
    assert len(times["a"].seconds) == rounds * per_round


def test_times_of_nothing_are_refused():
    with pytest.raises(ValueError, match="no call was timed"):
        Times(seconds=())


BAD_SHAPES = ["", "1,128,4096", "1,128,4096,16,1", "1,128,0,16", "1,-128,4096,16", "a,b,c,d", "1.5,2,3,4", "1,,3,4"]


@pytest.mark.parametrize("text", BAD_SHAPES)
def test_a_bad_shape_is_one_line(text):
    with pytest.raises(ValueError, match="must be four positive integers") as caught:
        Shape.parse(text)
    assert "\n" not in str(caught.value)


def test_a_shape_reads_as_it_prints():
    assert str(Shape.parse(" 1, 128,4096,16")) == "1,128,4096,16"
    assert Shape(2, 3, 5, 7).elements == 210


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dtype": "float31"}, "unknown dtype 'float31'"),
        ({"repeats": 2}, "repeats must be at least 3, not 2"),
        ({"shapes": ()}, "not none"),
        ({"shapes": (TINY, TINY)}, "each once"),
    ],
)
def test_bad_settings_are_refused_at_birth(changes, said):
    with pytest.raises(ValueError, match=said):
        Settings(**changes)


def test_inputs_follow_from_the_seed_and_lie_where_they_should():
    inputs, dy = draw(Shape(2, 64, 128, 16), torch.float32, 0)
    again, _ = draw(Shape(2, 64, 128, 16), torch.float32, 0)
    assert all(torch.equal(a, b) for a, b in zip(inputs.tensors(), again.tensors(), strict=True))
    assert not torch.equal(inputs.u, draw(Shape(2, 64, 128, 16), torch.float32, 1)[0].u)
    assert inputs.A.max() <= -0.1
    assert -16.1 <= inputs.A.min() < -15
    assert (inputs.delta_bias.min() >= -4, inputs.delta_bias.max() <= -2) == (True, True)
    assert abs(inputs.delta.std() - 0.5) < 0.02
    assert (inputs.u.shape, inputs.B.shape, dy.shape) == ((2, 128, 64), (2, 128, 16), (2, 128, 64))


def test_the_exact_gradients_in_chunks_are_those_of_the_whole(monkeypatch):
    monkeypatch.setattr(bench_inputs, "CHUNK", 4)
    inputs, dy = draw(TINY, torch.float64, 3)
    leaves = [t.clone().requires_grad_() for t in inputs.tensors()]
    y = selective_scan(*leaves, delta_softplus=True, backend="reference")
    assert isinstance(y, torch.Tensor)
    wanted = torch.autograd.grad(y, leaves, dy)
    found_y, found = exact(inputs, dy)
    assert relative_error(found_y, y.detach()) < 1e-14
    assert max(relative_error(a, b) for a, b in zip(found, wanted, strict=True)) < 1e-13


def test_a_relative_error_is_of_the_whole_tensor_and_never_hides_nan():
    wanted = torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert relative_error(torch.tensor([3.0, 4.5]), wanted) == pytest.approx(0.1)
    assert relative_error(torch.tensor([3.0, float("nan")]), wanted) == float("inf")
    assert relative_error(torch.tensor([3.0]), wanted) == float("inf")
    assert relative_error(torch.tensor([0.0, 2.0]), torch.zeros(2, dtype=torch.float64)) == 2.0


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("peer", [bench_scan.ours(), *PEERS], ids=lambda peer: peer.name)
def test_every_candidate_computes_our_definition(peer, backward):
    if reason := peer.missing():
        pytest.skip(reason)
    inputs, dy = draw(TINY, torch.float32, 0)
    errors = check(peer, inputs, dy, exact(inputs, dy if backward else None), "float32")
    assert len(errors) == (9 if backward else 1)
    assert all(0 < error < 1e-6 for error in errors.values())


def test_a_check_of_the_first_steps_lets_no_later_step_in():
    inputs, dy = draw(TINY, torch.float32, 0)
    wanted = exact(inputs.first(5), dy[:, :5])
    assert max(check(bench_scan.ours(), inputs, dy, wanted, "float32").values()) < 1e-6


def _wrong(name, factor, *, gradient_only=False, **changes):
    """A scan whose output, or only its gradients, are off by a factor."""
    right = bench_scan.ours().load()

    def scan(*tensors):
        y = right(*tensors)
        return y * factor - (y * (factor - 1)).detach() if gradient_only else y * factor

    return Peer(name=name, timed="wrong", distribution=None, load=lambda: scan, **changes)


@pytest.mark.parametrize(("gradient_only", "what"), [(False, "output"), (True, "gradient of u")])
def test_a_wrong_result_of_ours_prints_no_speed(monkeypatch, gradient_only, what):
    wrong = _wrong(OURS, 1.01, gradient_only=gradient_only)
    monkeypatch.setattr(bench_scan, "ours", lambda *_: wrong)
    monkeypatch.setattr(bench, "interleave", lambda *a, **k: pytest.fail("timed after a red check"))
    with pytest.raises(RedCheck, match=rf"relative error of the {what} 1.0e-02.*no speed is printed"):
        measure(TINY, Settings(shapes=(TINY,)), backward=gradient_only)


def _missing(name="absent"):
    def load():
        raise ImportError(f"No module named {name!r}")

    return Peer(name=name, timed="", distribution=name, load=load)


REASONS = {
    "not installed": (_missing(), {}, "No module named 'absent'"),
    "too large": (
        _wrong("big", 1.0, copies=(3, 3)),
        {"memory_gib": 1e-6},
        "it would hold about 0.0 GiB, over the limit of 0.0 GiB",
    ),
    "too slow": (_wrong("slow", 1.0), {"call_seconds": 0.0}, "one call would take about 0 s, over the limit of 0 s"),
    "wrong": (_wrong("wrong", 1.5), {}, r"it fails its check \(wrong: relative error of the output 5.0e-01"),
}


@pytest.mark.parametrize(("peer", "changes", "reason"), REASONS.values(), ids=REASONS)
def test_a_peer_that_is_left_out_says_why_under_the_table(monkeypatch, peer, changes, reason):
    monkeypatch.setattr(bench_scan, "PEERS", (peer,))
    settings = Settings(shapes=(TINY,), peers=True, repeats=3, **changes)
    made = run(settings)
    assert [r.model for r in made] == [OURS]
    (note,) = [note for note in notes(made) if "left out" in note]
    assert re.match(f"{peer.name} left out at 2,6,11,3 forward: {reason}", note)


def test_a_quadratic_backward_is_foretold_from_a_short_call(monkeypatch):
    monkeypatch.setattr(bench, "seconds", lambda call: 1.0)
    shape = Shape(1, 2, 10 * bench_scan.SMALL, 2)
    inputs, dy = draw(shape, torch.float32, 0)
    peer = _wrong("peer", 1.0, growth=(1, 2))
    why_not(peer, inputs, dy, shape, Settings(call_seconds=10.0), False)
    with pytest.raises(LeftOut, match="one call would take about 100 s, over the limit of 99 s"):
        why_not(peer, inputs, dy, shape, Settings(call_seconds=99.0), True)


def test_a_peer_whose_whole_call_is_slower_than_foretold_is_left_out(monkeypatch):
    monkeypatch.setattr(bench_scan, "PEERS", (_wrong("peer", 1.0),))
    monkeypatch.setattr(bench.time, "perf_counter", itertools.count(step=30.0).__next__)
    monkeypatch.setattr(bench, "seconds", lambda call: 1.0)
    monkeypatch.setattr(bench, "interleave", lambda calls, *, repeats: {n: Times(seconds=(1.0,)) for n in calls})
    found = measure(TINY, Settings(shapes=(TINY,), peers=True, call_seconds=20.0), backward=False)
    assert found.absent == {"peer": "one call would take about 30 s, over the limit of 20 s"}
    assert list(found.errors) == [OURS]


def _measured(**changes):
    seconds = {OURS: (0.002, 0.004, 0.003), "torch loop": (0.3,) * 3, EXP2: (0.5,), BYTES: (0.001,)}
    fields = {
        "shape": Shape(1, 128, 4096, 16),
        "backward": False,
        "peers": (bench_scan.ours(), PEERS[0]),
        "errors": {OURS: {"output": 4e-7, "gradient of u": 6e-7}, "torch loop": {"output": 5e-7}},
        "absent": {"mambapy": "no such module"},
        "checked": 4096,
        "times": {name: Times(seconds=found) for name, found in seconds.items()},
        "exp2_seconds": 1e-3 / Shape(1, 128, 4096, 16).elements,
    }
    return Measured(**{**fields, **changes})


def test_ratios_to_the_peer_and_the_floor_follow_from_the_medians():
    made = list(_measured().records(Settings(), PROVENANCE))
    mine, loop = made
    assert (mine.value, mine.n, mine.setting["best"]) == (pytest.approx(3.0), 3, pytest.approx(2.0))
    assert mine.setting["floor"] == pytest.approx(1.0)
    assert mine.setting["ns"] == pytest.approx(3e6 / (128 * 4096 * 16))
    assert loop.provenance["backend"].startswith("torch ")
    (row,) = bench_table(made).to_dict("records")
    assert (row["Shape"], row["Measure"]) == ("1,128,4096,16", "forward ms")
    assert (row["× torch loop"], row["× floor"]) == ("100×", "3.00×")
    said = notes(made)
    assert "Floor: an exp2 in registers for each (b, l, d, n), 0.119 ns at best in this run." in said
    assert "Moving the bytes alone, each once, as a copy does: 1,128,4096,16 forward 1.00 ms." in said
    assert "mambapy left out at 1,128,4096,16 forward: no such module." in said
    assert _measured().line() == "1,128,4096,16 forward ms: 3 ms, 3x the floor, torch loop 100x"


def test_the_floor_is_the_best_call_and_ours_the_median(monkeypatch):
    def interleave(calls, *, repeats):
        return {name: Times(seconds=(4.0, 2.0, 3.0)) for name in calls}

    monkeypatch.setattr(bench, "interleave", interleave)
    monkeypatch.setattr(floor, "exp2_call", lambda threads: (lambda: None, 1000))
    found = measure(TINY, Settings(shapes=(TINY,)), backward=False)
    assert found.floor_ms == pytest.approx(1e3 * TINY.elements * 2.0 / 1000)
    (mine,) = found.records(Settings(), PROVENANCE)
    assert mine.value == 3000.0
    assert mine.setting["bytes_ms"] == 2000.0


def test_the_least_disturbed_floor_holds_for_the_whole_run(monkeypatch):
    rates = iter([3e-9, 1e-9, 2e-9])
    monkeypatch.setattr(bench_scan, "measure", lambda shape, *a: _measured(shape=shape, exp2_seconds=next(rates)))
    shapes = (TINY, Shape(1, 128, 4096, 16), Shape(1, 1, 1, 1))
    made = [r for r in run(Settings(shapes=shapes)) if r.model == OURS]
    assert [r.setting["floor"] for r in made] == pytest.approx([1e-6 * shape.elements for shape in shapes])


def test_the_bytes_that_must_move_are_counted_once_each():
    # u, delta, z, y of 6 and B, C of 3 elements a step; backward again u, delta, z, dy and three gradients; B, C twice.
    steps = TINY.b * TINY.l
    assert moved(TINY, 4, backward=False) == 4 * steps * (4 * 6 + 2 * 3)
    assert moved(TINY, 2, backward=True) == 2 * steps * ((4 + 7) * 6 + (2 + 4) * 3)


def test_the_floor_computes_powers_of_two():
    call, evaluations = floor.exp2_call(2)
    means = call()
    assert len(means) == 2
    # The fixed point of x = 2^-x.
    assert all(abs(mean - 0.6411857) < 1e-6 for mean in means)
    assert abs(evaluations / floor.EXPONENTIALS - 1) < 0.01


def test_the_bytes_floor_copies():
    destination = floor.bytes_call(800)()
    assert isinstance(destination, torch.Tensor)
    assert destination.tolist() == [1.0] * 100


def test_a_channel_first_peer_gets_its_layout_before_the_clock():
    inputs, dy = draw(TINY, torch.float32, 0)
    peer = next(peer for peer in PEERS if peer.channel_first)
    if reason := peer.missing():
        pytest.skip(reason)
    candidate = Candidate.of(peer, inputs, dy)
    assert [tuple(t.shape) for t in candidate.tensors[:2]] == [(2, 6, 11)] * 2
    assert all(t.is_contiguous() for t in candidate.tensors[:2])
    assert candidate.results(backward=False)[0].shape == inputs.u.shape


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_a_small_run_ends_in_records_and_a_table_that_follows_from_them(tmp_path, dtype):
    settings = Settings(shapes=(TINY,), dtype=dtype, peers=True, backward=True, repeats=3)
    said: list[str] = []
    made = run(settings, command="mambalab bench scan", say=said.append)
    assert {r.metric for r in made if r.model == OURS} == set(METRICS)
    assert len(said) == 2
    text = bench.write(tmp_path, "The scan", made)
    assert "largest relative error against float64" in text
    assert records_file.read(tmp_path / "records.jsonl") == made
    regenerate.check(tmp_path / "table.md")
    assert regenerate.unexplained(tmp_path / "table.md") == []


def test_without_peers_only_ours_is_timed():
    made = run(replace(Settings(), shapes=(TINY,), repeats=3))
    assert [r.model for r in made] == [OURS]
    assert not any("left out" in note for note in notes(made))


def test_names_of_candidates_are_distinct():
    names = [OURS, EXP2, BYTES, *(peer.name for peer in PEERS)]
    assert len(set(names)) == len(names)
