"""A killed evaluation goes on and ends in the same bytes; a run directory is one process's; failures leave nothing."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from command import bytes_changed, copied, files, mambalab, refused
from lm_eval.api.instance import Instance
from mambalab.harness.answers import Answers
from mambalab.harness.lm import MambaLM
from mambalab.harness.store import folder, held, write_text
from mambalab.harness.transformers_lm import HFLM, TransformersLM
from resume_tasks import WORDS, write_tasks

# Two models, 7 files each, records.jsonl the last of them.
FAULTS = [("append", 2), ("rename", 2), ("rename", 7), ("renamed", 7), ("append", 2)]


def drive(arguments: list[Any], faults: list[tuple[str, str, int]], cwd: Path) -> list[int]:
    """The exit statuses of one command, started again and again with a fault each."""
    paths = [str(Path(path).resolve()) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    # Without a PATH there is no git: a commit made meanwhile would be recorded.
    alone = {"PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PATH": ""}
    command = [sys.executable, Path(__file__).with_name("faulty_command.py")]
    given = [json.dumps([str(argument) for argument in arguments]), json.dumps(faults)]
    done = subprocess.run(
        [*command, *given], env=os.environ | alone, cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return [int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("STATUS")]


def results(out: Path) -> dict[str, bytes]:
    """Every file of the runs by name, hidden ones too, but for the one that holds times."""
    return {name: (out / name).read_bytes() for name in files(out) if Path(name).name != "times.json"}


def test_a_killed_evaluation_ends_in_the_bytes_of_an_undisturbed_one(places, tmp_path):
    own = ",".join(map(str, write_tasks(tmp_path)))
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    arguments = ["eval", places["mamba"], places["neox"], "--data", places["data"], "--limit", 2, "--out", "runs"]
    arguments += ["--tasks", f"piqa,{own}", "--batch-tokens", 256]
    faults = [("a", "none", 0), *(("b", *fault) for fault in FAULTS), ("b", "none", 0)]
    assert drive(arguments, faults, tmp_path) == [0, *[-signal.SIGKILL] * len(FAULTS), 0]
    undisturbed, disturbed = results(tmp_path / "a" / "runs"), results(tmp_path / "b" / "runs")
    assert len(undisturbed) == 2 * 6
    assert disturbed.keys() == undisturbed.keys()
    assert {name for name in undisturbed if disturbed[name] != undisturbed[name]} == set()
    batches = [json.loads(path.read_text())["batches"] for path in (tmp_path / "b").rglob("times.json")]
    assert any(count["from an earlier process"] > 1 for count in batches)


def usual(places, out: Path, *more: object):
    return mambalab(
        "eval", places["mamba"], "--data", places["data"], "--tasks", "piqa", "--limit", 2, "--out", out, *more
    )


def test_a_second_process_on_a_run_says_so_at_once_and_another_model_may_go_ahead(places, tmp_path):
    assert usual(places, tmp_path).status == 0
    (run,) = tmp_path.iterdir()
    before = files(tmp_path)
    with held(run):
        assert f"{run}: another process is at work on this run" in refused(usual(places, tmp_path))
        assert usual(places, tmp_path, "--seed", 7).status == 0
    assert {name: size for name, size in files(tmp_path).items() if name.startswith(run.name)} == before
    assert usual(places, tmp_path).status == 0


def test_the_lock_ends_with_the_process_that_is_killed(tmp_path):
    code = (
        "import sys\nfrom pathlib import Path\nfrom mambalab.harness.store import held\n"
        "with held(Path(sys.argv[1])):\n    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    run = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, "-c", code, run], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match="another process is at work"), held(run):
            pass
        other.kill()
    with held(run):
        pass
    assert list(run.iterdir()) == []


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with held(tmp_path / "run"):
        assert "can't be locked" in caplog.text


def test_a_system_without_locks_is_said(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with held(tmp_path / "run"):
        assert (tmp_path / "run").is_dir()
    assert "can't be locked (no flock here)" in caplog.text


def test_a_folder_made_for_what_fails_is_taken_away_and_one_with_a_file_stays(tmp_path):
    for guard in (folder, held):
        with pytest.raises(RuntimeError, match="fails"), guard(tmp_path / "a" / "b"):
            raise RuntimeError("fails")
        assert list(tmp_path.iterdir()) == []
    with contextlib.suppress(RuntimeError), held(tmp_path / "a" / "b"):
        write_text(tmp_path / "a" / "b" / "c", "kept")
        raise RuntimeError("fails")
    assert files(tmp_path) == {"a/b/c": 4}


FAILING = {
    "init": "init {out} --d-model 32 --n-layer 2 --vocab-size 100000000000",
    "convert": "convert {broken} {out} --layout hf",
    "eval": "eval {broken} --data {data} --tasks piqa --out {out}",
    "eval of nothing": "eval {mamba} --data {data} --tokenizer ./nowhere --out {out}",
}


@pytest.mark.parametrize("command", FAILING.values(), ids=FAILING)
def test_a_command_that_fails_leaves_no_folder(places, tmp_path, command):
    broken = copied(places["mamba"], tmp_path / "broken", bytes_changed("pytorch_model.bin", lambda b: b[:-900]))
    line = command.format(out=tmp_path / "new" / "out", broken=broken, **places)
    refused(mambalab(*line.split()))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["mamba", "hf", "neox"])
def test_a_broken_later_model_is_found_before_the_first_is_evaluated(places, tmp_path, name):
    def halve(place: Path) -> None:
        (weights,) = [path for path in place.iterdir() if path.suffix in (".bin", ".safetensors")]
        weights.write_bytes(weights.read_bytes()[:-900])

    broken = copied(places[name], tmp_path / "broken", halve)
    line = refused(mambalab("eval", places["mamba"], broken, "--data", places["data"], "--out", tmp_path / "out"))
    assert str(broken) in line
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_named_twice_is_refused(places, tmp_path):
    again = tmp_path / "again"
    again.symlink_to(places["mamba"])
    line = refused(mambalab("eval", places["mamba"], again, "--data", places["data"], "--out", tmp_path / "out"))
    assert f"{again} is the same checkpoint as {places['mamba']}: name it once" in line


def test_what_a_kill_left_behind_goes_with_the_finished_run(places, tmp_path):
    assert usual(places, tmp_path).status == 0
    (run,) = tmp_path.iterdir()
    before = results(tmp_path)
    left = [run / ".records.jsonl.0123abcd.tmp", run / "samples" / ".piqa.jsonl.0123abcd.tmp", run / "answers-1.jsonl"]
    for path in left:
        path.write_text("left")
    assert usual(places, tmp_path).status == 0
    assert results(tmp_path) == before


def test_a_full_output_is_one_line_and_the_run_is_there(places, tmp_path):
    arguments = ["eval", places["mamba"], "--data", places["data"], "--tasks", "piqa", "--limit", 1, "--out", tmp_path]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "mambalab.harness", *map(str, arguments)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == "mambalab: writing to the output: No space left on device"
    assert mambalab(*arguments).status == 0


REQUESTS = [(c, f" {word}") for c in ("The crew lifts", "A lamp", "A lamp") for word in ("boats", "it", "sea at night")]


def adapters(places) -> dict[str, Any]:
    shared: dict[str, Any] = {"max_length": 64}
    neox = {"tokenizer": None, "dtype": torch.float32, "device": "cpu", "parity": None, "offline": True}
    return {
        "mamba": lambda: MambaLM(str(places["mamba"]), device="cpu", batch_tokens=16, **shared),
        "neox": lambda: TransformersLM(str(places["neox"]), batch_tokens=64, **shared, **neox),
    }


def ask(lm: Any) -> list[Any]:
    sampling = {"until": [], "max_gen_toks": 3, "do_sample": True, "temperature": 1.5}
    pairs = [Instance("loglikelihood", {}, pair, 0) for pair in REQUESTS]
    texts = [Instance("loglikelihood_rolling", {}, (" ".join(WORDS) * k,), 0) for k in (1, 3)]
    prompts = [Instance("generate_until", {}, (text, sampling), 0) for text in WORDS * 4]
    return [lm.loglikelihood(pairs), lm.loglikelihood_rolling(texts), lm.generate_until(prompts)]


class Stopped(Exception):
    """The process ends here."""


@pytest.mark.parametrize("name", ["mamba", "neox"])
def test_answers_taken_over_at_any_batch_are_those_of_one_go(places, tmp_path, unchecked, name, monkeypatch):
    monkeypatch.setattr("mambalab.harness.lm.GENERATION_ROWS", 4)
    make = adapters(places)[name]
    whole, found, stops = ask(make()), None, 0
    append = Answers._append
    while found is None:
        lm, calls = make(), count()

        def stop_at_the_third(store, line, calls=calls):
            append(store, line)
            if next(calls) == 2:
                raise Stopped

        monkeypatch.setattr(Answers, "_append", stop_at_the_third)
        with contextlib.suppress(Stopped), Answers(tmp_path / "answers", "key") as lm.recall:
            stops += 1
            found = ask(lm)
    assert found == whole
    assert stops >= 3


def test_draws_differ_from_batch_to_batch_and_from_seed_to_seed(places, unchecked, monkeypatch):
    sampling = {"until": [], "max_gen_toks": 8, "do_sample": True, "temperature": 2.0}
    prompts = [Instance("generate_until", {}, (WORDS[0], sampling), 0) for _ in range(8)]
    monkeypatch.setattr("mambalab.harness.lm.GENERATION_ROWS", 4)
    drawn = [MambaLM(str(places["mamba"]), device="cpu", seed=seed).generate_until(prompts) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0][:4] != drawn[0][4:]


def test_the_batches_of_the_transformers_adapter_are_lm_evals_own(places, unchecked):
    lm = adapters(places)["neox"]()
    pairs = [Instance("loglikelihood", {}, pair, 0) for pair in REQUESTS]
    ours = lm.loglikelihood(pairs)
    requests = [(pair, *lm._encode_pair(*pair)) for pair in REQUESTS]
    assert ours == HFLM._loglikelihood_tokens(lm, requests, disable_tqdm=True)
