"""The benchmark of whole models: all sides compute the same, a wrong result prints no speed, memory is a process's."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace

import pytest
import torch
from command import mambalab, refused
from mambalab.harness import bench, bench_long, bench_model
from mambalab.harness.bench import OURS, LeftOut, RedCheck, Times
from mambalab.harness.bench_long import CARRIES, Alone, Asked, in_fresh_process
from mambalab.harness.bench_model import (
    BACKWARD,
    CASES,
    FORWARD,
    TRAINING,
    Candidate,
    Settings,
    check,
    draw,
    measure,
    run,
    why_not,
)
from mambalab.harness.bench_model_peers import PEERS, US, drawn, our_network
from mambalab.harness.bench_peers import Peer
from mambalab.models.registry import MambaConfig
from mambalab.reports import record, regenerate
from mambalab.reports.bench import notes
from mambalab.reports.tables import bench_table
from reports_cases import PROVENANCE

TINY = MambaConfig(d_model=8, n_layer=2, vocab_size=11, d_state=3, dt_rank=2, tie_embeddings=False)
TIED = replace(TINY, tie_embeddings=True)
WORKLOADS = [
    replace(workload, config=config, name="tiny", batch=2, length=7)
    for workload, config in ((TRAINING, TINY), (TRAINING, TIED), (FORWARD, TIED), (BACKWARD, TINY), (BACKWARD, TIED))
]
ROWS = (US, *PEERS)


def candidate(row, workload, model=None):
    """A row's network with the data of seed 0; skips where the row is not installed."""
    if reason := row.missing():
        pytest.skip(reason)
    tokens, labels = draw(workload, 0)
    network = row.load()(model or drawn(workload.config, 0))
    return Candidate(network=network, workload=workload, tokens=tokens, labels=labels)


def exact(workload):
    """What the definition makes of the same data in float64."""
    row = replace(US, load=lambda: lambda model: our_network(model, backend="reference", dtype=torch.float64))
    return candidate(row, workload).find()


def test_the_training_step_is_that_of_the_synthetic_set_up():
    assert TRAINING.config.n_parameters == 73_664
    assert (TRAINING.batch, TRAINING.length) == (8, 256)


def test_the_forward_pass_is_of_the_130m_shape():
    assert FORWARD.config.n_parameters == BACKWARD.config.n_parameters == 129_135_360
    assert (FORWARD.batch, FORWARD.length, FORWARD.config.padded_vocab_size) == (1, 512, 50280)


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda w: f"{w.metric}-{w.config.tie_embeddings}")
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_side_computes_what_the_definition_does(row, workload):
    wanted, found = exact(workload), candidate(row, workload)
    assert 0 < check(row.name, found, wanted) < 1e-5
    assert found.find().gradients.keys() == wanted.gradients.keys()
    assert bool(wanted.gradients) == workload.backward
    assert wanted.logits.shape == ((2, 16) if workload.last else (2, 7, 16))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_side_takes_the_same_training_steps(row):
    workload = WORKLOADS[0]
    ours, found = candidate(US, workload), candidate(row, workload)
    before = {name: weight.detach().clone() for name, weight in found.network.parameters.items()}
    for step in (ours.call(), found.call()):
        step()
        step()
    for name, weight in found.network.parameters.items():
        assert not torch.equal(weight, before[name]), name
        assert torch.allclose(weight, ours.network.parameters[name], atol=1e-5), name


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda w: w.metric)
def test_neither_a_check_nor_a_foretelling_call_changes_the_model(workload):
    found = candidate(PEERS[0], workload)
    before = {name: weight.detach().clone() for name, weight in found.network.parameters.items()}
    check("peer", found, exact(workload))
    why_not(PEERS[0], found, 60.0)
    assert all(torch.equal(weight, before[name]) for name, weight in found.network.parameters.items())
    assert all(weight.grad is None for weight in found.network.parameters.values())


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda w: w.metric)
def test_another_discretisation_fails_the_check(workload):
    wrong = drawn(workload.config, 0)
    for layer in wrong.layers:
        layer.mixer.discretisation = "zoh"
    with pytest.raises(RedCheck, match="relative error of the logits"):
        check(OURS, candidate(US, workload, wrong), exact(workload))


