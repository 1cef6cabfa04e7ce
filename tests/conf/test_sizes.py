"""The vocoder's sizes in conf/ are what their heads say they are."""

import re
from typing import Any

import pytest
import torch
from hydra.utils import instantiate

from aqaa.runtime.catalogue import conf_dir
from aqaa.runtime.compose import compose
from tests.release import released

FOLDER = conf_dir() / "vocoder"


def network(name: str) -> torch.nn.Module:
    """A size of conf/vocoder, without memory for its numbers."""
    preset = "flow" if name.startswith("token_flow") else name.split("_")[0]
    cfg = compose("vocoder", [f"preset=speech/vocoder_{preset}", f"vocoder={name}"])
    with torch.device("meta"):
        built: torch.nn.Module = instantiate(cfg.vocoder, _convert_="all")()
    return built


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("token_flow_released", released.flow()), ("hift_released", released.head())],
)
def test_released_sizes_are_those_of_the_released_tensors(name: str, wanted: Any) -> None:
    found = {k: tuple(v.shape) for k, v in network(name).state_dict().items()}
    assert found == wanted
    tensors, numbers = len(found), sum(torch.Size(shape).numel() for shape in found.values())
    head = (FOLDER / f"{name}.yaml").read_text().splitlines()[0]
    assert re.findall(r"[\d,]+\d", head.partition(":")[2]) == [f"{numbers:,}", f"{tensors:,}"]


@pytest.mark.parametrize("kind", ["token_flow", "hift", "vocos"])
def test_sizes_grow(kind: str) -> None:
    largest = "full" if kind == "vocos" else "released"
    names = [f"{kind}_{size}" for size in ("tiny", "base", largest)]
    counts = [sum(p.numel() for p in network(name).parameters()) for name in names]
    assert counts[0] < 3e5 < counts[1] < 1e7 < counts[2]


def test_vocos_is_as_large_as_its_head_says() -> None:
    count = sum(p.numel() for p in network("vocos_full").parameters())
    assert "(13.5 M)" in (FOLDER / "vocos_full.yaml").read_text()
    assert count / 1e6 == pytest.approx(13.5, abs=0.5)
