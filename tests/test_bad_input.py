"""A wrong name, value, place or run given to the command: one clear line that names it, status 2, nothing written."""

from __future__ import annotations

import json
import resource
from contextlib import contextmanager
from pathlib import Path

import pytest
from command import copied, files, mambalab, process, refused
from mambalab.harness import cli
from mambalab.harness.lm import MambaLM

EVAL = "eval {mamba} --data {data} --tasks piqa --limit 1 --out {out}"
INIT = "init {out} --d-model 8 --n-layer 1"

# The command, and what its one line must say. {tmp} has a file called "file" and an empty folder called "empty".
CASES = {
    "a name near a model's": ("eval mamba-130", "unknown model 'mamba-130'; nearest: mamba-130m"),
    "a name near no model's": ("eval zzz", "unknown model 'zzz'; known: mamba-130m"),
    "the second of two models": (f"{EVAL} {{tmp}}/none/here", "no such checkpoint folder: {tmp}/none/here"),
    "a file for a checkpoint": ("eval {mamba}/config.json", "{mamba}/config.json is a file; name the folder"),
    "a folder without config.json": ("eval {tmp}/empty", "{tmp}/empty: no config.json here"),
    "a hub id while offline": ("eval nobody/such-mamba --offline", "nobody/such-mamba: ", "offline"),
    "a revision while offline": ("eval nobody/such-mamba --offline --revision v9", "revision v9"),
    "a name near a task's": (f"{EVAL} --tasks piqa,hellaswagg", "unknown task 'hellaswagg'; nearest: hellaswag"),
    "a name near no task's": (f"{EVAL} --tasks qqqq", "unknown task 'qqqq'"),
    "a task named twice": (f"{EVAL} --tasks piqa,piqa", "a task is named twice in piqa, piqa"),
    "no task between commas": (f"{EVAL} --tasks ,", "no task is named in --tasks ','"),
    "an empty list of tasks": ("eval {mamba} --tasks ''", "no task is named in --tasks ''"),
    "an unknown dtype": (f"{EVAL} --dtype float23", "unknown dtype 'float23'; known: auto, float32"),
    "a dtype too wide": (f"{EVAL} --dtype float64", "unknown dtype 'float64'"),
    "an unknown device": (f"{EVAL} --device tpu", "unknown device 'tpu'; known: cpu, cuda"),
    "a device of torch's that is not ours": (f"{EVAL} --device meta", "unknown device 'meta'"),
    "a device that is not there": (f"{EVAL} --device cuda:99", "device 'cuda:99' asked for"),
    "a name near a backend's": (f"{EVAL} --backend referense", "unknown backend 'referense'; nearest: reference"),
    "a backend for a transformers model": ("eval {neox} --backend reference", "{neox} is no Mamba", "reference"),
    "an unknown parity": (f"{EVAL} --parity fp8", "unknown parity 'fp8'; known: fp16"),
    "a parity against the dtype": (f"{EVAL} --parity fp16 --dtype float32", "parity fp16", "'float32' contradicts it"),
    "a limit of nothing": (f"{EVAL} --limit 0", "limit must be at least 1, not 0"),
    "a limit that is no number": (f"{EVAL} --limit many", "'--limit': 'many' is not a valid integer"),
    "fewer than no examples": (f"{EVAL} --num-fewshot -1", "num_fewshot must be at least 0, not -1"),
    "more examples than there are": (f"{EVAL} --num-fewshot 999", "piqa: num_fewshot is 999, but it has 5 examples"),
    "no length": (f"{EVAL} --max-length 0", "max_length must be at least 1, not 0"),
    "no tokens in a batch": (f"{EVAL} --batch-tokens 0", "batch_tokens must be at least 1, not 0"),
    "a seed too large": (f"{EVAL} --seed {2**70}", f"seed must be from 0 to 2^64 - 1, not {2**70}"),
    "no data folder": (f"{EVAL} --data {{tmp}}/none", "no data directory at {tmp}/none"),
    "a file for a data folder": (f"{EVAL} --data {{tmp}}/file", "no data directory at {tmp}/file"),
    "an empty data folder": (f"{EVAL} --data {{tmp}}/empty", "no 'baber/piqa' under {tmp}/empty; it holds: no data"),
    "a task that the data folder lacks": (f"{EVAL} --tasks boolq", "task boolq or its documents in {data}", "Offline"),
    "no tokenizer in the folder named": (f"{EVAL} --tokenizer {{tmp}}/empty", "no tokenizer in {tmp}/empty"),
    "no tokenizer at the path named": (f"{EVAL} --tokenizer {{tmp}}/none.json", "no tokenizer at {tmp}/none.json"),
    "results under a file": (f"{EVAL} --out {{tmp}}/file/runs", "can't write in {tmp}/file/runs: Not a directory"),
    "results in a device": (f"{EVAL} --out /dev/full", "can't write in /dev/full"),
    "results where nobody may write": (f"{EVAL} --out /proc/runs", "can't write in /proc/runs"),
    "a demo under a file": ("demo --out {tmp}/file/demo", "{tmp}/file/demo"),
    "parity of what is no Mamba": ("parity {neox} --data {data} --out {out}", "{neox} is no Mamba"),
    "parity in another dtype": ("parity {mamba} --dtype float16 --out {out}", "compared in float32, not in float16"),
    "parity under a file": ("parity {mamba} --data {data} --out {tmp}/file/p", "can't write in {tmp}/file/p"),
    "parity of an empty text": ("parity '' --out {out}", "'CHECKPOINT': an empty text"),
    "a report on an empty text": ("report {run} ''", "'RUN...': an empty text"),
    "a report on nothing": ("report {tmp}/none", "no file {tmp}/none"),
    "a report on an empty folder": ("report {tmp}/empty", "{tmp}/empty is not a run"),
    "a report on a checkpoint": ("report {mamba}", "{mamba} is not a run"),
    "a report on a device without end": ("report /dev/zero", "can't read /dev/zero: a device, which may have no end"),
    "a report on some file": ("report {mamba}/config.json", "{mamba}/config.json is not an lm-eval results file"),
    "a pair with a stranger": ("report {run} --pair mamba stranger", "no run of 'stranger'; there are mamba"),
    "half a pair": ("report {run} --pair mamba", "Option '--pair' requires 2 arguments"),
    "a report under a file": ("report {run} --out {tmp}/file/report", "{tmp}/file/report: Not a directory"),
    "a report in a device": ("report {run} --out /dev/full", "/dev/full: File exists"),
    "an unknown data set to fetch": ("fetch {out} --tasks arc_eazy", "unknown task 'arc_eazy'; nearest: arc_easy"),
    "nothing to fetch": ("fetch {out} --tasks ''", "no task is named in --tasks ''"),
    "fetching into an empty text": ("fetch ''", "'DIRECTORY': an empty text"),
    "fetching into a file": ("fetch {tmp}/file", "can't write in {tmp}/file"),
    "converting an empty text": ("convert '' {out} --layout hf", "'SOURCE': an empty text"),
    "converting into an empty text": ("convert {mamba} '' --layout hf", "'DESTINATION': an empty text"),
    "converting onto a checkpoint": ("convert {mamba} {neox} --layout hf", "{neox} is not empty; name a new folder"),
    "converting onto itself": ("convert {mamba} {mamba} --layout mamba_ssm", "{mamba} is not empty"),
    "converting what is no Mamba": ("convert {neox} {out} --layout hf", "{neox}/config.json: a gpt_neox model"),
    "converting to an unknown layout": ("convert {mamba} {out} --layout gguf", "'--layout': 'gguf' is not one of"),
    "converting to no layout": ("convert {mamba} {out}", "Missing option '--layout'"),
    "converting under a file": ("convert {mamba} {tmp}/file/c --layout hf", "can't write in {tmp}/file/c"),
    "a model in an empty text": ("init '' --like mamba-130m", "'DESTINATION': an empty text"),
    "no shape": ("init {out}", "name a shape: --like NAME, or --d-model and --n-layer"),
    "half a shape": ("init {out} --d-model 8", "name a shape: --like NAME, or --d-model and --n-layer"),
    "a shape like a near name": ("init {out} --like mamba-13", "unknown model 'mamba-13'; nearest: mamba-130m"),
    "a shape of another family": ("init {out} --like pythia-70m", "pythia-70m is no Mamba"),
    "no channels": (f"{INIT} --d-model 0", "d_model must be a positive integer, not 0"),
    "less than no layers": (f"{INIT} --n-layer -1", "n_layer must be a positive integer, not -1"),
    "a width that is no number": (f"{INIT} --d-model wide", "'--d-model': 'wide' is not a valid integer"),
    "no vocabulary": (f"{INIT} --vocab-size 0", "vocab_size must be a positive integer, not 0"),
    "more channels than integers": (f"{INIT} --d-model {10**20}", f"d_model must be less than 2^31, not {10**20}"),
    "more parameters than memory": (f"{INIT} --d-model {2**30}", "no memory for 7,", "parameters"),
    "more layers than memory": (f"{INIT} --n-layer {2**31 - 1}", "no memory for ", "parameters: here are "),
    "a name without end": (f"eval {'x' * 5000}", "xxx … xxx", "xxx: File name too long"),
    "a number without end": (f"{EVAL} --limit {'1' * 5000}", f"'--limit': '{'1' * 400}", "1 … 1"),
    "a device without end": (f"{EVAL} --device cuda:{'9' * 30}", "unknown device 'cuda:999"),
    "a seed below 0": (f"{INIT} --seed -1", "'--seed': -1 is not in the range"),
    "random weights over a checkpoint": ("init {mamba} --d-model 8 --n-layer 1", "{mamba} is not empty"),
    "an unknown command": ("evaluate {mamba}", "No such command 'evaluate'"),
    "an unknown option": (f"{EVAL} --nonsense", "No such option '--nonsense'"),
    "an option without its value": ("eval {mamba} --dtype", "Option '--dtype' requires an argument"),
    "no model": ("eval", "Missing argument 'MODEL...'"),
    "no run": ("report", "Missing argument 'RUN...'"),
    "an argument too many": ("models mamba-130m", "Got unexpected extra argument (mamba-130m)"),
}