def test_a_wrong_gradient_fails_the_check_though_the_logits_are_right():
    workload = WORKLOADS[3]
    right = candidate(US, workload)

    def logits(tokens, last):
        found = right.network.logits(tokens, last)
        return found + 0.001 * (found - found.detach())

    wrong = replace(right, network=replace(right.network, logits=logits))
    with pytest.raises(RedCheck, match=r"gradient of \S+ 1.0e-03, at most 0.0001 is allowed"):
        check("peer", wrong, exact(workload))


def test_a_network_without_one_of_our_parameters_fails_the_check():
    found = candidate(US, WORKLOADS[3])
    fewer = {name: weight for name, weight in found.network.parameters.items() if not name.endswith(".D")}
    with pytest.raises(RedCheck, match="its parameters are not ours"):
        check("peer", replace(found, network=replace(found.network, parameters=fewer)), exact(WORKLOADS[3]))


def _peer(name, factor, **changes):
    """Our model with logits off by a factor."""

    def build(model):
        network = our_network(model)
        return replace(network, logits=lambda tokens, last: factor * network.logits(tokens, last))

    return Peer(name=name, timed="wrong", distribution=None, load=lambda: build, **changes)


def test_a_wrong_result_of_ours_prints_no_speed(monkeypatch):
    monkeypatch.setattr(bench_model, "US", _peer(OURS, 1.01))
    monkeypatch.setattr(bench, "interleave", lambda *a, **k: pytest.fail("timed after a red check"))
    with pytest.raises(RedCheck, match=r"tiny, 2 x 7, forward s: mambalab: relative error .* no speed is printed"):
        measure(WORKLOADS[2], Settings())


def _absent():
    raise ImportError("No module named 'absent'")


REASONS = {
    "not installed": (Peer(name="absent", timed="", distribution="absent", load=_absent), 60.0, "No module named"),
    "too slow": (_peer("slow", 1.0), 0.0, "one call would take about 0 s, over the limit of 0 s"),
    "wrong": (_peer("wrong", 1.5), 60.0, r"it fails its check \(wrong: relative error of the logits 5.0e-01"),
}


@pytest.mark.parametrize(("peer", "limit", "reason"), REASONS.values(), ids=REASONS)
def test_a_peer_that_is_left_out_says_why_under_the_table(monkeypatch, peer, limit, reason):
    monkeypatch.setattr(bench_model, "PEERS", (peer,))
    settings = Settings(peers=True, repeats=3, call_seconds=limit)
    made = list(measure(WORKLOADS[2], settings).records(settings, PROVENANCE))
    assert [r.model for r in made] == [OURS]
    (note,) = [note for note in notes(made) if "left out" in note]
    assert re.match(f"{peer.name} left out at tiny, 2 x 7 forward: {reason}", note)


def test_a_quadratic_backward_is_foretold_from_a_short_call(monkeypatch):
    monkeypatch.setattr(bench, "seconds", lambda call: 1.0)
    peer = _peer("peer", 1.0, growth=(1, 2))
    for workload, foretold in ((FORWARD, 10), (BACKWARD, 100)):
        long = replace(workload, config=TINY, length=10 * bench_model.SHORT)
        found = candidate(US, long)
        why_not(peer, found, float(foretold))
        with pytest.raises(LeftOut, match=f"about {foretold} s, over the limit of {foretold - 1} s"):
            why_not(peer, found, foretold - 1.0)


