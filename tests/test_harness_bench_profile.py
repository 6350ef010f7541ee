"""The profile puts each operation into the part it serves, and what is in none is not lost."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from command import mambalab, refused
from mambalab.harness import bench, bench_model, bench_profile
from mambalab.harness.bench_profile import BETWEEN, REST, divide, part_of
from test_harness_bench_model import WORKLOADS

AUTOGRAD = "autograd::engine::evaluate_function: "


def event(*names, microseconds=0.0):
    """An operation inside others, the outermost first."""
    found = None
    for name in names:
        found = SimpleNamespace(name=name, cpu_parent=found, self_cpu_time_total=microseconds)
    return found


@pytest.mark.parametrize(
    ("names", "part"),
    [
        (["GeneratedBackwardFor_mambalab_selective_scan_default", "aten::empty"], "scan"),
        (["mambalab::selective_scan_backward", "aten::zeros", "aten::fill_"], "scan, backward"),
        (["GeneratedBackwardFor_mambalab_selective_scan_defaultBackward", "aten::to"], "scan, backward"),
        (["mambalab::causal_conv1d", "aten::silu"], "convolution"),
        (["mambalab::causal_conv1d_backward", "aten::mul"], "convolution, backward"),
        (["aten::linear", "aten::matmul", "aten::mm"], "matrix products"),
        ([AUTOGRAD + "MmBackward0", "MmBackward0", "aten::mm"], "matrix products, backward"),
        (["aten::rms_norm", "aten::_fused_rms_norm", "aten::mul"], "norm"),
        ([AUTOGRAD + "PowBackward0", "PowBackward0", "aten::mul"], "norm, backward"),
        (["aten::cross_entropy_loss", "aten::log_softmax", "aten::_log_softmax"], "cross-entropy, both ways"),
        ([AUTOGRAD + "LogSoftmaxBackward0"], "cross-entropy, both ways"),
        (["Optimizer.step#AdamW.step", "aten::_fused_adamw_"], "optimiser"),
        ([AUTOGRAD + "torch::autograd::AccumulateGrad"], "gradients, kept"),
        (["aten::add"], REST),
    ],
)
def test_an_operation_serves_the_nearest_part_around_it(names, part):
    assert part_of(event(*names)) == part


def test_the_parts_and_what_lies_between_them_make_the_whole():
    events = [event("aten::add", microseconds=1e6), event("aten::linear", "aten::mm", microseconds=3e6)] * 2
    assert [(p.name, p.seconds, p.operations) for p in divide(events, 20.0, 2)] == [
        (BETWEEN, 6.0, 0),
        ("matrix products", 3.0, 1),
        (REST, 1.0, 1),
    ]


def test_a_profile_names_what_the_workload_does_and_nothing_else(monkeypatch):
    monkeypatch.setattr(bench, "ROUND_SECONDS", 0.0)
    step, forward = ({part.name for part in bench_profile.run(w, rounds=3).parts} for w in (WORKLOADS[0], WORKLOADS[2]))
    usual = {"scan", "convolution", "matrix products", "norm", "embedding, both ways", BETWEEN}
    only_backward = {name for name, _ in bench_profile.PARTS if "backward" in name}
    assert usual <= forward
    assert usual | only_backward | {"optimiser", "cross-entropy, both ways"} <= step
    assert not forward & (only_backward | {"optimiser", "cross-entropy, both ways"})


def test_the_command_prints_a_table_a_case(monkeypatch):
    monkeypatch.setattr(bench, "ROUND_SECONDS", 0.0)
    monkeypatch.setattr(bench_model, "TRAINING", WORKLOADS[0])
    monkeypatch.setattr(bench_model, "FORWARD", WORKLOADS[2])
    answer = mambalab("bench", "profile", "--rounds", 3)
    assert answer.status == 0
    assert answer.out.count("| Part | ms | Share | Operations |") == 2
    assert "'long' is not one of 'training', 'forward'" in refused(mambalab("bench", "profile", "--case", "long"))
    assert "3" in refused(mambalab("bench", "profile", "--rounds", 2))
