"""Step-1: its maths against loops, its names and sizes, transformers' way of saving it."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from aqaa.backbone.attention import Backend
from aqaa.backbone.step1 import (
    AutoConfig,
    AutoModelForCausalLM,
    RMSNorm,
    Step1Config,
    Step1ForCausalLM,
)
from aqaa.storage import load_tensors
from tests.backbone.test_attention import loop
from tests.golden.make import randomise, step1

IDS = torch.arange(18).reshape(2, 9) * 7 % 40


def norm(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    return torch.stack(
        [row / (row.pow(2).mean() + eps).sqrt() * weight for row in x.reshape(-1, x.shape[-1])]
    ).reshape(x.shape)


def test_the_whole_decoder_against_plain_steps() -> None:
    model = step1()
    state = model.state_dict()
    x = state["model.embed_tokens.weight"][IDS]
    for i in range(2):
        layer = {k.split(".", 3)[3]: v for k, v in state.items() if f"layers.{i}." in k}
        h = norm(x, layer["input_layernorm.weight"])
        q, k, v = (
            (h @ layer[f"self_attn.{n}_proj.weight"].T).unflatten(-1, (-1, 4)).transpose(1, 2)
            for n in "qkv"
        )
        heard = loop(q, k, v).transpose(1, 2).flatten(2)
        x = x + heard @ layer["self_attn.o_proj.weight"].T
        h = norm(x, layer["post_attention_layernorm.weight"])
        gate, up = (h @ layer[f"mlp.{n}_proj.weight"].T for n in ("gate", "up"))
        x = x + (gate * gate.sigmoid() * up) @ layer["mlp.down_proj.weight"].T
    expected = norm(x, state["model.norm.weight"]) @ state["lm_head.weight"].T
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, expected, rtol=0, atol=1e-4)


def test_the_norm_in_both_precisions() -> None:
    layer = RMSNorm(8, 1e-5)
    with torch.no_grad():
        layer.weight.copy_(torch.rand(8) + 0.5)
    x = 3 * torch.randn(5, 8)
    torch.testing.assert_close(layer(x), norm(x, layer.weight))
    half = layer.bfloat16()(x.bfloat16())
    scale = torch.rsqrt(x.bfloat16().float().pow(2).mean(-1, keepdim=True) + 1e-5).bfloat16()
    assert torch.equal(half, x.bfloat16() * scale * layer.weight)


@torch.no_grad()
def test_step_by_step_equals_teacher_forcing() -> None:
    model = step1()
    whole = model(IDS).logits
    out = model(IDS[:, :4], use_cache=True)
    parts = [out.logits]
    for i in range(4, 9):
        out = model(IDS[:, i : i + 1], past_key_values=out.past_key_values, use_cache=True)
        parts.append(out.logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("backend", ["sdpa", "flex"])
def test_padding_on_either_side_changes_nothing(backend: Backend) -> None:
    model = step1()
    model.model.use_attention(backend)
    alone = [model(IDS[:1]).logits[0], model(IDS[1:, :5]).logits[0]]
    for side in ("left", "right"):
        rows = torch.full((2, 9), 7)
        mask = torch.zeros(2, 9, dtype=torch.long)
        places = slice(4, 9) if side == "left" else slice(0, 5)
        rows[0], rows[1, places] = IDS[0], IDS[1, :5]
        mask[0], mask[1, places] = 1, 1
        found = model(rows, attention_mask=mask).logits
        torch.testing.assert_close(found[0], alone[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(found[1, places], alone[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("training", "cache"), [(True, False), (False, False), (False, True)])
@pytest.mark.parametrize("backend", ["sdpa", "flex"])
def test_packed_documents_do_not_know_each_other(
    backend: Backend, training: bool, cache: bool
) -> None:
    model = step1().train(training)
    model.model.use_attention(backend)
    lengths = [4, 1, 8, 2]
    row = torch.arange(15)[None] * 11 % 40
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    # flex has no gradients on a CPU
    with torch.set_grad_enabled(training and backend == "sdpa"):
        packed = model.model(row, position_ids=positions, use_cache=cache).last_hidden_state
    begin = 0
    for length in lengths:
        inside = slice(begin, begin + length)
        with torch.no_grad():
            alone = model.model(row[:, inside]).last_hidden_state
        torch.testing.assert_close(packed[:, inside], alone, rtol=0, atol=1e-6)
        changed = row.clone()
        changed[:, inside] = (changed[:, inside] + 1) % 40
        with torch.no_grad():
            other = model.model(changed, position_ids=positions, use_cache=cache)
        same = (other.last_hidden_state == packed).all(-1)[0]
        assert not same[inside].any()
        assert same[:begin].all() and same[begin + length :].all()
        begin += length


@torch.no_grad()
def test_the_last_packed_document_goes_on_behind_a_cache() -> None:
    model = step1()
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4, 5]])
    whole = model(IDS[:1], position_ids=positions).logits
    out = model(IDS[:1, :5], position_ids=positions[:, :5], use_cache=True)
    cache, parts = out.past_key_values, [out.logits]
    for new in (slice(5, 7), slice(7, 8), slice(8, 9)):
        step = model(
            IDS[:1, new], position_ids=positions[:, new], past_key_values=cache, use_cache=True
        )
        parts.append(step.logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-5)


def test_generate_is_greedy_step_by_step_whatever_the_padding() -> None:
    model = step1()
    prompts = [[5, 9, 11], [30, 2, 8, 17, 21]]
    expected = []
    for prompt in prompts:
        row = list(prompt)
        for _ in range(6):
            with torch.no_grad():
                row.append(int(model(torch.tensor([row])).logits[0, -1].argmax()))
        expected.append(row[len(prompt) :])
    assert len({tuple(row) for row in expected}) == 2
    padded = torch.tensor([[0, 0, *prompts[0]], prompts[1]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1] * 5])
    settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": -1}
    found = model.generate(padded, attention_mask=mask, **settings)
    assert found[:, 5:].tolist() == expected
    alone = model.generate(torch.tensor(prompts[:1]), **settings)
    assert alone[0, 3:].tolist() == expected[0]


@torch.no_grad()
def test_only_the_wanted_logits_are_made() -> None:
    model = step1()
    whole = model(IDS).logits
    assert torch.equal(model(IDS, logits_to_keep=2).logits, whole[:, -2:])


def test_checkpointed_layers_give_the_same_bits() -> None:
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4, 5]]).expand(2, -1)
    found = []
    for checkpointed in (False, True):
        model = step1().train()
        if checkpointed:
            model.gradient_checkpointing_enable()
        kept: list[int] = []

        def keep(tensor: Tensor, kept: list[int] = kept) -> Tensor:
            kept.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = model(IDS, position_ids=positions, labels=IDS).loss
        loss.backward()
        found.append((loss, sum(kept), {k: p.grad for k, p in model.named_parameters()}))
    (loss, kept_numbers, gradients), (again, fewer, repeated) = found
    assert torch.equal(loss, again)
    assert fewer < kept_numbers / 2
    for name, gradient in gradients.items():
        assert gradient is not None and torch.equal(gradient, repeated[name]), name


@torch.no_grad()
def test_in_half_precision_it_is_near_the_whole() -> None:
    model = step1()
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]]).expand(2, -1)
    whole = model(IDS, position_ids=positions).logits
    half = model.bfloat16()
    for backend in ("sdpa", "flex"):
        half.model.use_attention(backend)
        found = half(IDS, position_ids=positions).logits
        assert found.dtype == torch.bfloat16
        assert float((found.float() - whole).abs().max() / whole.std()) < 0.1


def test_the_loss_is_that_of_the_next_id() -> None:
    model, labels = step1(), IDS.clone()
    labels[:, :4] = -100
    out = model(IDS, labels=labels)
    expected = [
        F.cross_entropy(out.logits[b, i], IDS[b, i + 1]) for b in range(2) for i in range(3, 8)
    ]
    torch.testing.assert_close(out.loss, torch.stack(expected).mean())
    out.loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("tied", [True, False])
def test_transformers_saves_and_loads_it_exactly(tied: bool, tmp_path: Path) -> None:
    model = step1(tied=tied)
    model.save_pretrained(tmp_path)
    stored = load_tensors(tmp_path / "model.safetensors")
    assert ("lm_head.weight" in stored) == (not tied)
    assert AutoConfig.from_pretrained(tmp_path).model_type == "step1"
    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert isinstance(loaded, Step1ForCausalLM)
    assert not any(report[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    shared = loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert shared == tied
    with torch.no_grad():
        assert torch.equal(loaded.eval()(IDS).logits, model(IDS).logits)
    assert loaded.config.tie_word_embeddings == tied
    assert (loaded.config.bos_token_id, loaded.config.eos_token_id) == (1, 3)
    assert loaded.config.pad_token_id == 0


def test_the_longest_row_has_two_names(tmp_path: Path) -> None:
    config = Step1Config(max_position_embeddings=777)
    assert (config.max_seq_len, config.max_position_embeddings) == (777, 777)
    assert Step1Config(max_seq_len=5).max_position_embeddings == 5
    config.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).max_seq_len == 777


def test_a_dense_folder_with_the_name_and_keys_of_a_mixture_loads(tmp_path: Path) -> None:
    model = step1()
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    stale = {"architectures": ["Step1MoEForCausalLM"], "moe_num_experts": 0, "moe_top_k": 1}
    (tmp_path / "config.json").write_text(json.dumps({**config, **stale}))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(loaded(IDS).logits, model(IDS).logits)
    loaded.save_pretrained(tmp_path / "again")
    assert AutoConfig.from_pretrained(tmp_path / "again").architectures == ["Step1ForCausalLM"]


def test_a_llama_takes_the_tensors_and_computes_something_else(tmp_path: Path) -> None:
    """The trap: names equal Llama's. With shared heads it fails, without it is silent."""
    from transformers import LlamaForCausalLM

    config = step1().config
    for groups, shared in ((2, True), (6, False)):
        config.num_attention_groups = groups
        model = randomise(Step1ForCausalLM(config), 0)
        model.save_pretrained(tmp_path / str(groups))
        if shared:
            with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
                LlamaForCausalLM.from_pretrained(tmp_path / str(groups))
            continue
        llama, report = LlamaForCausalLM.from_pretrained(
            tmp_path / str(groups), output_loading_info=True
        )
        assert not any(report[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        with torch.no_grad():
            ours, theirs = model(IDS).logits, llama.eval()(IDS).logits
        assert float((ours - theirs).abs().mean() / ours.std()) > 0.1
        assert isinstance(AutoModelForCausalLM.from_pretrained(tmp_path / "6"), Step1ForCausalLM)


def test_unfit_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="6 heads cannot be shared by 4 groups"):
        Step1Config(hidden_size=24, num_attention_heads=6, num_attention_groups=4)
    with pytest.raises(ValueError, match="width 25 is not a multiple of 6 heads"):
        Step1Config(hidden_size=25, num_attention_heads=6, num_attention_groups=2)
