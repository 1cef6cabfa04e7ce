"""Codes on one grid: each lasts as long as it sounds, padding changes nothing."""

import torch

from aqaa.vocoder.conditioning import CodeConditioning
from tests.golden.make import randomise


def test_each_code_lasts_its_time() -> None:
    net = CodeConditioning(width=8, code_width=2)
    seen = []
    net.layers[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    linguistic, semantic = torch.tensor([[7, 9, 3, 3]]), torch.tensor([[1, 2, 3, 4, 5, 6]])
    net(linguistic, semantic, torch.ones(1, 12))
    grid = seen[0][0]
    for place in range(12):  # pairs of frames, 20 ms each
        assert torch.equal(grid[:2, place], net.linguistic.weight[linguistic[0, place // 3]])
        assert torch.equal(grid[2:4, place], net.semantic.weight[semantic[0, place // 2]])
    assert grid[4].tolist() == [(p % 6) / 3 - 1 for p in range(12)] or torch.allclose(
        grid[4], torch.tensor([(p % 6) / 3 - 1 for p in range(12)])
    )


def test_a_padded_batch_equals_single_items() -> None:
    net = randomise(CodeConditioning(width=8, code_width=2))
    generator = torch.Generator().manual_seed(0)
    linguistic = torch.randint(1024, (2, 8), generator=generator)
    semantic = torch.randint(4096, (2, 12), generator=generator)
    mask = torch.ones(2, 24)
    mask[1, 12:] = 0
    together = net(linguistic, semantic, mask)
    assert together.shape == (2, 8, 24)
    alone = net(linguistic[1:, :4], semantic[1:, :6], torch.ones(1, 12))
    torch.testing.assert_close(together[1:, :, :12], alone, rtol=0, atol=1e-5)


def test_embeddings_start_from_the_codebooks() -> None:
    net = CodeConditioning(width=8, code_width=3)
    before = net.linguistic.weight.detach().clone()
    a, b = torch.randn(1024, 3), torch.randn(4096, 3)
    net.start_from(a, b)
    torch.testing.assert_close(net.linguistic.weight.detach(), 0.43 * before + 0.9 * a)
    pairs = torch.stack([torch.pdist(b[:200]), torch.pdist(net.semantic.weight.detach()[:200])])
    assert torch.corrcoef(pairs)[0, 1] > 0.75
    assert net.semantic.weight.requires_grad