def test_a_rate_is_the_inverse_of_the_median_and_ratios_follow(monkeypatch):
    seconds = {OURS: (0.02, 0.05, 0.01), "peer": (1.0, 1.0, 2.0)}
    monkeypatch.setattr(
        bench, "interleave", lambda calls, *, repeats: {name: Times(seconds=seconds[name]) for name in calls}
    )
    monkeypatch.setattr(bench_model, "PEERS", (_peer("peer", 1.0),))
    settings = Settings(peers=True)
    for workload, values in ((WORKLOADS[0], (50.0, 1.0)), (WORKLOADS[2], (0.02, 1.0))):
        measured = measure(workload, settings)
        made = list(measured.records(settings, PROVENANCE))
        assert [r.value for r in made] == pytest.approx(values)
        (row,) = bench_table(made).to_dict("records")
        assert row["× peer"] == "50.0×"
        assert measured.line().endswith("peer 50x")
        assert f"tiny, 2 x 7 {workload.metric.rsplit(' ', 1)[0]}: {workload.what}." in notes(made)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"cases": ("trainings",)}, "unknown case 'trainings'; nearest: training"),
        ({"cases": ("x",)}, "unknown case 'x'; known: training, forward, long"),
        ({"cases": ()}, "not none"),
        ({"cases": ("long", "long")}, "each once"),
        ({"cases": ("long",), "backward": True}, "measured with the case forward"),
        ({"length": 0}, "length must be at least 1, not 0"),
        ({"repeats": 2}, "repeats must be at least 3, not 2"),
    ],
)
def test_bad_settings_are_refused_at_birth(changes, said):
    with pytest.raises(ValueError, match=said):
        Settings(**changes)


def asked(**changes):
    """A tiny long case."""
    return Asked(**{"config": asdict(TINY), "length": 300, "repeats": 1, "seed": 0, "chunk": 64, **changes})


def test_a_fresh_process_measures_its_own_memory_alone():
    ballast = torch.ones(2**28, dtype=torch.uint8).clone()
    now, most = bench_long.memory()
    found = in_fresh_process(asked(repeats=2))
    assert most >= now > len(ballast)
    assert 2**26 < found.before <= found.peak < most - len(ballast) // 2
    assert len(found.seconds) == 2
    assert 0 < found.error < bench_long.TOLERANCE