@pytest.fixture(scope="module")
def run(places, tmp_path_factory) -> Path:
    """One finished run of the small Mamba."""
    folder = tmp_path_factory.mktemp("runs")
    arguments = ("--data", places["data"], "--tasks", "piqa", "--limit", 4, "--out", folder)
    assert mambalab("eval", places["mamba"], *arguments).status == 0
    return next(folder.iterdir())


@pytest.fixture
def known(places, run, tmp_path) -> dict[str, Path]:
    """What the braces in a case stand for."""
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    return places | {"run": run, "tmp": tmp_path, "out": tmp_path / "out"}


@pytest.mark.parametrize(("command", "says"), [(c, s) for c, *s in CASES.values()], ids=CASES)
def test_a_wrong_argument_is_one_clear_line(known, command, says):
    before = files(known["tmp"]), files(known["mamba"]), files(known["neox"])
    arguments = [part.format(**known) for part in command.replace("''", "EMPTY").split()]
    line = refused(mambalab(*("" if argument == "EMPTY" else argument for argument in arguments)))
    for part in says:
        assert part.format(**known) in line
    assert (files(known["tmp"]), files(known["mamba"]), files(known["neox"])) == before


def _edit(name, change):
    return lambda run: (run / name).write_text(change((run / name).read_text()))


