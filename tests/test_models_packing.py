"""Packing lays sequences end to end, whatever holds them, and refuses lengths that do not fit."""

import pytest
import torch
from mambalab.models import pack


def test_pack_takes_lists_and_padded_batches():
    want = torch.tensor([[7, 8, 9, 4, 5]])
    for packed, bounds in (
        pack([[7, 8, 9], [4, 5]]),
        pack([torch.tensor([7, 8, 9]), torch.tensor([4, 5])]),
        pack(torch.tensor([[7, 8, 9, 0], [4, 5, 0, 0]]), [3, 2]),
        pack(torch.tensor([[7, 8, 9, 0], [4, 5, 0, 0]]), torch.tensor([3, 2])),
    ):
        assert torch.equal(packed, want)
        assert bounds.dtype == torch.int32
        assert bounds.tolist() == [0, 3, 5]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([],), "pack needs at least one sequence"),
        (([[1, 2], [3]], [2]), "one length a row, not 1 lengths for 2 rows"),
        (([[1, 2], [3]], [2, 2]), "length 2 of row 1 must be from 0 to 1"),
        (([[1, 2]], [-1]), "length -1 of row 0 must be from 0 to 2"),
    ],
    ids=str,
)
def test_pack_refuses_lengths_that_do_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        pack(*arguments)
