"""The model on a GPU, with each of its backends: what it computes on the CPU, in every way of running it."""

import pytest
import torch
import torch.nn.functional as F
from ext_cases import ROWS, over, usable
from mambalab.models import pack
from mambalab.models.chunks import run_in_chunks
from mambalab.models.generate import generate, prefill
from mambalab.models.mamba import State
from models_cases import TOLERANCE, assert_same_states, distance, tiny, tokens

every_gpu = over(row for row in ROWS if row.device == "cuda")
PROMPTS = [tokens(n, seed=n).tolist() for n in (9, 1, 4, 6)]


def on_gpu(backend, dtype=torch.float32):
    """The small model on the GPU, on this backend alone."""
    name = usable(backend)
    model = tiny().to("cuda", dtype)
    model.backend = name
    return model


def on_cpu(state):
    return State(*(tuple(tensor.cpu() for tensor in tensors) for tensors in (state.conv, state.scan)))


@every_gpu
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_forward_pass_is_that_of_the_cpu(backend, dtype):
    ids = tokens(2, 70)
    want, want_state = tiny().to(dtype)(ids)
    logits, state = on_gpu(backend, dtype)(ids.cuda())
    assert distance(logits.cpu(), want) < TOLERANCE[dtype]
    assert_same_states(on_cpu(state), want_state, TOLERANCE[dtype])


@every_gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_sixteen_bit_logits_are_near_float32(backend, dtype):
    ids = tokens(2, 9)
    want, _ = tiny()(ids)
    assert distance(on_gpu(backend, dtype)(ids.cuda())[0].cpu(), want) < 3 * TOLERANCE[dtype]


def gradients(model, ids, autocast=False):
    """Of every parameter, for the loss of these tokens."""
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=autocast):
        logits, _ = model(ids)
    assert logits.dtype == (torch.bfloat16 if autocast else torch.float32)
    F.cross_entropy(logits.float().flatten(0, 1), ids.flatten()).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@every_gpu
def test_gradients_are_those_of_the_cpu(backend):
    ids = tokens(2, 70)
    want, found = gradients(tiny(), ids), gradients(on_gpu(backend), ids.cuda())
    assert found.keys() == want.keys() == dict(tiny().named_parameters()).keys()
    for name, grad in found.items():
        assert distance(grad.cpu(), want[name]) < 1e-4, name


@every_gpu
def test_training_under_autocast_keeps_float32_gradients_near_those_of_the_cpu(backend):
    ids = tokens(2, 9)
    want, found = gradients(tiny(), ids), gradients(on_gpu(backend), ids.cuda(), autocast=True)
    assert {grad.dtype for grad in found.values()} == {torch.float32}
    # The small model is loud: rounding to bfloat16 alone moves its gradients by a sixth.
    together = [torch.cat([grad.cpu().flatten() for grad in grads.values()]) for grads in (found, want)]
    assert distance(*together) < 0.25


@every_gpu
def test_packed_prompts_and_chunks_agree_with_whole_rows(backend):
    model = on_gpu(backend)
    packed, bounds = pack(PROMPTS)
    logits, state = prefill(model, packed.cuda(), bounds.cuda(), chunk=7)
    for row, prompt in enumerate(PROMPTS):
        alone, state_alone = model(torch.tensor([prompt], device="cuda"))
        assert distance(logits[row], alone[0, -1]) < 1e-5
        assert_same_states(state.rows([row]), state_alone, 1e-5)
    ids = tokens(2, 300)
    whole, whole_state = model(ids.cuda())
    last, last_state = run_in_chunks(model, ids, chunk=64)
    assert distance(last, whole[:, -1]) < 1e-5
    assert_same_states(last_state, whole_state, 1e-5)


@every_gpu
def test_greedy_decoding_writes_what_it_writes_on_the_cpu(backend):
    want = generate(tiny().double(), PROMPTS, 12)
    assert generate(on_gpu(backend, torch.float64), PROMPTS, 12) == want


@every_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("rows", [1, 4, 40])
@torch.no_grad()
def test_a_captured_step_decodes_as_it_would_run(backend, dtype, rows):
    model = on_gpu(backend, dtype)
    first, start = model(tokens(rows, 5).cuda())
    chosen = first[:, -1, : model.config.vocab_size].argmax(-1)
    eager, state, written = chosen.clone(), start.rows(range(rows)), []
    for _ in range(10):
        logits = model.step(eager, state)
        eager = logits[:, : model.config.vocab_size].argmax(-1)
        written.append((eager, logits))

    held, state = chosen.clone(), start.rows(range(rows))

    def advance():
        logits = model.step(held, state)
        held.copy_(logits[:, : model.config.vocab_size].argmax(-1))
        return logits

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        advance()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = advance()
    held.copy_(chosen)
    for mine, before in zip((*state.conv, *state.scan), (*start.conv, *start.scan), strict=True):
        mine.copy_(before)
    for tokens_then, logits_then in written:
        graph.replay()
        assert torch.equal(held, tokens_then)
        assert distance(captured, logits_then) < TOLERANCE[dtype]