def _first_sample(**values):
    def change(text: str) -> str:
        first, rest = text.split("\n", 1)
        return json.dumps(json.loads(first) | values) + "\n" + rest

    return change


SPOILT_RUNS = {
    "no records": (lambda run: (run / "records.jsonl").unlink(), "is not a finished run"),
    "truncated records": (_edit("records.jsonl", lambda text: text[:-40]), "records.jsonl:2: not JSON"),
    "a record without its backend": (
        _edit("records.jsonl", lambda text: text.replace('"backend"', '"backhand"')),
        "records.jsonl:1: provenance must name the backend",
    ),
    "an edited sample": (_edit("samples/piqa.jsonl", _first_sample(acc=7.0)), "piqa acc is recorded as"),
    "a sample taken out": (_edit("samples/piqa.jsonl", lambda text: text.split("\n", 1)[1]), "its samples hold 3"),
    "a broken run.json": (_edit("run.json", lambda text: text[:9]), "run.json: not JSON"),
    "another model's name": (_edit("run.json", lambda text: '{"model": "other"}'), "a run of other holds records of"),
    "records of bytes": (lambda run: (run / "records.jsonl").write_bytes(b"\xff\xfe"), "records.jsonl:1: not JSON"),
}


@pytest.mark.parametrize(("spoil", "says"), SPOILT_RUNS.values(), ids=SPOILT_RUNS)
def test_a_spoilt_run_is_one_clear_line(run, tmp_path, spoil, says):
    spoilt = copied(run, tmp_path / "run", spoil)
    line = refused(mambalab("report", spoilt, "--out", tmp_path / "report"))
    assert says in line
    assert str(spoilt) in line
    assert not (tmp_path / "report").exists()


