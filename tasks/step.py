"""One training step, and many of them: plain on the CPU, replayed as a CUDA graph on a GPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.building import Model
from .batch import Batch, Task
from .recipes import PRECISIONS, Recipe

WARM_UP = 3
# Steps in one graph: more of them amortise its launch, fewer are captured faster.
UNROLL = 10


class Trainee:
    """A model, its optimiser and the number of steps done, all of it tensors on one device that never move.

    model     the model that learns
    step      steps done, a 0-d int64 tensor
    seen      (2, log_every): loss and accuracy of the latest steps, that of step i in column i % log_every
    """

    def __init__(self, recipe: Recipe, model: Model, device: torch.device) -> None:
        self.recipe = recipe
        self.device = device
        self.model = model.to(device).train()
        self.step = torch.zeros((), dtype=torch.int64, device=device)
        self.seen = torch.zeros(2, recipe.log_every, device=device)
        self._rate = torch.zeros((), device=device)
        settings = recipe.optimiser
        self._optimiser = torch.optim.AdamW(
            self.model.parameters(),
            lr=self._rate,
            betas=(settings.beta1, settings.beta2),
            eps=settings.epsilon,
            weight_decay=settings.weight_decay,
            fused=True,
            capturable=device.type == "cuda",
        )
        self._make_optimiser_state()
        self._rate.fill_(settings.learning_rate)

    def _make_optimiser_state(self) -> None:
        """Let the optimiser make its tensors, by an update at rate 0 along no gradient."""
        for parameter in self.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        self._optimiser.step()
        for state in self._optimiser.state.values():
            state["step"].zero_()
        self._optimiser.zero_grad()

    def tensors(self) -> dict[str, Tensor]:
        """All that the next step depends on, by name; the tensors themselves."""
        parameters = dict(self.model.named_parameters())
        found = {f"model.{name}": parameter.detach() for name, parameter in parameters.items()}
        for name, parameter in parameters.items():
            found |= {f"optimiser.{key}.{name}": value for key, value in self._optimiser.state[parameter].items()}
        return found | {"step": self.step}

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take these values, in place: captured graphs go on from them."""
        for name, tensor in self.tensors().items():
            tensor.copy_(tensors[name])

    def advance(self, task: Task, steps: int = 1) -> None:
        """So many steps on this task. Nothing waits for the device, and nothing changes but tensors in place."""
        # The batches of all steps are made at once: that takes no more launches than one.
        coming = self.step + torch.arange(steps, device=self.device)
        batches = task.batch(self.recipe.seed, coming, self.recipe.batch_size, self.device)
        for batch in batches.split(self.recipe.batch_size):
            self._learn(batch)

    def _learn(self, batch: Batch) -> None:
        recipe = self.recipe
        targets = batch.targets.reshape(-1)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=recipe.matmul == "bfloat16"):
            logits, _ = self.model(batch.tokens, logits_at=batch.logits_at)
        loss = F.cross_entropy(logits.float(), targets)
        self._optimiser.zero_grad()
        loss.backward()
        if recipe.optimiser.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), recipe.optimiser.clip, foreach=True)
        rate = recipe.optimiser.rate(self.step, recipe.steps)
        if isinstance(rate, Tensor):
            self._rate.copy_(rate)
        self._optimiser.step()
        with torch.no_grad():
            accuracy = (logits.argmax(-1) == targets).float().mean()
            self.seen.index_copy_(1, (self.step % recipe.log_every)[None], torch.stack((loss, accuracy))[:, None])
            self.step += 1


def shapes(tensors: dict[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """The shape and dtype of each."""
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}


def stepper(
    trainee: Trainee, task: Task, unroll: int = UNROLL, tick: Callable[[int], object] = lambda done: None
) -> Callable[[int], None]:
    """A function of a number of steps (a multiple of log_every) that does so many on this task.

    On a GPU it replays one graph, of the largest number of steps that divides log_every and is at most `unroll`.
    Elsewhere `tick` is told after each step how many are done; a GPU does them only some time after they are asked for.
    """
    if trainee.device.type != "cuda":
        return partial(_one_by_one, trainee, task, tick)
    per_graph = max(n for n in range(1, unroll + 1) if trainee.recipe.log_every % n == 0)
    graph = captured(trainee, task, per_graph)
    return lambda steps: _repeat(graph.replay, steps // per_graph)


def captured(trainee: Trainee, task: Task, steps: int) -> torch.cuda.CUDAGraph:
    """A CUDA graph of so many steps. Warming up takes steps too: they are taken back."""
    before = {name: tensor.clone() for name, tensor in trainee.tensors().items()}
    side = torch.cuda.Stream(trainee.device)
    side.wait_stream(torch.cuda.current_stream(trainee.device))
    graph = torch.cuda.CUDAGraph()
    with matrix_products(trainee.recipe.matmul):
        with torch.cuda.stream(side):
            trainee.advance(task, WARM_UP)
        torch.cuda.current_stream(trainee.device).wait_stream(side)
        with torch.cuda.graph(graph):
            trainee.advance(task, steps)
    trainee.restore(before)
    return graph


@contextmanager
def matrix_products(matmul: str) -> Iterator[None]:
    """A scope in which a GPU multiplies float32 matrices as a recipe's `matmul` says: what is captured keeps it."""
    settings = torch.backends.cuda.matmul
    before = settings.fp32_precision
    settings.fp32_precision = PRECISIONS[matmul]
    try:
        yield
    finally:
        settings.fp32_precision = before


def _one_by_one(trainee: Trainee, task: Task, tick: Callable[[int], object], steps: int) -> None:
    for done in range(steps):
        trainee.advance(task)
        tick(done + 1)


def _repeat(call: Callable[[], object], times: int) -> None:
    for _ in range(times):
        call()


def first_not_finite(losses: list[float]) -> int | None:
    """The place of the first loss that is no finite number."""
    return next((i for i, loss in enumerate(losses) if not math.isfinite(loss)), None)
