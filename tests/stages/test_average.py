"""The running average of a voice, against a loop; and that a voice is exported from it."""

from pathlib import Path

import torch
from torch import nn

from aqaa.stages.average import RunningAverage
from aqaa.storage import load_tensors
from tests.conftest import STEPS, Chain
from tests.runs import train


def test_it_is_the_sum_of_the_past() -> None:
    net = nn.Linear(2, 1)
    average = RunningAverage(network=net, decay=0.75)
    assert not any(p.requires_grad for p in average.parameters())
    wanted = None
    for step in range(1, 6):
        with torch.no_grad():
            net.weight += step
        average.follow(net, step)
        now = net.weight.detach().clone()
        wanted = now if wanted is None else 0.75 * wanted + 0.25 * now
        torch.testing.assert_close(average.module.weight.detach(), wanted, rtol=0, atol=1e-6)


def test_it_moves_once_a_step_and_goes_on_after_a_resume() -> None:
    net = nn.Linear(2, 1)
    average = RunningAverage(network=net, decay=0.5)
    average.follow(net, 0)  # a batch that only accumulates
    assert int(average.n_averaged) == 0
    average.follow(net, 1)
    with torch.no_grad():
        net.weight += 1
    again = RunningAverage(network=net, decay=0.5)
    again.load_state_dict(average.state_dict())
    again.follow(net, 1)
    assert torch.equal(again.module.weight, average.module.weight)
    again.follow(net, 2)
    assert not torch.equal(again.module.weight, average.module.weight)


def test_the_waveform_head_is_exported_from_its_average_if_it_has_one(
    chain: Chain, tmp_path: Path
) -> None:
    plain = load_tensors(chain / "vocoder_waveform/model/model.safetensors")
    words = chain.words("vocoder_waveform", tmp_path, "stage.average_decay=0.9")
    averaged = load_tensors(train(words) / "model/model.safetensors")
    assert plain.keys() == averaged.keys()
    lag = {n: float((plain[n] - averaged[n]).abs().max()) for n in plain if "window" not in n}
    assert STEPS < 10 and max(lag.values()) > 1e-4  # it lags behind the same training
