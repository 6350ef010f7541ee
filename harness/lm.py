"""The lm-eval adapter: Mamba on the recurrent scorer, usable from our command, lm-eval's, or Python."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window, simple_parse_args_string
from tqdm import tqdm

from ..ext import backends
from ..models import checkpoint
from ..models.generate import generate
from . import generation
from .answers import Recall, computed
from .devices import resolve_device
from .scoring import Limits, Request, Scorer
from .tokenizer import check_fit, load_tokenizer, tokenizer_digest

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
PARITIES = ("fp16",)
# Saved states may take this much; how many sequences that is depends on the model.
STATE_BYTES = 512 * 2**20
GENERATION_ROWS = 64


def resolve_dtype(dtype: str, device: str, parity: str | None) -> torch.dtype:
    """The weights' dtype: `auto` is float32 on the CPU and float16 (the official script's) elsewhere or for parity."""
    if parity is not None and parity not in PARITIES:
        raise ValueError(f"unknown parity {parity!r}; known: {', '.join(PARITIES)}")
    if parity == "fp16" and dtype not in ("auto", "float16"):
        raise ValueError(f"parity fp16 computes in float16; dtype {dtype!r} contradicts it")
    if dtype == "auto":
        dtype = "float16" if parity == "fp16" or not device.startswith("cpu") else "float32"
    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}; known: auto, {', '.join(DTYPES)}")
    return DTYPES[dtype]


class MambaLM(TemplateLM):
    """A Mamba checkpoint for lm-eval: `simple_evaluate(model="mambalab", model_args="pretrained=DIR_OR_HUB_ID")`.

    pretrained   a directory in either published layout, a hub id, or a registry name
    tokenizer    a tokenizer.json, a directory or a hub id; default: the checkpoint's own, else GPT-NeoX-20B
    dtype        auto | float32 | float16 | bfloat16, of the weights (A_log, D, the Δ bias and states stay float32)
    backend      a row of mambalab.ext.backends; default: the first usable one of the device
    parity       "fp16" rounds as the official evaluation script does: float16 weights, log-softmax and sums
    max_length   longer requests lose their left end
    seed         of the draws of sampled generation (do_sample)
    batch_tokens input tokens of one forward pass; lm-eval's batch_size counts requests and is not used
    """

    def __init__(
        self,
        pretrained: str,
        *,
        revision: str | None = None,
        tokenizer: str | None = None,
        dtype: str = "auto",
        device: str | None = None,
        backend: str | None = None,
        parity: str | None = None,
        max_length: int = 2048,
        batch_tokens: int = 2048,
        offline: bool = False,
        seed: int = 1234,
        max_gen_toks: int = 256,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__()
        if not isinstance(seed, int) or not 0 <= seed < 2**64:
            raise ValueError(f"seed must be an integer from 0 to 2^64 - 1, not {seed!r}")
        self._device = torch.device(resolve_device(device))
        weights = resolve_dtype(dtype, str(self._device), parity)
        self.backend_name = backends.pick(self._device, backend).name
        self.checkpoint = checkpoint.find(str(pretrained), revision=revision, offline=offline)
        self.tokenizer = load_tokenizer(tokenizer, self.checkpoint, offline=offline)
        self.kernel = backends.kernel_digest(self.backend_name)
        self.model = checkpoint.load(self.checkpoint, dtype=weights, device=self._device, backend=self.backend_name)
        check_fit(self.tokenizer, self.model.config.padded_vocab_size)
        state = self.model.empty_state(1)
        row_bytes = sum(t.numel() * t.element_size() for t in (*state.conv, *state.scan))
        self.limits = Limits(max_length=max_length, tokens=batch_tokens, states=max(1, STATE_BYTES // row_bytes))
        self.scorer = Scorer(self.model, limits=self.limits, half=parity == "fp16")
        self.max_length, self.max_gen_toks, self.dtype = max_length, max_gen_toks, weights
        self.seed, self.generated_batches = seed, 0
        self.recall: Recall = computed
        self._rank, self._world_size = rank, world_size

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> MambaLM:
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None) -> MambaLM:
        given = arg_dict | {name: value for name, value in (additional_config or {}).items() if value is not None}
        if given.get("device") == "cuda:0" and not torch.cuda.is_available():
            # What lm-eval's command says where its user said nothing.
            logging.getLogger("mambalab").warning("no CUDA device here: on the CPU instead of cuda:0")
            given["device"] = "cpu"
        signature = inspect.signature(cls)
        try:
            signature.bind(**given)
        except TypeError as error:
            raise ValueError(f"model_args: {error}; known: {', '.join(signature.parameters)}") from None
        return cls(**given)

    @property
    def truncated(self) -> int:
        """Requests so far that lost their left end to max_length."""
        return self.scorer.truncated

    @property
    def tokenizer_name(self) -> str:
        return tokenizer_digest(self.tokenizer)

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        return self._encode([string], add_special_tokens)[0]

    def tok_decode(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(list(tokens), skip_special_tokens=False)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return self.tokenizer.apply_chat_template(
            chat_history, tokenize=False, add_generation_prompt=add_generation_prompt
        )

    def _encode(self, strings: Sequence[str], add_special_tokens: bool | None = None) -> list[list[int]]:
        """Token ids of many strings; None leaves special tokens to the tokenizer, but never doubles its prefix."""
        if not strings:
            return []
        prefix = self.tokenizer.decode([self.prefix_token_id])
        plain = [add_special_tokens is False or (add_special_tokens is None and s.startswith(prefix)) for s in strings]
        encoded: list[list[int]] = [[]] * len(strings)
        for special in (False, True):
            chosen = [i for i, bare in enumerate(plain) if bare is not special]
            if chosen:
                batch = self.tokenizer(
                    [strings[i] for i in chosen], add_special_tokens=special, return_attention_mask=False
                )["input_ids"]
                for i, ids in zip(chosen, batch, strict=True):
                    encoded[i] = ids
        return encoded

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        pairs = [(str(r.args[0]), str(r.args[1])) for r in requests]
        encoded = self._encode_pairs(pairs)
        return self._loglikelihood_tokens(
            [(pair, *tokens) for pair, tokens in zip(pairs, encoded, strict=True)], disable_tqdm=disable_tqdm
        )

    def _encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
        """lm-eval's split of pairs, with few calls of the tokenizer: encode the whole, cut after the context's length.

        Spaces at the end of a context belong to the continuation; an empty context becomes the prefix token.
        """
        moved = [(c.rstrip(), c[len(c.rstrip()) :] + rest) for c, rest in pairs]
        distinct = {context: i for i, context in enumerate(dict.fromkeys(context for context, _ in moved if context))}
        contexts = self._encode(list(distinct))
        wholes = iter(self._encode([context + rest for context, rest in moved if context]))
        bare = iter(self._encode([rest for context, rest in moved if not context], add_special_tokens=False))
        split = []
        for context, _ in moved:
            if context:
                head = contexts[distinct[context]]
                split.append((head, next(wholes)[len(head) :]))
                continue
            tokens = next(bare)
            own_prefix = tokens[:1] == [self.prefix_token_id]
            split.append((tokens[:1], tokens[1:]) if own_prefix else ([self.prefix_token_id], tokens))
        return split

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        work: list[Request] = [(context, continuation) for _, context, continuation in requests]
        with tqdm(
            total=len(work), desc="log-likelihoods", unit="request", disable=disable_tqdm or self.rank != 0
        ) as bar:
            scores = self.scorer(work, progress=bar.update, recall=self.recall)
        return [(score.log_likelihood, score.greedy) for score in scores]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        windows: list[tuple[None, list[int], list[int]]] = []
        owners: list[int] = []
        for owner, tokens in enumerate(self._encode([str(r.args[0]) for r in requests])):
            for window in get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, context_len=1):
                windows.append((None, *make_disjoint_window(window)))
                owners.append(owner)
        totals: list[list[float]] = [[] for _ in requests]
        for owner, (value, _) in zip(owners, self._loglikelihood_tokens(windows, disable_tqdm), strict=True):  # type: ignore[arg-type]
            totals[owner].append(value)
        return [math.fsum(values) for values in totals]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        answers: list[str] = [""] * len(requests)
        with tqdm(total=len(requests), desc="generation", disable=disable_tqdm or self.rank != 0) as bar:
            for batch in generation.batches(requests, min(self.limits.states, GENERATION_ROWS)):
                self.generated_batches += 1
                asked = generation.asked(requests, batch, self.generated_batches)
                texts = self.recall(asked, lambda asked=asked: self._generate(*asked[1:]))
                for i, text in zip(batch, texts, strict=True):
                    answers[i] = text
                bar.update(len(batch))
        return answers

    def _generate(self, number: int, settings: dict[str, Any], prompts: Sequence[str]) -> list[str]:
        """Decode to a stop string, the end of text or max_gen_toks; a prompt that leaves no room loses its left end.

        The batch's number decides its draws, where it draws.
        """
        kwargs: dict[str, Any] = dict(normalize_gen_kwargs(dict(settings), self.max_gen_toks))
        stops = handle_stop_sequences(kwargs.get("until"), eos=self.tok_decode([self.eot_token_id]))
        count = kwargs["max_gen_toks"]
        if count >= self.max_length:
            raise ValueError(f"max_gen_toks {count} must be less than max_length {self.max_length}")
        tokens = [(ids or [self.prefix_token_id])[count - self.max_length :] for ids in self._encode(prompts)]

        def done(row: int, generated: list[int]) -> bool:
            return any(stop and stop in self.tok_decode(generated) for stop in stops)

        sampling: dict[str, Any] = {}
        if kwargs.get("do_sample"):
            sampling = {name: kwargs[name] for name in ("temperature", "top_k") if name in kwargs}
            sampling["generator"] = torch.Generator(self._device).manual_seed(generation.batch_seed(self.seed, number))
        rows = generate(self.model, tokens, count, stop=done, **sampling)
        return [postprocess_generated_text(self.tok_decode(row), stops, None) for row in rows]


# As a decorator it would hide the class from type checkers.
register_model("mambalab")(MambaLM)