def test_a_process_that_fails_is_one_clear_line():
    with pytest.raises(ValueError, match=r"300 tokens: the process that read them ended with 1: .*'nowhere'") as caught:
        in_fresh_process(asked(backend="nowhere"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("backend", [None, *CARRIES.values()])
def test_chunks_are_held_against_one_pass_and_float64(backend):
    assert 0 < bench_long.check(TINY, 50, 0, backend) < 1e-6


def test_chunks_that_forget_their_state_are_red(monkeypatch):
    def forgetful(model, tokens, *, chunk):
        return model(tokens[:, -chunk:].long(), logits_at=torch.tensor([chunk - 1]))

    monkeypatch.setattr(bench_long, "run_in_chunks", torch.no_grad()(forgetful))
    with pytest.raises(RedCheck, match="chunks of 50 tokens differ from one pass: relative error of the logits"):
        bench_long.check(TINY, 50, 0, None)


def test_a_red_check_of_the_fresh_process_comes_back_as_one(monkeypatch):
    answer = {"returncode": 0, "stdout": json.dumps({"red": "chunks differ"}), "stderr": ""}
    monkeypatch.setattr(bench_long.subprocess, "run", lambda *a, **k: type("Done", (), answer))
    with pytest.raises(RedCheck, match="300 tokens: chunks differ; no speed is printed"):
        in_fresh_process(asked())


@pytest.mark.parametrize(("vocabulary", "size"), [(16, 1), (256, 1), (257, 4), (50280, 4)])
def test_tokens_are_kept_narrow(vocabulary, size):
    tokens = bench_long.draw(replace(TINY, vocab_size=vocabulary), 5000, 0)
    assert (tokens.element_size(), tokens.shape) == (size, (1, 5000))
    assert 0 <= int(tokens.min()) <= int(tokens.max()) < vocabulary


def test_peers_without_a_state_to_start_from_are_left_out_of_the_long_case(monkeypatch):
    told = []

    def fake(one):
        told.append((one.backend, one.length, one.repeats))
        return Alone(seconds=(2.0,) * one.repeats, peak=3 * 10**9, before=10**8, error=1e-7)

    monkeypatch.setattr(bench_long, "in_fresh_process", fake)
    length = 4 * bench_long.SHORT
    found = bench_long.measure(asked(length=length, repeats=3), "tiny", peers=True, call_seconds=8.0)
    assert told == [(None, length, 3), ("reference", bench_long.SHORT, 1), ("reference", length, 3)]
    assert found.absent == dict.fromkeys(("transformers", "mambapy"), bench_long.STATELESS)
    made = list(found.records(PROVENANCE))
    assert [(r.model, r.metric, r.value) for r in made] == [
        (OURS, "chunked forward s", 2.0),
        (OURS, "peak memory GB", 3.0),
        ("torch loop", "chunked forward s", 2.0),
        ("torch loop", "peak memory GB", 3.0),
    ]
    slow = bench_long.measure(asked(length=length, repeats=3), "tiny", peers=True, call_seconds=7.9)
    assert slow.absent["torch loop"] == "one call would take about 8 s, over the limit of 7.9 s"


def test_a_small_run_of_the_command_ends_in_records_and_a_table_that_follows_from_them(monkeypatch, tmp_path):
    for name, workload in (("TRAINING", WORKLOADS[0]), ("FORWARD", WORKLOADS[2]), ("BACKWARD", WORKLOADS[4])):
        monkeypatch.setattr(bench_model, name, workload)
    monkeypatch.setattr(bench_model, "SMALL", TINY)
    monkeypatch.setattr(bench_long, "in_fresh_process", bench_long.alone)
    # One call of each side a round, however short.
    monkeypatch.setattr(bench, "ROUND_SECONDS", 0.0)
    arguments = ("--backward", "--peers", "--length", 200, "--repeats", 3, "--out", tmp_path)
    answer = mambalab("bench", "model", *arguments)
    assert answer.status == 0
    made = record.read(tmp_path / "records.jsonl")
    metrics = {workload.metric for workload in (TRAINING, FORWARD, BACKWARD)} | set(bench_long.METRICS)
    assert {r.metric for r in made if r.model == OURS} == metrics
    assert {r.model for r in made} == {row.name for row in ROWS if not row.missing()}
    assert {r.experiment for r in made} == {"bench-model"}
    assert len([line for line in answer.err.splitlines() if line.startswith(("tiny", "2 layers"))]) == 4
    regenerate.check(tmp_path / "table.md")
    assert regenerate.unexplained(tmp_path / "table.md") == []


def test_only_what_is_asked_for_is_run(monkeypatch):
    monkeypatch.setattr(bench_model, "measure", lambda *a: pytest.fail("not asked for"))
    monkeypatch.setattr(bench_long, "in_fresh_process", lambda one: Alone(seconds=(1.0,), peak=2, before=1, error=0.0))
    assert {r.metric for r in run(Settings(cases=("long",), length=200))} == set(bench_long.METRICS)
    assert [w.metric for w in Settings(cases=("forward",)).workloads()] == [FORWARD.metric]
    assert [w.metric for w in Settings(cases=CASES, backward=True).workloads()] == [
        TRAINING.metric,
        FORWARD.metric,
        BACKWARD.metric,
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--case", "traning"), "unknown case 'traning'; nearest: training"),
        (("--case", "long", "--backward"), "a backward pass is measured with the case forward"),
        (("--length", 0), "length must be at least 1"),
        (("--length", "many"), "not a valid integer"),
        (("--device", "cuda"), "'cuda' is not 'cpu'"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line_and_status_2(arguments, said, tmp_path):
    out = tmp_path / "out"
    assert said in refused(mambalab("bench", "model", *arguments, "--out", out))
    assert not out.exists()
