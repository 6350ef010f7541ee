"""`mambalab demo`: two small random checkpoints on the bundled miniature tasks, a trained one at up to 2^20 tokens."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers import models as tokenizer_models

END_OF_TEXT = "<|endoftext|>"
VOCAB_SIZE = 1024
SEED = 0
MINIATURE = Path(__file__).parent / "miniature"
# Where it was measured; of all results, the wheel brings these four files alone.
TRAINED = Path(__file__).parents[1] / "reports" / "results" / "induction-heads" / "seed-0"
# Sequences of a length: 2^20 tokens of them, but no fewer than 4 and no more than 256.
PLAN = MappingProxyType({2**e: max(4, min(256, 2 ** (20 - e))) for e in range(6, 21, 2)})


def build_tokenizer(data_dir: Path) -> Tokenizer:
    """Train a byte-level BPE of 1,024 tokens on the sentences under `data_dir`; `<|endoftext|>` is id 0.

    Depends on nothing but the files, so the committed tokenizer.json can be rebuilt to the byte. Raises ValueError
    where the sentences are too few for that many tokens.
    """
    tokenizer = Tokenizer(tokenizer_models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences(data_dir), trainer)
    size = tokenizer.get_vocab_size()
    if size != VOCAB_SIZE:
        raise ValueError(f"{data_dir} has text for {size} tokens; the tokenizer needs {VOCAB_SIZE}")
    return tokenizer


def sentences(data_dir: Path) -> Iterator[str]:
    """Every text under `data_dir`, by file name, then line: the strings with a space, which no id or label has."""
    for path in sorted(data_dir.rglob("*.jsonl"), key=lambda path: path.relative_to(data_dir).as_posix()):
        for line in path.read_text(encoding="utf-8").split("\n"):
            if line:
                yield from (text for text in _strings(json.loads(line)) if " " in text)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from _strings(list(value.values()))
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def write_checkpoints(folder: Path) -> list[Path]:
    """Write a Mamba and a GPT-NeoX of one small size, their weights drawn from a fixed seed; return the folders."""
    import torch
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM
    from transformers.utils import logging as transformers_logging

    from ..models import Mamba, checkpoint
    from ..models.registry import MambaConfig
    from .store import write_text

    mamba, neox = folder / "tiny-mamba", folder / "tiny-gpt-neox"
    checkpoint.save(Mamba(MambaConfig(d_model=64, n_layer=2, vocab_size=VOCAB_SIZE), seed=SEED), mamba)
    shape = GPTNeoXConfig(
        vocab_size=VOCAB_SIZE, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=256
    )
    transformers_logging.disable_progress_bar()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        GPTNeoXForCausalLM(shape).save_pretrained(neox)
    for path in (mamba, neox):
        write_text(path / "tokenizer.json", (MINIATURE / "tokenizer.json").read_text(encoding="utf-8"))
        write_text(path / "NOTE.txt", f"random weights, drawn from seed {SEED} and never trained\n")
    return [mamba, neox]


def run_demo(out: Path, command: str) -> str:
    """Evaluate both small checkpoints on the miniature tasks, offline; write the report into `out` and return it."""
    from ..reports.tables import report
    from .zero_shot import Settings, evaluate

    runs = []
    for path in write_checkpoints(out / "checkpoints"):
        settings = Settings(model=str(path), tokenizer=str(path / "tokenizer.json"), data=str(MINIATURE), offline=True)
        runs.append(evaluate(settings, out / "runs", command=command))
    made = report(runs)
    made.write(out)
    return made.markdown


def extrapolate_checkpoint(
    out: Path, say: Callable[[str], object], *, run: Path = TRAINED, plan: Mapping[int, int] = PLAN
) -> str:
    """Measure the bundled induction-heads checkpoint at each length (length -> sequences); tables and plots into `out`.

    Returns the tables as Markdown. Under a gigabyte and, on two cores, under a minute.
    """
    from ..models.chunks import CHUNK
    from .extrapolate_cli import measured

    return measured(run, out, plan, CHUNK, None, None, say)
