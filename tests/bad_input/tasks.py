"""Bad task files and data: what an evaluation makes of them."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from command import MINIATURE, TOKENIZER, Answer, files, mambalab
from datasets import config
from mambalab.models import checkpoint
from mambalab.reports import record
from models_cases import tiny

from .engine import DEFECT, RIGHT, Verdict, said
from .task_damage import DAMAGES

LIMIT = 3
CHOICE = """
task: choice
dataset_path: json
dataset_kwargs: {data_files: {test: documents.jsonl, train: [documents.jsonl]}}
output_type: multiple_choice
test_split: test
fewshot_split: train
num_fewshot: 1
doc_to_text: "{{text}}"
doc_to_choice: ["{{text}} again", " never"]
doc_to_target: 1
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
ROLLING = """
task: rolling
dataset_path: json
dataset_kwargs: {data_files: {test: documents.jsonl}}
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: byte_perplexity}, {metric: word_perplexity}]
"""
GENERATION = """
task: generation
dataset_path: json
dataset_kwargs: {data_files: {test: documents.jsonl}}
output_type: generate_until
test_split: test
doc_to_text: "{{text}}"
doc_to_target: "{{other}}"
generation_kwargs: {until: ["."], max_gen_toks: 3}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
FILES = {"choice": CHOICE, "rolling": ROLLING, "generation": GENERATION}
DOCUMENTS = [
    {"text": text, "other": "a lamp", "n": i} for i, text in enumerate(("A crew lifts", "The sea", "No one", "We"))
]
DATA = {
    "piqa": "baber/piqa/validation.jsonl",
    "arc_easy": "allenai/ai2_arc/ARC-Easy/test.jsonl",
    "hellaswag": "Rowan/hellaswag/validation.jsonl",
    "winogrande": "allenai/winogrande/winogrande_xl/validation.jsonl",
    "lambada_openai": "EleutherAI/lambada_openai/test.jsonl",
}


@dataclass(frozen=True, kw_only=True)
class TaskCase:
    """A task (a file of ours, or one of the six), and what is done to its files: (damage, file, how)."""

    task: str
    damages: tuple[tuple[str, str, Any], ...]


def prepare(folder: Path) -> None:
    """A small model, three task files with their documents, and the miniature data."""
    model = folder / "model"
    checkpoint.save(tiny(vocab_size=1024, d_model=8, n_layer=1, d_state=3), model)
    shutil.copy(TOKENIZER, model)
    own = folder / "own"
    own.mkdir()
    for name, text in FILES.items():
        (own / f"{name}.yaml").write_text(text)
    (own / "documents.jsonl").write_text("".join(json.dumps(document) + "\n" for document in DOCUMENTS))
    shutil.copytree(MINIATURE, folder / "data")
    config.HF_DATASETS_CACHE = folder / "cache"


def judge(case: TaskCase, ground: Path) -> Verdict:
    """Damage a copy, evaluate with it, and hold the documents asked against an independent reading."""
    is_own = case.task in FILES
    folder, out = ground / "tried", ground / "out"
    for place in (folder, out):
        shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(ground / ("own" if is_own else "data"), folder)
    for name, file, how in case.damages:
        DAMAGES[name](folder, file, how)
    content = repr(case.task).encode() + _content(folder)
    where = ("--tasks", folder / f"{case.task}.yaml") if is_own else ("--tasks", case.task, "--data", folder)
    answer = mambalab("eval", ground / "model", *where, "--limit", LIMIT, "--out", out, "--offline")
    verdict = refusal_or(answer, out, content)
    if verdict is None:
        wrong = wrong_documents(case, folder, out)
        verdict = Verdict(DEFECT, wrong, content) if wrong else Verdict(RIGHT, "", content)
    return Verdict(DEFECT, "code beside the data was run", content) if (ground / "ran").exists() else verdict


def _content(folder: Path) -> bytes:
    return b"".join(path.name.encode() + path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def refusal_or(answer: Answer, out: Path, content: bytes) -> Verdict | None:
    """The verdict on a refusal that leaves nothing half done; None where the command ended well."""
    # Beside the log's and the bars of progress.
    lines = [line for line in answer.err.split("\n") if line and not re.match(r"mambalab\.|\r|.*\d%\|", line)]
    left = [name for name in (files(out) if out.is_dir() else ()) if name.endswith((".tmp", ".part"))]
    if left or "Traceback" in answer.err:
        return Verdict(DEFECT, f"left behind: {left} {answer.err[-800:]}", content)
    if answer.status == 0:
        return None
    if answer.status != 2 or len(lines) != 1 or not lines[0].startswith("mambalab: "):
        return Verdict(DEFECT, f"status {answer.status}, {len(lines)} lines: {answer.err[:800]}", content)
    if out.is_dir() and any(out.rglob("records.jsonl")):
        return Verdict(DEFECT, f"refused, with records: {lines[0][:800]}", content)
    return said(lines[0].removeprefix("mambalab: "), content=content)


def wrong_documents(case: TaskCase, folder: Path, out: Path) -> str | None:
    """How what was asked differs from what the files hold, or None."""
    (run,) = out.iterdir()
    records = record.read(run / "records.jsonl")
    samples = [
        json.loads(line) for path in (run / "samples").iterdir() for line in path.read_text().rstrip("\n").split("\n")
    ]
    name = "documents.jsonl" if case.task in FILES else DATA[case.task]
    if (folder / name).is_file() and name.endswith(".jsonl"):
        text = (folder / name).read_bytes().decode("utf-8-sig")
        lines = [line for line in text.split("\n") if line.strip()]
        if text.startswith("["):
            lines = [json.dumps(document) for document in json.loads(text)]
        asked = len({sample["doc_id"] for sample in samples})
        if asked != min(LIMIT, len(lines)):
            return f"{asked} documents asked of {len(lines)}"
        texts = [json.loads(line) for line in lines[:LIMIT]]
        wanted = {hashlib.sha256(json.dumps(t, indent=2, ensure_ascii=False).encode()).hexdigest() for t in texts}
        # HellaSwag's documents are made over before they are asked; lm-eval's digest is that of the whole document.
        if case.task in DATA and case.task != "hellaswag" and {sample["doc_hash"] for sample in samples} != wanted:
            return "other documents than the file's"
    return None if records else "no records"
