"""An adapter changes nothing until it is trained, is saved whole, and adds up to a whole model."""

from pathlib import Path

import pytest
import torch

from aqaa.backbone.loading import Backbone, load_backbone, whole_state
from aqaa.backbone.lora import Adapter, Lora
from aqaa.errors import UsageError
from aqaa.storage import in_place, load_tensors, read_json, verify_manifest
from tests.golden.make import backbone

LORA = Lora(rank=2, alpha=6, dropout=0.0, targets="all-linear", seed=7)
IDS = torch.arange(9)[None]


def hidden(loaded: Backbone) -> torch.Tensor:
    with torch.no_grad():
        return loaded.hidden(IDS).last_hidden_state


def trained(loaded: Backbone) -> Backbone:
    """As after some steps: B is no longer zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in loaded.model.named_parameters():
            if ".lora_B." in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return loaded


@pytest.fixture
def base(tmp_path: Path) -> Path:
    backbone(tmp_path / "base", tied=True)
    return tmp_path / "base"


def test_a_new_adapter_changes_nothing_and_is_all_that_learns(base: Path) -> None:
    plain = hidden(load_backbone(base))
    wrapped = LORA.wrap(load_backbone(base))
    torch.testing.assert_close(hidden(wrapped), plain, rtol=0, atol=1e-6)
    learns = {n for n, p in wrapped.model.named_parameters() if p.requires_grad}
    layers = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    assert {n.split(".")[-4] for n in learns} == set(layers)  # not the head, nor the tables
    assert len(learns) == 2 * len(layers) * wrapped.model.config.num_hidden_layers


def test_it_starts_from_its_names_whatever_was_drawn_before(base: Path) -> None:
    torch.manual_seed(1)
    one = LORA.wrap(load_backbone(base)).model.state_dict()
    torch.manual_seed(2)
    two = LORA.wrap(load_backbone(base)).model.state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    drawn = [t for n, t in one.items() if ".lora_A." in n]
    assert len({float(t.sum()) for t in drawn}) == len(drawn)
    bound = drawn[0].shape[1] ** -0.5
    assert 0.5 * bound < float(drawn[0].abs().max()) <= bound


def test_only_the_layers_named(base: Path) -> None:
    only = Lora(rank=2, alpha=6, dropout=0.0, targets=["q_proj"], seed=7)
    parameters = only.wrap(load_backbone(base)).model.named_parameters()
    learns = [name for name, parameter in parameters if parameter.requires_grad]
    assert learns and all("q_proj" in name for name in learns)
    wrong = Lora(rank=2, alpha=6, dropout=0.0, targets=["p_qroj"], seed=7)
    with pytest.raises(UsageError, match=r"adapter.targets=\['p_qroj'\] does not fit") as caught:
        wrong.wrap(load_backbone(base))
    assert "\n" not in str(caught.value)


def test_the_run_leaves_an_adapter_for_peft_and_a_model_for_all(base: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    learned = trained(LORA.wrap(load_backbone(base)))
    wanted = hidden(learned)
    assert (wanted - hidden(load_backbone(base))).abs().max() > 0.1
    learned.save(tmp_path / "run/model")
    merged = load_backbone(tmp_path / "run/model")
    torch.testing.assert_close(hidden(merged), wanted, rtol=0, atol=1e-4)
    names = [set(load_tensors(f / "model.safetensors")) for f in (base, tmp_path / "run/model")]
    assert names[0] == names[1]
    verify_manifest(tmp_path / "run/adapter")
    assert read_json(tmp_path / "run/adapter/adapter_config.json")["r"] == 2
    again = PeftModel.from_pretrained(load_backbone(base).model, tmp_path / "run/adapter")
    found = again.base_model.model.base_model(input_ids=IDS).last_hidden_state
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


def test_the_sum_is_that_of_peft(base: Path) -> None:
    learned = trained(LORA.wrap(load_backbone(base)))
    state = whole_state(learned.model, in_place)
    assert state is not None
    merged = learned.adapter.merged(state.items(), state)
    ours = {name: tensor.clone() for name, tensor in merged}
    theirs = learned.adapter.peft.merge_and_unload().state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=1e-6)


def test_an_empty_tensor_is_never_saved(base: Path, tmp_path: Path) -> None:
    learned = LORA.wrap(load_backbone(base))
    state = dict(learned.model.state_dict())
    name = next(n for n in state if ".lora_A." in n)
    state[name] = torch.empty(0)  # what a shard looks like from outside
    assert isinstance(learned.adapter, Adapter)
    with pytest.raises(ValueError, match=f"{name} is empty: its shards were not gathered"):
        learned.adapter.save(tmp_path / "adapter", state)
    assert not (tmp_path / "adapter").exists()
