"""A small conf/ of our own, so that composing is tested apart from what the real one holds."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

FILES = {
    "sft.yaml": """
        defaults:
          - run: default
          - trainer: cpu
          - adapter: none
          - optim: adamw
          - data: speech
          - _self_
          - preset: null
        run:
          name: sft
        sampling:
          temperature: 0.7  # of the answers
        """,
    "tokenizer.yaml": """
        defaults:
          - run: default
          - trainer: cpu
          - _self_
          - preset: null
        codes: 1024
        """,
    "listen.yaml": """
        _target_: aqaa.data.listen.listen
        source: ???  # the text
        path: here.txt
        """,
    "run/default.yaml": "seed: 0\nname: unnamed\nout: runs/${run.name}\n",
    "trainer/cpu.yaml": "_target_: lightning.pytorch.Trainer\nmax_steps: 10\naccelerator: cpu\n",
    "trainer/zero3_nodes.yaml": "defaults: [cpu, _self_]\nnodes: 2\naccelerator: gpu\n",
    "adapter/none.yaml": "{}",
    "adapter/lora.yaml": "rank: 8  # of the update\n",
    "optim/adamw.yaml": "_target_: aqaa.stages.optimizer.OptimizerSettings\nlr: 1e-3\n",
    "data/speech.yaml": "corpus: ${run.out}\n",
    "data/tokens.yaml": "corpus: ${parents.tokens}\n",
    "preset/paper/sft_1.yaml": """
        # @package _global_
        # aqaa sft preset=paper/sft_1
        defaults:
          - override /adapter: lora
        adapter:
          rank: 64
        optim:
          lr: 2e-5
        """,
    "preset/codes.yaml": "# @package _global_\ncodes: 4096\n",
}


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    """The folder with ``FILES`` in it."""
    import textwrap

    for name, text in FILES.items():
        path = tmp_path / "conf" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text).lstrip())
    return tmp_path / "conf"


@dataclass(frozen=True)
class TwoRanks:
    """Trainings by one process, in ``one``, and by two under ZeRO, in ``two``."""

    one: Path
    two: Path

    def alone(self, name: str) -> dict[str, Any]:
        """What one process saw; trained when first asked for."""
        from tests.runtime.two_ranks import run

        kept = self.one / f"{name}.json"
        if not kept.exists():
            kept.write_text(json.dumps(run(name, self.one, ranks=1)))
        return json.loads(kept.read_text())

    def seen(self, name: str) -> list[dict[str, Any]]:
        """What each of the two saw."""
        return [json.loads((self.two / f"{name}.{rank}.json").read_text()) for rank in (0, 1)]

    def losses(self, name: str) -> list[float]:
        """Of all batches in their order, which the ranks took in turns."""
        first, second = (seen["losses"] for seen in self.seen(name))
        return [loss for pair in zip(first, second, strict=True) for loss in pair]


@pytest.fixture(scope="session")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> TwoRanks:
    """One launch of two processes, for all the tests that look at it."""
    from tests.runtime.two_ranks import ALL, write_models

    folder = tmp_path_factory.mktemp("two_ranks")
    found = TwoRanks(folder / "one", folder / "two")
    for place in (found.one, found.two):
        write_models(place)
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    words += ["-m", "tests.runtime.two_ranks", str(found.two), *ALL]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    told: dict[str, Any] = {"capture_output": True, "text": True, "cwd": ROOT, "env": environment}
    done = subprocess.run([sys.executable, *words], **told, timeout=600)  # a hang is a failure
    assert done.returncode == 0, done.stdout + done.stderr
    return found
