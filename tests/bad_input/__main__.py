"""The whole campaign as a command: draw, judge, count, and write the record and its table; status 1 for any defect."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections import Counter
from pathlib import Path

from .engine import DEFECT, OUTCOMES, Try, campaign, count, watched

# Before any library looks: nothing here may ask the network.
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}

TITLE = "Bad input, tried and judged"


def main(arguments: list[str]) -> int:
    from mambalab.reports import record

    from .kinds import KINDS

    options = _options(arguments)
    records, defects = [], 0
    for kind in KINDS:
        if options.kind and kind.name not in options.kind:
            continue
        with watched(kind) as judge:
            tries = campaign(kind, judge, seed=options.seed, draws=options.draws or kind.draws)
        found = [one for one in tries if one.verdict.outcome == DEFECT]
        defects += len(found)
        print(f"{kind.name}: {len(tries)} distinct inputs, {len(found)} defects", file=sys.stderr, flush=True)
        for one in found:
            print(f"  {one.sort}: {one.verdict.detail[:600]}\n    {str(one.case)[:600]}", file=sys.stderr, flush=True)
        records.append(_record(kind.name, tries, options.seed, arguments))
    if options.out:
        record.write(options.out / "records.jsonl", records)
        _write_table(options.out)
    return 1 if defects else 0


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bad_input", description=__doc__)
    parser.add_argument("--out", type=Path, help="folder for records.jsonl and table.md; default: neither")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--draws", type=int, help="cases of each sort; default: each kind's own number")
    parser.add_argument("--kind", action="append", help="only this kind; may be repeated")
    return parser.parse_args(arguments)


def _record(kind: str, tries: list[Try], seed: int, arguments: list[str]):
    from mambalab.ext.backends import chosen, kernel_digest
    from mambalab.harness.provenance import provenance
    from mambalab.reports.record import Record

    outcomes = Counter(one.verdict.outcome for one in tries)
    command = shlex.join(["python", "-m", "bad_input", *arguments])
    backend = chosen("cpu")
    return Record(
        experiment="bad-input",
        model="mambalab",
        task=kind,
        metric="distinct inputs",
        value=len(tries),
        n=len(tries),
        seed=seed,
        setting={"outcomes": {name: outcomes[name] for name in OUTCOMES}, "sorts": count(tries)},
        provenance=provenance(
            backend=backend, kernel=kernel_digest(backend), device="cpu", dtype="every dtype", command=command
        ),
    )


def _write_table(out: Path) -> None:
    from mambalab.reports.regenerate import regenerate

    table = out / "table.md"
    if not table.exists():
        table.write_text(
            f"# {TITLE}\n\n    make bad-input-campaign\n\n<!-- report from records.jsonl -->\n<!-- end -->\n"
        )
    table.write_text(regenerate(table))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
