"""A small conf/ of our own, so that composing is tested apart from what the real one holds."""

from pathlib import Path

import pytest

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