MODEL_ARGS = {
    "an unknown argument": ("pretrained={mamba},colour=red", "'colour'; known: pretrained, revision"),
    "no checkpoint": ("dtype=float32", "missing a required argument: 'pretrained'"),
    "a number for a checkpoint": ("pretrained=130", "unknown model '130'"),
    "a word for a number": (
        "pretrained={mamba},batch_tokens=many",
        "tokens must be an integer, at least 1, not 'many'",
    ),
    "a word for a seed": ("pretrained={mamba},seed=lucky", "seed must be an integer", "not 'lucky'"),
    "a number for a device": ("pretrained={mamba},device=0", "unknown device 0; known: cpu"),
    "a number for a backend": ("pretrained={mamba},backend=nan", "unknown backend 'nan'"),
    "a number for a dtype": ("pretrained={mamba},dtype=16", "unknown dtype 16"),
}


@pytest.mark.parametrize(("given", "says"), [(g, s) for g, *s in MODEL_ARGS.values()], ids=MODEL_ARGS)
def test_wrong_model_args_of_lm_eval_are_one_clear_line(places, unchecked, given, says):
    with pytest.raises(ValueError) as caught:  # noqa: PT011  (each case says what)
        MambaLM.create_from_arg_string(given.format(**places), {"device": None, "batch_size": 1})
    assert "\n" not in str(caught.value)
    assert all(part in str(caught.value) for part in says)


@contextmanager
def _largest_file(size: int):
    """Every file may grow to this many bytes, as on a disk that is nearly full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("command", "culprit"),
    {
        "init {out} --d-model 32 --n-layer 2 --vocab-size 1024": "{out}/pytorch_model.bin",
        "init {out} --d-model 32 --n-layer 2 --vocab-size 1024 --layout hf": "{out}/model.safetensors",
        "report {run} --out {out}": "{out}/report.md: File too large",
    }.items(),
)
def test_a_full_disk_is_one_clear_line_and_leaves_no_part_of_a_file(known, command, culprit):
    arguments = command.format(**known).split()
    with _largest_file(500):
        answer = mambalab(*arguments)
    assert culprit.format(**known) in refused(answer)
    assert files(known["out"]) == {}


def test_our_own_mistakes_keep_their_traceback(monkeypatch):
    def broken(*_, **__):
        raise TypeError("ours")

    monkeypatch.setattr("mambalab.harness.doctor.diagnose", broken)
    with pytest.raises(TypeError, match="ours"):
        cli.main(["doctor"])


def test_a_traceback_is_shown_where_it_is_asked_for(monkeypatch):
    monkeypatch.setenv("MAMBALAB_TRACEBACK", "1")
    with pytest.raises(ValueError, match="unknown model 'mamba-130'"):
        mambalab("eval", "mamba-130")


PROCESSES = {
    "a near name": ("eval mamba-130", "unknown model 'mamba-130'"),
    "a hub id": ("eval state-spaces/mamba-130m --data {data}", "state-spaces/mamba-130m: ", "the hub"),
    "no tokenizer in an empty cache": ("eval {hf} --data {data} --tokenizer none/such", "tokenizer at none/such"),
    "a data set out of reach": ("fetch {out} --tasks piqa", "can't read baber/piqa from the hub", "copy DIR here"),
}


@pytest.mark.parametrize(("command", "says"), [(c, s) for c, *s in PROCESSES.values()], ids=PROCESSES)
def test_a_process_of_its_own_says_the_same(known, command, says):
    answer = process(*command.format(**known).split(), folder=known["tmp"])
    assert answer.status == 2
    assert "Traceback" not in answer.err
    # Beside its log lines.
    (line,) = [line for line in answer.err.splitlines() if line.startswith("mambalab: ")]
    assert all(part.format(**known) in line for part in says)
    assert files(known["out"]) == {}
