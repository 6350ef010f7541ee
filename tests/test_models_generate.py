"""Decoding from carried states gives what reading everything anew for each token gives."""

import pytest
import torch
from mambalab.models import pack
from mambalab.models.generate import choose, generate, prefill
from models_cases import assert_same_states, distance, tiny, tokens

PROMPTS = [tokens(n, seed=n).tolist() for n in (9, 1, 4, 6)]


def naive(model, prompt, count):
    """Greedy decoding with no state at all."""
    written = []
    for _ in range(count):
        logits, _ = model(torch.tensor([prompt + written]))
        written.append(int(logits[0, -1, : model.config.vocab_size].argmax()))
    return written


@pytest.fixture(scope="module")
def anew():
    """Five tokens a prompt, each read from everything before it."""
    return [naive(tiny().double(), prompt, 5) for prompt in PROMPTS]


@pytest.mark.parametrize("chunk", [1, 3, 8, 4096])
def test_greedy_decoding_equals_reading_everything_anew(chunk, anew):
    assert generate(tiny().double(), PROMPTS, 5, chunk=chunk) == anew
    assert len({token for row in anew for token in row}) > 3


@pytest.mark.parametrize("chunk", [1, 3, 7, 4096])
def test_prefill_in_chunks_equals_each_prompt_alone(chunk):
    model = tiny().double()
    logits, state = prefill(model, *pack(PROMPTS), chunk=chunk)
    for i, prompt in enumerate(PROMPTS):
        alone, state_alone = model(torch.tensor([prompt]))
        assert distance(logits[i], alone[0, -1]) < 1e-12
        assert_same_states(state.rows([i]), state_alone, 1e-12)


def test_a_row_ends_with_the_token_that_stops_it_and_the_others_go_on():
    model = tiny().double()
    free = generate(model, PROMPTS, 6)
    stop = free[0][2]
    want = [row[: row.index(stop) + 1] if stop in row else row for row in free]
    assert len(want[0]) == free[0].index(stop) + 1
    assert max(map(len, want)) == 6
    assert generate(model, PROMPTS, 6, stop={stop}) == want


def test_a_stop_function_sees_the_row_and_what_it_wrote():
    model = tiny().double()
    free = generate(model, PROMPTS, 6)
    written = generate(model, PROMPTS, 6, stop=lambda row, new: len(new) == row + 1)
    assert written == [new[: row + 1] for row, new in enumerate(free)]


def test_sampling_depends_on_the_generator_alone():
    model = tiny().double()
    draw = lambda seed: generate(model, PROMPTS, 6, temperature=1.5, generator=torch.Generator().manual_seed(seed))  # noqa: E731
    assert draw(0) == draw(0)
    assert draw(0) != draw(1)


def test_sampling_among_one_is_greedy():
    generator = torch.Generator().manual_seed(0)
    drawn = generate(tiny(), PROMPTS, 6, temperature=2.0, top_k=1, generator=generator)
    assert drawn == generate(tiny(), PROMPTS, 6)


def test_sampling_follows_the_probabilities():
    generator = torch.Generator().manual_seed(0)
    logits, rows = torch.randn(61, generator=generator), 20000
    top = logits.topk(5).indices
    want = torch.zeros(61).scatter(0, top, (logits[top] / 0.7).softmax(0))
    drawn = choose(logits.expand(rows, 61), 0.7, 5, generator)
    share = drawn.bincount(minlength=61) / rows
    assert set(drawn.tolist()) == set(top.tolist())
    assert float((share - want).abs().max()) < 5 * (0.25 / rows) ** 0.5


def test_padded_ids_are_never_chosen():
    model = tiny().double()
    with torch.no_grad():
        model.backbone.embedding.weight[61:] *= 100
    raw, _ = model(torch.tensor([PROMPTS[0]]))
    assert int(raw[0, -1].abs().argmax()) >= 61
    generator = torch.Generator().manual_seed(0)
    drawn = generate(model, PROMPTS * 5, 6, temperature=5.0, generator=generator) + generate(model, PROMPTS, 6)
    assert max(token for row in drawn for token in row) < 61


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, not 0"),
        ({"temperature": -1.0}, "temperature must be at least 0, not -1.0"),
        ({"top_k": 0}, "top_k must be at least 1, not 0"),
        ({"temperature": 1.0}, "temperature 1.0 draws tokens, so it needs a generator"),
        ({"prompts": [[1, 2], []]}, "a prompt must hold at least one token"),
        ({"prompts": []}, "pack needs at least one sequence"),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        generate(tiny(), **{"prompts": PROMPTS, "max_new_tokens": 2, **arguments})
