"""Which keys a query may see, against plain counting; the blocks of flex against its own maker."""

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask

from aqaa.backbone.reach import Reach, _blocks


def starts(
    ids: torch.Tensor, *, cached: int = 0, mask: object = None, positions: object = None
) -> list[list[int]] | None:
    reach = Reach.of(
        ids,
        cached=cached,
        attention_mask=None if mask is None else torch.tensor(mask),
        position_ids=None if positions is None else torch.tensor(positions),
    )
    return None if reach.starts is None else reach.starts.tolist()


ROW, ROWS = torch.zeros(1, 5, dtype=torch.long), torch.zeros(2, 5, dtype=torch.long)


def test_documents_begin_at_position_zero() -> None:
    assert starts(ROW, positions=[[0, 1, 0, 0, 1]]) == [[0, 0, 2, 3, 3]]
    assert starts(ROWS, positions=[[0, 1, 0, 1, 2]]) == [[0, 0, 2, 2, 2]] * 2  # one for all rows


def test_a_row_may_begin_inside_a_document() -> None:
    assert starts(ROW, positions=[[7, 8, 0, 1, 2]]) == [[0, 0, 2, 2, 2]]


def test_padding_on_the_left_is_out_of_reach() -> None:
    mask = [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]
    assert starts(ROWS, mask=mask) == [[0, 0, 2, 2, 2], [0] * 5]
    # as transformers counts: padded places are 0
    assert starts(ROWS, mask=mask, positions=[[0, 0, 0, 1, 2], [0, 1, 2, 3, 4]]) == [
        [0, 0, 2, 2, 2],
        [0] * 5,
    ]


def test_a_plain_row_is_found_out() -> None:
    assert starts(ROWS) is None
    assert starts(ROWS, positions=[[0, 1, 2, 3, 4]]) is None
    assert starts(ROWS, mask=[[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]) is None  # padded on the right


def test_documents_go_on_behind_a_cache() -> None:
    assert starts(ROW[:, :3], cached=4, positions=[[3, 4, 5]]) == [[1, 1, 1]]
    assert starts(ROW[:, :3], cached=4, positions=[[3, 0, 1]]) == [[1, 5, 5]]
    assert starts(ROW[:, :1], cached=4, mask=[[0, 0, 1, 1, 1]]) == [[2]]


def test_documents_are_counted() -> None:
    reach = Reach.of(ROWS, position_ids=torch.tensor([[0, 1, 0, 0, 1], [0, 1, 2, 3, 4]]))
    assert reach.documents == [(0, [2, 1, 2]), (0, [5])]
    reach = Reach.of(ROW, cached=4, position_ids=torch.tensor([[3, 4, 0, 1, 0]]))
    assert reach.documents == [(1, [2, 2, 1])]


def test_an_unfit_mask_is_refused() -> None:
    with pytest.raises(ValueError, match="padding inside a row"):
        starts(ROW, mask=[[1, 0, 1, 1, 1]])
    with pytest.raises(ValueError, match=r"the shape \(1, 5\), not \(1, 7\)"):
        starts(ROW, cached=2, mask=[[1, 1, 1, 1, 1]])


@pytest.mark.parametrize("places", [5, 128, 300, 1000])
@pytest.mark.parametrize("packed", [True, False])
def test_the_blocks_of_flex(places: int, packed: bool) -> None:
    ids = torch.zeros(3, places, dtype=torch.long)
    positions = torch.stack([torch.arange(places) % size for size in (7, 256, 333)])
    reach = Reach.of(ids, position_ids=positions if packed else None)
    found = reach.block_mask
    wanted = create_block_mask(found.mask_mod, 3, 1, places, places, device="cpu")
    batch = 3 if reach.starts is not None else 1
    assert torch.equal(found.to_dense(), wanted.to_dense()[:batch])
    all_starts = torch.zeros_like(ids) if reach.starts is None else reach.starts
    _, full = _blocks(all_starts)
    i, j = torch.arange(places)[:, None], torch.arange(places)
    for b in range(batch):
        seen = (j <= i) & (j >= all_starts[b][:, None])
        for row in range(full.shape[1]):
            for column in range(full.shape[1]):
                part = seen[row * 128 : row * 128 + 128, column * 128 : column * 128 + 128]
                assert bool(full[b, row, column]) <= bool(part.all())
                if part.shape == (128, 128) and row > column:
                    assert bool(full[b, row, column]) == bool(part.all())
