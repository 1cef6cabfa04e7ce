"""The encoder keeps clips apart and covers whole codes."""

import pytest
import torch

from aqaa.tokenizer.encoder import MelEncoder
from tests.golden.make import randomise


@pytest.mark.parametrize("frames_per_code", [4, 6])
def test_one_vector_a_code(frames_per_code: int) -> None:
    encoder = MelEncoder(frames_per_code=frames_per_code, width=8, blocks=1, code_width=3)
    mask = torch.ones(2, 24)
    mask[1, 12:] = 0
    z, code_mask = encoder(torch.randn(2, 80, 24), mask)
    assert z.shape == (2, 24 // frames_per_code, 3)
    assert code_mask.sum(1).tolist() == [24 // frames_per_code, 12 // frames_per_code]


def test_padding_changes_nothing_whatever_it_holds() -> None:
    encoder = randomise(MelEncoder(frames_per_code=4, width=8, blocks=2, code_width=3))
    mel, mask = torch.randn(2, 80, 24), torch.ones(2, 24)
    mask[1, 12:] = 0
    mel[1, :, 12:] = 100
    together, alone = encoder(mel, mask)[0], encoder(mel[1:, :, :12], torch.ones(1, 12))[0]
    torch.testing.assert_close(together[1:, :3], alone, rtol=0, atol=1e-5)
