"""Where the adapter runs when nobody says where."""

from __future__ import annotations

import json

import pytest
import torch
from command import mambalab
from mambalab.ext import backends
from mambalab.harness.lm import resolve_device

GPU_ROWS = [row for row in backends.BACKENDS if row.device == "cuda"]


@pytest.fixture
def a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)


def test_without_a_gpu_the_default_is_the_cpu():
    assert resolve_device(None) == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.usefixtures("a_gpu")
def test_a_gpu_that_no_backend_can_use_is_left_alone_and_that_is_said(monkeypatch, caplog):
    def refuse(device, name=None):
        raise ValueError(f"no backend can run on {device}")

    monkeypatch.setattr(backends, "pick", refuse)
    assert resolve_device(None) == "cpu"
    assert "no backend can run on cuda" in caplog.text
    assert resolve_device(None, scans=False) == "cuda"
    assert resolve_device("cuda") == "cuda"


@pytest.mark.usefixtures("a_gpu")
def test_a_gpu_with_a_backend_is_the_default(monkeypatch):
    monkeypatch.setattr(backends, "pick", lambda device, name=None: backends.BACKENDS[0])
    assert resolve_device(None) == "cuda"


def records(model, data, out, *options):
    """What an evaluation of two documents a task records."""
    assert mambalab("eval", model, "--data", data, "--limit", 2, "--out", out, *options).status == 0
    (path,) = out.glob("*/records.jsonl")
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.mark.gpu
def test_a_mamba_goes_to_the_gpu_that_is_there(places, tmp_path):
    reasons = {row.name: row.missing() for row in GPU_ROWS}
    if None not in reasons.values():
        pytest.skip(str(reasons))
    ran = [record["provenance"] for record in records(places["mamba"], places["data"], tmp_path, "--tasks", "piqa")]
    best = next(name for name, reason in reasons.items() if reason is None)
    assert {(origin["device"].partition(":")[0], origin["backend"]) for origin in ran} == {("cuda", best)}


@pytest.mark.gpu
@pytest.mark.parametrize("row", GPU_ROWS, ids=lambda row: row.name)
def test_a_gpu_backend_gives_the_numbers_of_the_cpu(places, tmp_path, row):
    if reason := row.missing():
        pytest.skip(f"{row.name}: {reason}")
    settings = ("--dtype", "float32")
    want = records(places["mamba"], places["data"], tmp_path / "cpu", "--device", "cpu", *settings)
    there = ("--device", row.device, "--backend", row.name)
    found = records(places["mamba"], places["data"], tmp_path / "gpu", *there, *settings)
    assert {record["provenance"]["backend"] for record in found} == {row.name}
    numbers = [{(r["task"], r["metric"]): r["value"] for r in made} for made in (found, want)]
    assert numbers[0] == pytest.approx(numbers[1], rel=1e-4)


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU")
@pytest.mark.parametrize("backend", ["cuda", "numba-cuda"])
def test_a_backend_of_a_gpu_that_is_not_there_is_one_line(evaluated, places, backend):
    asked = evaluated(places["mamba"], places["data"], "piqa", "--device", "cuda", "--backend", backend)
    assert asked == "mambalab: device 'cuda' asked for, but torch sees no CUDA devices"
    assert f"backend {backend!r} runs on cuda" in evaluated(
        places["mamba"], places["data"], "piqa", "--backend", backend
    )


@pytest.mark.usefixtures("a_gpu")
@pytest.mark.parametrize("device", ["cuda:1", "tpu", "cuda:x", ""])
def test_a_device_that_is_not_there_is_refused_by_name(device):
    with pytest.raises(ValueError, match=repr(device)):
        resolve_device(device)
