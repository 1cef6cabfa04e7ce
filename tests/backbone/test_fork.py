"""Rows that fork against separate rows: states and gradients, Step-1 and other families."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask

from aqaa.backbone import attention
from aqaa.backbone.attention import attend
from aqaa.backbone.fork import can_fork, hidden_of_forks
from aqaa.backbone.initial import write_initial
from aqaa.backbone.loading import Backbone, load_backbone
from aqaa.backbone.reach import Reach
from aqaa.backbone.step1 import Step1Config
from tests.golden.make import ids
from tests.llama import write_llama

# Prompt, first answer, second answer; the second pair is shorter, so its row is padded.
PAIRS = [
    ([1, 9, 12, 30, 7], [5, 6, 7, 8], [8, 9, 10, 11, 12, 13]),
    ([1, 4], [21], [22, 23, 3]),
    ([1, 30, 31, 32], [14, 15, 16], []),
]


@pytest.fixture(scope="module", params=["step1", "llama", "qwen3"])
def backbone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "step1":
        config = Step1Config(
            vocab_size=ids().vocabulary.rows, hidden_size=32, intermediate_size=48,
            num_hidden_layers=3, num_attention_heads=4, num_attention_groups=2,
        )  # fmt: skip
        write_initial(folder, config=config, ids=ids(), row_std=0.5)
    elif request.param == "llama":
        write_llama(folder, ids(), layers=3)
    else:
        other("Qwen3").save(folder)
    return load_backbone(folder)


def other(family: str, **more: Any) -> Backbone:
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(
        vocab_size=ids().vocabulary.rows, hidden_size=32, intermediate_size=48,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        initializer_range=0.2, **more,
    )  # fmt: skip
    return Backbone(getattr(transformers, f"{family}ForCausalLM")(config).eval(), ids())


def rows() -> tuple[Tensor, Tensor]:
    width = max(len(a) + len(b) + len(c) for a, b, c in PAIRS)
    made = torch.zeros(len(PAIRS), width, dtype=torch.long)
    for row, parts in zip(made, PAIRS, strict=True):
        whole = sum(parts, [])
        row[: len(whole)] = torch.tensor(whole)
    return made, torch.tensor([[len(a), len(a) + len(b)] for a, b, _ in PAIRS])


def apart(states: Tensor) -> list[Tensor]:
    """The states of a forked row, as those of [prompt + first, second]."""
    found = []
    for row, (a, b, c) in zip(states, PAIRS, strict=True):
        found += [row[: len(a) + len(b)], row[len(a) + len(b) : len(a) + len(b) + len(c)]]
    return found


def separate(backbone: Backbone) -> list[Tensor]:
    found = []
    for a, b, c in PAIRS:
        one = backbone.hidden(torch.tensor([a + b])).last_hidden_state[0]
        two = backbone.hidden(torch.tensor([a + c])).last_hidden_state[0]
        found += [one, two[len(a) :]]
    return found


def test_both_answers_are_as_alone_behind_the_prompt(backbone: Backbone) -> None:
    assert can_fork(backbone)
    found = apart(hidden_of_forks(backbone, *rows()).last_hidden_state)
    for mine, wanted in zip(found, separate(backbone), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=0, atol=1e-5)


def test_gradients_are_those_of_separate_rows(backbone: Backbone) -> None:
    generator = torch.Generator().manual_seed(1)
    pull = [torch.randn(s.shape, generator=generator) for s in separate(backbone)]

    def gradients(states: list[Tensor]) -> list[Tensor]:
        backbone.model.zero_grad()
        sum((s * w).sum() for s, w in zip(states, pull, strict=True)).backward()  # type: ignore[union-attr]
        return [p.grad.clone() for p in backbone.model.parameters() if p.grad is not None]

    one = gradients(apart(hidden_of_forks(backbone, *rows()).last_hidden_state))
    two = gradients(separate(backbone))
    assert len(one) == len(two) > 10
    for mine, wanted in zip(one, two, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


def test_neither_answer_sees_the_other(backbone: Backbone) -> None:
    made, forks = rows()
    before = apart(hidden_of_forks(backbone, made, forks).last_hidden_state)
    changed = made.clone()
    changed[0, 5:9] = 33  # the first answer
    after = apart(hidden_of_forks(backbone, changed, forks).last_hidden_state)
    assert torch.equal(before[1], after[1]) and not torch.equal(before[0], after[0])
    changed = made.clone()
    changed[0, 9:15] = 33  # the second
    after = apart(hidden_of_forks(backbone, changed, forks).last_hidden_state)
    assert torch.equal(before[0], after[0]) and not torch.equal(before[1], after[1])


@pytest.mark.parametrize(
    "made",
    [
        lambda: other("Mistral", sliding_window=4),
        lambda: other("Qwen2", use_sliding_window=True, sliding_window=4, max_window_layers=0),
        lambda: other("Llama", attn_implementation="eager"),  # adds a mask, and ours says yes or no
    ],
    ids=["mistral", "qwen2", "eager"],
)
def test_a_backbone_that_cannot_is_known(made: Any) -> None:
    assert not can_fork(made())


@pytest.mark.parametrize("backend", ["sdpa", "flex"])
def test_attention_of_forks_against_each_alone(backend: attention.Backend) -> None:
    length, forks = 9, [[3, 5], [1, 8], [4, 4]]
    q, k, v = (torch.randn(3, heads, length, 8) for heads in (4, 2, 2))
    blank = torch.zeros(3, length, dtype=torch.long)
    reach = Reach.of(blank, forks=torch.tensor(forks))
    found = attend(q, k, v, reach=reach, backend=backend)
    for b, (first, second) in enumerate(forks):
        for places in (range(second), [*range(first), *range(second, length)]):
            at = torch.tensor([*places])
            mine = [x[b : b + 1, :, at] for x in (q, k, v)]
            alone = attend(*mine, reach=Reach.of(blank[:1, : len(at)]), backend="sdpa")
            torch.testing.assert_close(found[b : b + 1, :, at], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("fork", [[130, 300], [128, 256], [5, 400], [400, 401], [256, 260]])
def test_the_blocks_of_flex_are_those_of_its_own_maker(fork: list[int]) -> None:
    first, second = fork
    reach = Reach.of(torch.zeros(1, 500, dtype=torch.long), forks=torch.tensor([fork]))

    def sees(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (j <= i) & ~((i >= second) & (j >= first) & (j < second))

    wanted = create_block_mask(sees, 1, None, 500, 500, device="cpu")
    mine, seen = reach.block_mask.to_dense(), wanted.to_dense()
    assert torch.equal(mine, seen.expand_as(mine))


def test_forks_beside_documents_or_a_cache_are_refused() -> None:
    row, forks = torch.zeros(1, 4, dtype=torch.long), torch.tensor([[1, 2]])
    for more in ({"cached": 2}, {"position_ids": torch.arange(4)[None]}):
        with pytest.raises(ValueError, match="a row that forks takes no cache"):
            Reach.of(row, forks=forks, **more)  # type: ignore[arg-type]
