"""The parts of the U-Net's and the sampler's bench that need no peer."""

import importlib
import sys
from types import ModuleType

import pytest
import torch

from aqaa.vocoder.estimator import Estimator
from tests.conftest import ROOT


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "tools/bench"), *sys.path])

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    return load


def test_the_products_of_a_call_are_counted_by_hand(bench) -> None:
    width, inner, frames, time = 8, 6, 10, 32
    net = Estimator(
        channels_in=12, channels_out=3, channels=(width,), heads=2, head_width=3, blocks=1, middle=1
    )

    def level(channels: int) -> int:
        resnet = frames * width * (3 * channels + 3 * width + channels) + time * width
        block = frames * (4 * width * inner + 8 * width * width) + 2 * frames**2 * inner
        return resnet + block

    resample = 2 * frames * 3 * width * width  # one level: both convolutions keep the frames
    ends = 12 * time + time**2 + frames * (3 * width * width + width * 3)
    wanted = 2 * (level(12) + level(width) + level(2 * width) + resample + ends)
    with torch.no_grad():
        assert bench("unet").products_gflop(net, frames) == pytest.approx(wanted / 1e9)


def test_ten_euler_steps_are_as_near_as_themselves(bench, monkeypatch: pytest.MonkeyPatch) -> None:
    sampling = bench("sampling")
    monkeypatch.setattr(sampling, "EXACT_STEPS", 12)
    monkeypatch.setattr(sampling, "STARTS", {"noise": (True, 0.0)})
    said = {"demo": [(torch.arange(4)[None], torch.arange(6)[None])]}
    same = sampling.nearness("euler", 10, said)["noise"]
    assert same["ours"] == same["euler_10"] > 0 and same["utterances"] == 1
    less = sampling.nearness("euler", 2, said)["noise"]
    assert less["ours"] > 2 * less["euler_10"] == 2 * same["euler_10"]


def test_a_word_that_means_nothing_ends_the_bench(bench, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        bench("turns").told("unet", ["frames=8", "colour=red"], {"frames": "4"})
    assert ended.value.code == 2
    assert "unet: colour=red: it takes frames, as key=value" in capsys.readouterr().err
