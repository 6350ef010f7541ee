"""The floors of a GPU are counted from the shape and measured by a kernel of their own; rates and ratios follow."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cuda_emulator
import pytest
import torch
from mambalab import harness
from mambalab.ext import nvrtc
from mambalab.harness import bench_scan, floor
from mambalab.harness.bench import OURS, Times
from mambalab.harness.bench_inputs import Shape
from mambalab.harness.bench_measured import BYTES, EXP2, METRICS
from mambalab.harness.bench_scan import GPU_SHAPES, Settings
from mambalab.harness.bench_scan_gpu import MeasuredOnGpu
from mambalab.reports import published
from mambalab.reports.bench import ELSEWHERE, bench_table, notes
from reports_cases import PROVENANCE

TINY = Shape(2, 6, 11, 3)
H200 = {**PROVENANCE, "device": "cuda:0", "device_name": "NVIDIA H200"}
CEILING = Path(harness.__file__).parent / "ceiling.cu"


def _measured(shape, **changes) -> MeasuredOnGpu:
    fields = {
        "shape": shape,
        "backward": False,
        "peers": (bench_scan.ours(),),
        "errors": {OURS: {"output": 1e-3}},
        "absent": {},
        "checked": shape.l,
        "times": {name: Times(seconds=(1e-3,)) for name in (OURS, EXP2, BYTES)},
        "exp2_seconds": 1 / 4.12e12,
        "byte_seconds": 1 / 4.25e12,
        "bytes": 0,
        "split": False,
        "replayed": False,
    }
    return MeasuredOnGpu(**{**fields, **changes})


def test_the_floor_is_the_longer_of_special_functions_and_bytes():
    shape = GPU_SHAPES[0]
    operations = 8 * 2048 * 1536 * 20
    assert _measured(shape).floor_ms == pytest.approx(1e3 * operations / 4.12e12)
    assert _measured(shape, bytes=10**9).floor_ms == pytest.approx(1e3 / 4.25e3)
    assert _measured(shape, backward=True).special_functions == 2 * operations
    assert _measured(shape, split=True).special_functions == operations // 20 * 38


def test_rates_are_of_the_floors_bytes_and_operations():
    measured = _measured(Shape(1, 1, 10, 1, "float32"), bytes=3 * 10**9)
    (row,) = bench_table(list(measured.records(Settings(device="cuda"), H200))).to_dict("records")
    assert (row["GB/s"], row["Tops/s"]) == ("3,000", "0.0000000500")


@pytest.mark.parametrize(
    ("changes", "origin", "ratio"),
    [
        ({}, H200, "0.448×"),
        ({"backward": True}, H200, "2.18×"),
        ({}, H200 | {"device_name": "NVIDIA A100"}, None),
        ({"replayed": True}, H200, None),
    ],
)
def test_a_peers_time_of_another_run_is_marked_as_such(changes, origin, ratio):
    made = list(_measured(GPU_SHAPES[0], **changes).records(Settings(device="cuda"), origin))
    (row,) = bench_table(made).to_dict("records")
    assert row.get(ELSEWHERE) == ratio
    assert any("Triton do_bench median, 2026-11-22; not in this run" in note for note in notes(made)) == bool(ratio)


def test_other_inputs_and_the_peer_itself_leave_no_room_for_another_run():
    measured = _measured(GPU_SHAPES[0])
    (released,) = measured.records(Settings(device="cuda", inputs="released"), H200)
    (normal,) = measured.records(Settings(device="cuda"), H200)
    assert ELSEWHERE not in bench_table([released])
    assert ELSEWHERE not in bench_table([normal, replace(normal, model="mamba_ssm")])
    assert list(bench_table([normal, released])["Inputs"]) == ["normal", "released"]


def test_every_shape_of_the_table_has_been_timed_elsewhere():
    for shape in GPU_SHAPES:
        for metric in METRICS:
            assert published.mamba_ssm_ms("NVIDIA H200", str(shape), shape.dtype, metric)


def test_a_note_names_the_dtype_where_there_are_several_and_no_place_where_it_holds_for_all():
    mixed = [
        record
        for dtype in ("float32", "bfloat16")
        for record in _measured(replace(TINY, dtype=dtype), absent={"peer": dtype, "other": "why"}).records(
            Settings(), H200
        )
    ]
    assert [note for note in notes(mixed) if "left out" in note] == [
        "other left out: why.",
        "peer left out at 2,6,11,3 bfloat16 forward: bfloat16.",
        "peer left out at 2,6,11,3 float32 forward: float32.",
    ]


def test_the_floors_kernel_computes_powers_of_two_and_nothing_else():
    if reason := cuda_emulator.missing():
        pytest.skip(reason)
    means = torch.full((64,), float("nan"))
    cuda_emulator.load(CEILING, "exp2_in_registers").launch(2, 32, 0, (means.data_ptr(), 4))
    # The fixed point of x = 2^-x.
    assert (means - 0.6411857).abs().max() < 1e-6


@pytest.mark.skipif(nvrtc.missing() is not None, reason=str(nvrtc.missing()))
@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100"])
def test_the_floors_kernel_compiles_and_fills_the_gpu(arch):
    taken = nvrtc.resources(CEILING.name, (), arch, csrc=CEILING.parent)["exp2_in_registers"]
    assert taken.registers <= 65536 // (floor.GPU_THREADS * floor.GPU_BLOCKS)
    assert (taken.spill_loads, taken.shared) == (0, 0)


def test_the_floors_call_counts_its_evaluations(monkeypatch):
    launched = []

    class Kernel:
        def launch(self, *arguments):
            launched.append(arguments)

    monkeypatch.setattr(floor, "_gpu_kernel", lambda device: Kernel())
    monkeypatch.setattr(floor.cuda_launch, "multiprocessors", lambda device: 3)
    call, count = floor.gpu_exp2_call(torch.device("cpu"))
    call()
    ((blocks, threads, shared, (_, rounds)),) = launched
    text = CEILING.read_text()
    assert "CHAINS = 8, TURNS = 16" in text
    assert count == blocks * threads * rounds * 8 * 16
    assert (blocks, shared) == (3 * floor.GPU_BLOCKS, 0)


@pytest.mark.gpu
def test_the_floors_kernel_runs_on_a_gpu():
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    call, _ = floor.gpu_exp2_call(torch.device("cuda", torch.cuda.current_device()))
    means = call()
    assert isinstance(means, torch.Tensor)
    assert float((means - 0.6411857).abs().max()) < 1e-6
