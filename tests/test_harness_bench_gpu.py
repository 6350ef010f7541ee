"""The scan benchmark of a GPU: checked to the end of a sequence, floors counted, other runs marked as such."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from mambalab.harness import bench, bench_gpu, bench_scan, bench_scan_gpu
from mambalab.harness.bench import OURS, RedCheck
from mambalab.harness.bench_gpu import Gpu
from mambalab.harness.bench_inputs import DTYPES, KINDS, Shape, draw, exact, relative_error
from mambalab.harness.bench_measured import METRICS
from mambalab.harness.bench_peers import GPU_PEERS, PEERS, Candidate, Peer
from mambalab.harness.bench_scan import GPU_SHAPES, Settings
from mambalab.harness.bench_scan_gpu import REPLAY
from mambalab.reports import regenerate
from mambalab.reports.bench import bench_table

TINY = Shape(2, 6, 11, 3)


def _host_timer(call, count):
    return [bench.seconds(call, time.perf_counter) for _ in range(count)]


def _gpu(**changes) -> Gpu:
    """The CPU in the place of a GPU."""
    fields = {
        "device": torch.device("cpu"),
        "multiprocessors": 1,
        "timer": _host_timer,
        "replay": lambda call: call,
        "exp2": lambda: ((lambda: None), 1000),
        "copied": 800,
    }
    return Gpu(**{**fields, **changes})


@pytest.fixture
def settings():
    return Settings(shapes=(TINY,), device="cuda", backward=True, peers=True, repeats=3)


@pytest.mark.parametrize(("length", "rows"), [(12, 3), (12, 12), (30, 5)])
@pytest.mark.parametrize("kind", KINDS)
def test_the_exact_results_in_pieces_are_those_of_the_whole(kind, length, rows):
    inputs, dy = draw(Shape(2, 6, length, 3), torch.float64, 3, kind)
    y, grads = exact(inputs, dy)
    cut_y, cut_grads = exact(inputs, dy, rows)
    assert relative_error(cut_y, y) < 1e-14
    assert max(relative_error(a, b) for a, b in zip(cut_grads, grads, strict=True)) < 1e-13
    assert torch.equal(exact(inputs, None, rows)[0], cut_y)


def test_released_inputs_begin_as_the_released_models_do():
    inputs, _ = draw(Shape(2, 64, 128, 16), torch.float32, 0, "released")
    assert torch.equal(inputs.A, -torch.arange(1.0, 17).expand(64, 16))
    steps = torch.nn.functional.softplus(inputs.delta_bias)
    assert (steps.min() >= 0.99e-3, steps.max() <= 1.01e-1) == (True, True)
    # Log-uniform: as many below 1e-2 as above.
    assert 0.25 < (steps < 1e-2).float().mean() < 0.75
    assert abs(inputs.delta.std() - 1 / 3) < 0.01


@pytest.mark.parametrize("text", ["8,1536,2048,16,bfloat16", " 8, 1536,2048,16, bfloat16"])
def test_a_shape_may_carry_its_dtype(text):
    shape = Shape.parse(text)
    assert shape == Shape(8, 1536, 2048, 16, "bfloat16")
    assert str(shape) == "8,1536,2048,16"
    assert Settings(shapes=(shape, Shape(8, 1536, 2048, 16))).dtypes == "bfloat16, float32"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Shape.parse("1,2,3,4,float31"), "and may end in a dtype"),
        (lambda: Shape(1, 2, 3, 4, "float31"), "unknown dtype 'float31'"),
        (lambda: Settings(shapes=(TINY, replace(TINY, dtype="float32"))), "each once"),
        (lambda: Settings(device="tpu"), "unknown device 'tpu'; known: cpu, cuda"),
        (lambda: Settings(inputs="odd"), "unknown inputs 'odd'; known: normal, released"),
    ],
)
def test_bad_shapes_and_settings_are_one_line(make, said):
    with pytest.raises(ValueError, match=said) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_run_ends_in_records_and_a_table_with_rates_and_floors(monkeypatch, settings, tmp_path):
    shapes = (TINY, replace(TINY, l=4, dtype="bfloat16"))
    monkeypatch.setattr(bench_gpu, "here", _gpu)
    monkeypatch.setattr(bench_scan_gpu, "REPLAYED", TINY.elements - 1)
    monkeypatch.setattr(bench_scan_gpu, "GPU_PEERS", PEERS[:1])
    said: list[str] = []
    made = bench_scan.run(replace(settings, shapes=shapes), command="mambalab bench scan", say=said.append)
    assert [r.metric for r in made if r.model == OURS] == [*METRICS, *REPLAY]
    assert {r.setting["checked"] for r in made} == {11, 4}
    assert made[0].provenance["dtype"] == "float32, bfloat16"
    assert len(said) == 4
    assert said[-1].startswith("2,6,4,3 bfloat16 forward+backward, graph replay ms: ")
    frame = bench_table(made)
    assert list(frame["dtype"]) == ["float32"] * 2 + ["bfloat16"] * 2
    assert {"× torch loop", "Floor", "× floor", "GB/s", "Tops/s"} <= set(frame.columns)
    text = bench.write(tmp_path, "The scan", made)
    assert "mambalab bfloat16" in text
    assert "(gradients " in text
    assert KINDS["normal"] in text
    regenerate.check(tmp_path / "table.md")


def test_a_backend_is_taken_by_name(settings):
    with pytest.raises(ValueError, match="unknown backend 'odd'"):
        bench_scan_gpu.measure(TINY, replace(settings, backend="odd"), False, _gpu())
    with pytest.raises(ValueError, match="unknown backend 'odd'"):
        bench_scan.run(Settings(shapes=(TINY,), backend="odd"))


def test_without_a_gpu_there_is_one_clear_line(monkeypatch, settings):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="no GPU that torch can use"):
        bench_scan.run(settings)


def _wrong_after(steps):
    """Our scan, with its output off from a step on."""
    right = bench_scan.ours().load()

    def scan(*tensors):
        y = right(*tensors)
        return torch.cat([y[:, :steps], 1.01 * y[:, steps:]], 1)

    return Peer(name=OURS, timed="wrong", distribution=None, load=lambda: scan)


def test_a_wrong_end_of_a_long_sequence_is_seen(monkeypatch, settings):
    monkeypatch.setattr(bench_scan_gpu, "STEPS", 4)
    monkeypatch.setattr(bench_scan_gpu, "ours", lambda *_: _wrong_after(7))
    monkeypatch.setattr(bench, "interleave", lambda *a, **k: pytest.fail("timed after a red check"))
    with pytest.raises(RedCheck, match="relative error of the output"):
        bench_scan_gpu.measure(TINY, settings, False, _gpu())


def test_the_steps_that_make_no_whole_piece_are_not_checked(monkeypatch, settings):
    monkeypatch.setattr(bench_scan_gpu, "STEPS", 4)
    monkeypatch.setattr(bench_scan_gpu, "ours", lambda *_: _wrong_after(8))
    assert bench_scan_gpu.measure(TINY, settings, True, _gpu()).checked == 8


def test_a_peer_that_is_not_installed_says_so(monkeypatch, settings):
    def load():
        raise ImportError("No module named 'mamba_ssm'")

    monkeypatch.setattr(bench_scan_gpu, "GPU_PEERS", (replace(GPU_PEERS[0], load=load),))
    assert bench_scan_gpu.measure(TINY, settings, False, _gpu()).absent == {"mamba_ssm": "No module named 'mamba_ssm'"}


def test_what_no_graph_can_hold_is_timed_call_by_call_and_says_so(settings):
    def replay(call):
        raise RuntimeError("operation not permitted when stream is capturing")

    found = bench_scan_gpu.measure(TINY, settings, False, _gpu(replay=replay))
    assert found.metric == METRICS[0]
    assert "not permitted when stream is capturing" in found.floors()["what"]


def test_the_replay_is_what_is_timed(settings):
    timed = []

    def timer(call, count):
        timed.append(call)
        return [1.0] * count

    def replayed():
        return None

    bench_scan_gpu.measure(TINY, settings, False, _gpu(timer=timer, replay=lambda call: replayed))
    assert replayed in timed


def test_only_a_scan_of_few_states_has_to_be_split(monkeypatch, settings):
    split = {}
    monkeypatch.setattr(bench_scan_gpu, "draw", lambda shape, *_: draw(TINY, torch.float32, 0))
    monkeypatch.setattr(bench_scan_gpu, "_admit", lambda shape, *_: ((bench_scan.ours(),), {}, {}, 1))
    for shape in GPU_SHAPES:
        found = bench_scan_gpu.measure(shape, settings, False, _gpu(multiprocessors=132))
        split[str(shape)] = found.split
    assert [name for name, is_split in split.items() if is_split] == [
        "1,1536,131072,16",
        "1,128,1048576,16",
        "8,128,256,16",
    ]


def test_a_contiguous_peer_gets_all_of_its_tensors_so():
    inputs, dy = draw(TINY, torch.float32, 0)
    peer = replace(GPU_PEERS[0], load=lambda: lambda *tensors: tensors[0])
    candidate = Candidate.of(peer, inputs, dy)
    assert all(t.is_contiguous() for t in (*candidate.tensors, candidate.dy))
    assert [tuple(t.shape) for t in candidate.tensors if t.dim() == 3] == [(2, 6, 11)] * 2 + [(2, 3, 11)] * 2 + [
        (2, 6, 11)
    ]


class _Event:
    """A CUDA event on a clock that only calls move."""

    now = 0.0

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.at = _Event.now

    def elapsed_time(self, end):
        return end.at - self.at


def test_events_time_the_call_alone_after_the_cache_is_flushed(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Event", _Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(bench_gpu, "FLUSHED", 16)
    timer = bench_gpu.Events(torch.device("cpu"))
    timer._flush.fill_(1)
    flushed = []

    def call():
        flushed.append(not timer._flush.any())
        timer._flush.fill_(1)
        _Event.now += 2.0

    assert timer(call, 3) == pytest.approx([2e-3] * 3)
    assert flushed == [True] * 3


def test_a_call_is_captured_after_warm_ones_on_another_stream(monkeypatch):
    done = []

    class Stream:
        def wait_stream(self, other):
            done.append("wait")

    class Graph:
        def replay(self):
            done.append("replay")

    @contextmanager
    def inside(what):
        done.append(f"into {type(what).__name__}")
        yield
        done.append(f"out of {type(what).__name__}")

    fakes = {"Stream": Stream, "current_stream": Stream, "CUDAGraph": Graph, "stream": inside, "graph": inside}
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    bench_gpu.replayed(lambda: done.append("call"))()
    warm = ["wait", "into Stream", *["call"] * bench_gpu.WARM, "out of Stream", "wait"]
    assert done == [*warm, "into Graph", "call", "out of Graph", "replay"]


BLOCKED = ("lm_eval", "datasets", "beartype", "transformers", "tokenizers", "accelerate", "mambapy", "matplotlib")


@pytest.mark.parametrize("arguments", [["--device", "cpu"], ["--device", "cpu", "--peers", "--backward"]])
def test_the_benchmark_runs_without_what_evaluation_needs(tmp_path, arguments):
    code = (
        "import sys\n"
        f"for name in {BLOCKED!r}: sys.modules[name] = None\n"
        "from mambalab.harness.cli import main\n"
        f"main({['bench', 'scan', '--shape', '1,4,16,2', '--repeats', '3', '--out', str(tmp_path), *arguments]!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "table.md").is_file()


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [Shape(2, 64, 300, 16, "bfloat16"), Shape(1, 64, 70000, 16, "float32")])
@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_is_measured_from_end_to_end(shape, kind):
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    settings = Settings(shapes=(shape,), device="cuda", inputs=kind, backward=True, peers=True, repeats=3)
    made = [r for r in bench_scan.run(settings) if r.model == OURS]
    assert len(made) == 2
    assert all(r.setting["floor"] > 0 and r.value > 0 for r in made)


@pytest.mark.gpu
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("peer", GPU_PEERS, ids=lambda peer: peer.name)
def test_every_gpu_peer_computes_our_definition(peer, dtype, backward):
    if reason := peer.missing() or (None if torch.cuda.is_available() else "no GPU"):
        pytest.skip(reason)
    inputs, dy = draw(Shape(2, 64, 300, 16), DTYPES[dtype], 0, device="cuda")
    errors = bench_scan.check(peer, inputs, dy, exact(inputs, dy if backward else None), dtype)
    assert len(errors) == (9 if backward else 1)
