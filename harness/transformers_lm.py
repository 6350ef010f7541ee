"""The lm-eval adapter for other transformers causal LMs, Pythia above all: lm-eval's own, loaded with our checks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lm_eval.models import huggingface
from tqdm import tqdm

from ..models import weight_files
from ..models.layouts import read_json
from ..models.registry import named, shown
from . import generation
from .answers import Recall, computed
from .errors import one_line
from .tokenizer import check_fit, load_tokenizer, tokenizer_digest

# Buffers of old GPT-NeoX checkpoints that transformers now computes.
OBSOLETE = ("attention.bias", "attention.masked_bias", "rotary_emb.inv_freq")
# Masks that GPT-2's files carry as bytes.
MASKS = ("attn.bias", "attn.masked_bias")
DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")

# lm-eval's registering decorator hides the class from type checkers.
HFLM: Any = huggingface.HFLM
Request = tuple[tuple[str, str] | None, list[int], list[int]]


class TransformersLM(HFLM):
    """lm-eval's `hf` adapter with log-softmax in float32 (or its own arithmetic for parity), and no silent surprises.

    Missing, misshaped, unknown or NaN weights are errors (transformers alone fills what is missing at random).
    Requests are cut into the batches that lm-eval would make, each asked for by itself, so that `recall` can answer it;
    sampled generation draws from a seed of each batch's own.
    """

    def __init__(
        self,
        pretrained: str,
        *,
        tokenizer: str | None,
        dtype: torch.dtype,
        device: str,
        parity: str | None,
        max_length: int,
        batch_tokens: int,
        offline: bool,
        seed: int = 1234,
    ) -> None:
        self.checkpoint = Path(pretrained)
        fast = load_tokenizer(tokenizer, self.checkpoint, offline=offline)
        model = load_causal_lm(self.checkpoint, dtype)
        check_fit(fast, model.get_input_embeddings().weight.shape[0])
        positions = getattr(model.config, "max_position_embeddings", max_length)
        longest = min(max_length, positions)
        super().__init__(
            pretrained=model.to(device),
            tokenizer=fast,
            # lm-eval pads to the longest of a batch; a quarter of the tokens' limit as a typical length.
            batch_size=max(1, 4 * batch_tokens // longest),
            max_length=longest,
            softmax_dtype=None if parity == "fp16" else "float32",
        )
        self.backend_name, self.kernel, self.truncated, self.dtype = "transformers", None, 0, dtype
        self.seed, self.generated_batches = seed, 0
        self.recall: Recall = computed

    @property
    def tokenizer_name(self) -> str:
        return tokenizer_digest(self.tokenizer)

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        longest = max((len(rest) for _, _, rest in requests), default=0)
        if longest > self.max_length:
            raise ValueError(f"a continuation of {longest} tokens does not fit max_length {self.max_length}")
        self.truncated += sum(len(c or ()) + len(rest) > self.max_length + 1 for _, c, rest in requests)
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        # Rolling windows come a batch at a time, and not worth a bar each.
        quiet = disable_tqdm or "override_bs" in kwargs
        with tqdm(total=len(requests), desc="log-likelihoods", unit="request", disable=quiet) as bar:
            for batch in batches(requests, self.batch_size):
                part = [requests[i] for i in batch]
                asked = ["log-likelihoods", [request[1:] for request in part]]
                for i, answer in zip(batch, self.recall(asked, lambda part=part: self._score(part)), strict=True):
                    answers[i] = tuple(answer)
                bar.update(len(batch))
        return answers

    def _score(self, batch: list[Request]) -> list[tuple[float, bool]]:
        answers = super()._loglikelihood_tokens(batch, disable_tqdm=True)
        if any(value != value for value, _ in answers):
            raise ValueError("a log-likelihood is not a number: the model overflows in this dtype")
        return answers

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        # Longest first, as lm-eval has it: the least padding.
        lengths = [len(self.tok_encode(request.args[0])) for request in requests]
        order = sorted(range(len(requests)), key=lambda i: (-lengths[i], requests[i].args[0]))
        texts = [""] * len(requests)
        for batch in generation.batches(requests, self.batch_size, order):
            self.generated_batches += 1
            asked = generation.asked(requests, batch, self.generated_batches)
            part = [requests[i] for i in batch]
            found = self.recall(asked, lambda part=part: self._generate(part, self.generated_batches))
            for i, text in zip(batch, found, strict=True):
                texts[i] = text
        return texts

    def _generate(self, batch: list[Any], number: int) -> list[str]:
        with torch.random.fork_rng():
            # transformers draws from torch's own generators.
            torch.manual_seed(generation.batch_seed(self.seed, number))
            return super().generate_until(batch, disable_tqdm=True)


def batches(requests: Sequence[Request], size: int) -> list[list[int]]:
    """Numbers of the requests that lm-eval scores in one forward pass of `size` rows, each pass by itself.

    Its rule: requests that need the same input share a row, and the longest rows come first.
    """
    rows: dict[tuple[int, ...], list[int]] = {}
    for i, (_, context, continuation) in enumerate(requests):
        rows.setdefault((*context, *continuation[:-1]), []).append(i)
    keys: list[tuple[int, tuple[int, ...], list[int]]] = []
    for sharing in rows.values():
        _, context, continuation = requests[max(sharing, key=lambda i: len(requests[i][2]))]
        keys.append((-len(context) - len(continuation), (*context, *continuation), sharing))
    ordered = [sharing for _, _, sharing in sorted(keys)]
    parts = [ordered[start : start + size] for start in range(0, len(ordered), size)]
    return [sorted(i for sharing in part for i in sharing) for part in parts]


def _check_files(directory: Path) -> None:
    """Refuse, in one line, what transformers would take in silence, or would take forever over."""
    path = directory / "config.json"
    config = read_json(path)
    architectures = config.get("architectures") or []
    if not isinstance(architectures, list) or not all(isinstance(name, str) for name in architectures):
        raise ValueError(f"{path}: architectures must be a list of names, not {shown(architectures)}")
    tensors = weight_files.read(directory)
    for key in DEPTHS:
        if isinstance(depth := config.get(key), int) and depth > len(tensors):
            raise ValueError(f"{path}: {key} is {shown(depth)}, but the weights are only {len(tensors)} tensors")
    if config.get("quantization_config") is None:
        for name, tensor in tensors.items():
            is_weight = name.endswith((".weight", ".bias")) and not name.endswith(OBSOLETE + MASKS)
            if is_weight and not tensor.is_floating_point():
                raise ValueError(f"{weight_files.entry(directory)}: {named(name)} is {tensor.dtype}, no float dtype")


def load_causal_lm(directory: Path, dtype: torch.dtype) -> Any:
    """Load a transformers causal LM from a local directory; what does not fit is named in one line."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    _check_files(directory)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            directory, dtype=dtype, local_files_only=True, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except Exception as error:
        raise ValueError(f"transformers can't load {directory}: {one_line(error, lines=3)}") from error
    model, found = loaded
    names = model.config.architectures or [type(model).__name__]
    # transformers makes a causal LM of a masked one, whose scores would mean nothing.
    if not any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names):
        raise ValueError(f"{directory} holds a {', '.join(names)}, which is no causal language model")
    unknown = [key for key in found["unexpected_keys"] if not key.endswith(OBSOLETE)]
    for what, keys in (
        ("missing", found["missing_keys"]),
        ("misshaped", found["mismatched_keys"]),
        ("unknown", unknown),
    ):
        if keys:
            names = sorted(str(key[0] if isinstance(key, tuple) else key) for key in keys)
            raise ValueError(f"{directory}: {len(names)} {what} weights: {', '.join(map(named, names[:3]))}")
    for name, weight in model.named_parameters():
        if not bool(torch.isfinite(weight).all()):
            raise ValueError(f"{directory}: {name} holds NaN or infinite values")
    return model.eval()
