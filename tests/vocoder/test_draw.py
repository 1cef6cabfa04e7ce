"""Chance keeps to its shares, and a seed repeats it."""

import torch

from aqaa.vocoder.draw import draw


def test_shares_and_limits() -> None:
    counts = [10, 40] * 2000
    found = draw(torch.zeros(4000, 2, 40), counts, generator=torch.Generator().manual_seed(0))
    assert found.noise.shape == (4000, 2, 40)
    assert abs(found.noise.std() - 1) < 0.01 and abs(found.noise.mean()) < 0.01
    assert found.keep.float().mean() == 0.8 or abs(found.keep.float().mean() - 0.8) < 0.03
    # Uniform times warped to 1 - cos(pi/2 u): half of them lie below 1 - cos(pi/4).
    assert abs((found.time < 0.2929).float().mean() - 0.5) < 0.03
    assert found.time.min() >= 0 and found.time.max() <= 1
    for offset, longest in ((0, 3), (1, 12)):
        frames = found.prompt_frames[offset::2]
        assert int(frames.max()) == longest and int(frames.min()) == 0
        given = (frames > 0).float().mean()  # half are prompted, one in longest + 1 with nothing
        assert abs(given - 0.5 * longest / (longest + 1)) < 0.04


def test_a_seed_repeats_it() -> None:
    def one(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.cat([p.flatten().float() for p in draw(torch.zeros(2, 3, 4), [4, 3],
                                                            generator=generator)])  # fmt: skip

    assert torch.equal(one(1), one(1)) and not torch.equal(one(1), one(2))
