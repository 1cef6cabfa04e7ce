"""The laws of the house hold here, and each law's test sees what breaks it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests import house

ROOT = Path(__file__).resolve().parent.parent
LONG = "def f():\n    '''Long.'''\n" + "    x = 1\n" * 81
FIVE_ROOMS = ("conf/sft.yaml", "recipes/sft.py", "tests/stages/test_sft.py")

Law = Callable[[Path], list[str]]
LAWS: list[Law] = [
    house.stages,
    house.floors,
    house.doors,
    house.sizes,
    house.classes,
    house.packages,
    house.units,
    house.no_config_below_the_door,
    house.safe_loading,
    house.docstrings,
]

PLANTED: list[tuple[Law, str, str, str]] = [
    (house.floors, "aqaa/signals.py", "import aqaa.vocabulary", "is not below it"),
    (house.floors, "aqaa/tokenizer/a.py", "from aqaa.backbone.b import c", "is not below it"),
    (house.floors, "aqaa/backbone/a.py", "from aqaa import runtime", "imports aqaa.runtime"),
    (house.floors, "aqaa/audio/a.py", "def f():\n    import aqaa.stages.sft", "is not below it"),
    (house.floors, "aqaa/audio/a.py", "from ..stages import sft", "relative import"),
    (house.floors, "aqaa/attic.py", "", "stands on no floor"),
    (house.floors, "aqaa/__init__.py", "import os", "it imports nothing"),
    (house.doors, "aqaa/backbone/a.py", "import lightning.pytorch as pl", "imports lightning"),
    (house.doors, "aqaa/stages/sft.py", "from omegaconf import DictConfig", "imports omegaconf"),
    (house.doors, "aqaa/data/sampler.py", "import lightning", "imports lightning"),
    (house.doors, "aqaa/data/a.py", "def f():\n    import soundfile", "imports soundfile"),
    (house.doors, "aqaa/text.py.py", "import tokenizers", "imports tokenizers"),
    (house.sizes, "aqaa/a.py", "\n" * 401, "has 401 lines"),
    (house.sizes, "aqaa/a.py", "\n" * 131, "the median file"),
    (house.sizes, "aqaa/a.py", LONG, "f has 83 lines"),
    (house.sizes, "aqaa/a.py", LONG[:200], "the median function"),
    (
        house.classes,
        "aqaa/a.py",
        "class A(Module): ...\nclass B(A): ...\nclass C(B): ...",
        "C inherits more than one step",
    ),
    (
        house.classes,
        "aqaa/a.py",
        "class A:\n    def __init__(self, a, b, c, d): ...",
        "4 positional arguments",
    ),
    (
        house.classes,
        "aqaa/a.py",
        "class A:\n    def __init__(self, a, *, b, c, d, e, f, g, h, i, j, k): ...",
        "A takes 11 arguments",
    ),
    (house.docstrings, "aqaa/a.py", "x = 1", "a.py has no docstring"),
    (house.docstrings, "aqaa/a.py", "'''A.'''\ndef f(): ...", "f has no docstring"),
    (
        house.docstrings,
        "aqaa/a.py",
        "'''A.'''\nclass A:\n    '''A.'''\n    def f(self): ...",
        "f has no docstring",
    ),
    (house.units, "aqaa/a.py", "def f(rate_hz=16_000): ...", "writes the rate 16000"),
    (house.units, "aqaa/a.py", "'''A.'''\ndef f(x: Tensor): ...", "without a legend"),
    (house.no_config_below_the_door, "aqaa/stages/a.py", "def f(cfg): ...", "takes a cfg"),
    (house.safe_loading, "aqaa/a.py", "import pickle", "imports pickle"),
    (house.safe_loading, "aqaa/a.py", "torch.load(p)", "torch.load without"),
    (house.safe_loading, "aqaa/a.py", "load(p, weights_only=False)", "weights_only=False"),
    (house.safe_loading, "aqaa/a.py", "np.load(p, allow_pickle=True)", "allow_pickle=True"),
    (house.safe_loading, "aqaa/a.py", "eval('1')", "calls eval"),
    (house.safe_loading, "aqaa/a.py", "exec('1')", "calls exec"),
    (house.packages, "conf/optim/a.yaml", "# @package _global_\n", "conf/optim/a.yaml"),
    (house.packages, "conf/preset/a.yaml", "lr: 1\n", "conf/preset/a.yaml"),
    (house.packages, "conf/preset/a.yaml", "# @package run\n", "conf/preset/a.yaml"),
    (house.stages, "aqaa/stages/dpo.py", "", "no conf/dpo.yaml"),
    (house.stages, "aqaa/stages/dpo.py", "", "no recipes/dpo.py"),
    (house.stages, "aqaa/stages/dpo.py", "", "no tests/stages/test_dpo.py"),
    (house.stages, "aqaa/stages/dpo.py", "", "no heading"),
]


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_the_law_holds(law: Law) -> None:
    assert law(ROOT) == []


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """A tree that keeps every law."""
    files = {
        "aqaa/__init__.py": "'''The map.'''\n",
        "aqaa/signals.py": "'''Rates.'''\n\nRATE_HZ = 16_000\n\n",
        "aqaa/stages/sft.py": (
            "'''A stage.\n\nLetters: B clips.\n'''\nimport lightning\nfrom aqaa.signals import R\n"
            "def step(x: Tensor):\n    '''(B,) -> ().'''\n    model.eval()\n    re.compile('a')\n"
            "    torch.load(p, weights_only=True)\n"
        ),
        "aqaa/cli.py": "'''The door.'''\ndef main(cfg):\n    '''Open.'''\n    import hydra\n",
        "conf/optim/adamw.yaml": "lr: 1\n",
        "conf/preset/small.yaml": "# @package _global_\n",
        "README.md": "# aqaa\n\n## sft: fine-tuning\n",
    } | dict.fromkeys(FIVE_ROOMS, "")
    for name, text in files.items():
        _write(tmp_path / name, text)
    return tmp_path


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_a_good_tree_passes(law: Law, good: Path) -> None:
    assert law(good) == []


@pytest.mark.parametrize(("law", "name", "text", "sentence"), PLANTED)
def test_the_law_catches(law: Law, name: str, text: str, sentence: str, good: Path) -> None:
    _write(good / name, text)
    if "median" in sentence:
        (good / "aqaa/signals.py").unlink()
        (good / "aqaa/cli.py").unlink()
        (good / "aqaa/stages/sft.py").unlink()
    assert any(sentence in found for found in law(good)), law(good)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_every_law_has_a_planted_violation(law: Law) -> None:
    assert any(law is planted[0] for planted in PLANTED)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
