"""Two small task files with the requests that are hardest to go on with: sampled texts and rolling windows."""

from __future__ import annotations

import json
from pathlib import Path

SAMPLED = """
task: own_sampled
dataset_path: json
dataset_kwargs: {data_files: {test: documents.jsonl}}
output_type: generate_until
test_split: test
doc_to_text: "{{text}}"
doc_to_target: "{{text}}"
repeats: 8
generation_kwargs: {until: ["\\u0001"], max_gen_toks: 3, do_sample: true, temperature: 1.5}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
ROLLING = """
task: own_rolling
dataset_path: json
dataset_kwargs: {data_files: {test: documents.jsonl}}
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: byte_perplexity}]
"""
WORDS = ["The crew lifts the boat", "A lamp stood on the long table", "Nobody saw the sea"]


def write_tasks(folder: Path) -> list[Path]:
    """Write the task files and their documents; the sampled one comes first."""
    folder.mkdir(exist_ok=True)
    (folder / "documents.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in WORDS))
    paths = [folder / "sampled.yaml", folder / "rolling.yaml"]
    for path, text in zip(paths, (SAMPLED, ROLLING), strict=True):
        path.write_text(text)
    return paths
