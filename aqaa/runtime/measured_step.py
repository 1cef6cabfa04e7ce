"""What a step of a tokenizer's or vocoder's stage needs: its real code, run on a second of noise.

The network has its full size, the batch one row and then two, so that what belongs to the network
and what belongs to a row are told apart. A formula would have to know every layer. A batch so small
is at its peak when all gradients are there, a large one before: the plan may be one copy of the
gradients too large.
"""

import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from aqaa.audio.file import write_audio
from aqaa.data.manifest import write_manifest
from aqaa.data.token_store import write_store
from aqaa.signals import (
    GROUP_S,
    GROUP_SAMPLES,
    LINGUISTIC_CODES,
    LINGUISTIC_PER_GROUP,
    QUESTION_RATE_HZ,
    SEMANTIC_CODES,
    SEMANTIC_PER_GROUP,
    CodePair,
)
from aqaa.storage import tree_hash, write_json
from aqaa.storage import write_manifest as seal

GROUPS = 16  # of 120 ms, in a clip of the probe
CLIP_S = float(GROUPS * GROUP_S)
_CLIPS = 48  # so many hold enough places to start a book of 1,024 codes from
_ANSWERS = 8
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_ROWS = (1, 1, 2)  # of each step; the first makes what the optimizer keeps


@dataclass(frozen=True)
class MeasuredStep:
    """Of one step, on one rank.

    ``parameters``: trained ones, by network; ``averaged``: of a running average; ``fixed_bytes``:
    at the peak on the way back, whatever the batch; ``row_bytes`` and ``row_flops``: of every row
    of the batch; ``update_bytes``: at the peak of the optimizer's own step.
    """

    parameters: dict[str, int]
    averaged: int
    fixed_bytes: int
    row_bytes: int
    row_flops: int
    update_bytes: int

    def peak_bytes(self, rows: int) -> int:
        """Of a step with so many rows."""
        return max(self.fixed_bytes + rows * self.row_bytes, self.update_bytes)

    def longer(self, times: float) -> "MeasuredStep":
        """The same of rows so many times as long; that attention grows faster is left out."""
        row_bytes, row_flops = round(times * self.row_bytes), round(times * self.row_flops)
        return replace(self, row_bytes=row_bytes, row_flops=row_flops)


class Counters(TorchDispatchMode):
    """Counts FLOP of products and bytes of living tensors; ``peak`` is the most of these."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = self.flops = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if (count := flop_registry.get(func.overloadpacket)) is not None:
            self.flops += count(*args, **(kwargs or {}), out_val=made)
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, torch.Tensor):
                self._see(tensor)
        return made

    def _see(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._sizes:
            return
        self._sizes[key] = size
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self.live -= self._sizes.pop(key)


class _Meter(pl.Callback):
    """Reads the counters after each step and ends the training after the last."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self.backward_peaks: list[int] = []
        self.peaks: list[int] = []
        self.flops: list[int] = []

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        self._counters.peak, self._counters.flops = self._counters.live, 0

    def on_after_backward(self, *args: Any) -> None:
        self.backward_peaks.append(self._counters.peak)
        self._counters.peak = self._counters.live

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        self.peaks.append(self._counters.peak)
        self.flops.append(self._counters.flops)
        trainer.should_stop = len(self.peaks) == len(_ROWS)


class _Source:
    """The verb's own batches, of one row or of two."""

    def __init__(self, sources: dict[int, Any]) -> None:
        self._sources = sources
        self._batches = {rows: source.batch(0) for rows, source in sources.items()}

    def batch(self, step: int) -> Any:
        return self._batches[_ROWS[min(step, len(_ROWS) - 1)]]

    def validation(self) -> list[Any]:
        return []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sources[_ROWS[0]], name)


def measure_step(cfg: Any) -> MeasuredStep:
    """Measure the composed config of `aqaa tokenizer` or `aqaa vocoder`; it is changed."""
    from aqaa.data.module import DataModule
    from aqaa.runtime.run import quiet_lightning

    quiet_lightning()
    with _probe(cfg) as stage, Counters() as counters:
        meter = _Meter(counters)
        trainer = pl.Trainer(
            accelerator="cpu", devices=1, precision=cfg.trainer.precision, max_steps=10**6,
            logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, callbacks=[meter],
        )  # fmt: skip
        trainer.fit(stage[0], DataModule(stage[1]))
        # A stage that takes its own steps does not tell where the way back ends.
        _, one, two = meter.backward_peaks or meter.peaks
        networks = {
            name: sum(p.numel() for p in child.parameters() if p.requires_grad)
            for name, child in stage[0].named_children()
        }
        average = stage[0].average
        return MeasuredStep(
            parameters={name: count for name, count in networks.items() if count},
            averaged=0 if average is None else sum(p.numel() for p in average.parameters()),
            fixed_bytes=2 * one - two,
            row_bytes=two - one,
            row_flops=meter.flops[2] - meter.flops[1],
            update_bytes=meter.peaks[1],
        )


@contextmanager
def _probe(cfg: Any) -> Iterator[tuple[Any, _Source]]:
    """The stage as it is when all of it is at work, and its batches from a corpus of noise."""
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    with tempfile.TemporaryDirectory() as temporary:
        corpus, tokens = Path(temporary) / "corpus", Path(temporary) / "tokens"
        _write_noise(corpus, tokens)
        places = {"corpus": str(corpus), "tokens": str(tokens), "manifests": None, "speakers": None,
                  "cached_clips": 0}  # fmt: skip
        cfg.data.update({name: value for name, value in places.items() if name in cfg.data})
        begun = {"start_from": None, "alone_steps": 0, "codebook_batches": _CLIPS}
        cfg.stage.update({name: value for name, value in begun.items() if name in cfg.stage})
        if cfg.stage._target_.endswith(".Flow"):
            OmegaConf.update(cfg, "stage.start_from_codebooks", False, force_add=True)
        sources = {}
        for rows in set(_ROWS):
            cfg.data.batch = rows
            sources[rows] = instantiate(cfg.data, _convert_="all")
        yield instantiate(cfg.stage, _convert_="all"), _Source(sources)


def _write_noise(corpus: Path, tokens: Path) -> None:
    """Clips of noise with words, phones and codes: all that any source of batches asks for."""
    corpus.mkdir()
    rng = np.random.default_rng(0)
    noise = 0.1 * rng.standard_normal((GROUPS + _CLIPS) * GROUP_SAMPLES)
    write_audio(corpus / "noise.wav", noise.astype(np.float32), QUESTION_RATE_HZ)
    parts = [{"type": "audio", "path": "noise.wav", "start": float(i * GROUP_S),
              "end": float((i + GROUPS) * GROUP_S), "text": _LETTERS, "phones": list(_LETTERS)}
             for i in range(_CLIPS)]  # fmt: skip
    rows = [{"id": f"r{i}", "kind": "chat", "messages": [{"role": "user", "content": [part]}]}
            for i, part in enumerate(parts)]  # fmt: skip
    answers = [{"id": f"a{i}", "kind": "tts", "text": _LETTERS, "audio": parts[i]}
               for i in range(_ANSWERS)]  # fmt: skip
    manifests: dict[str, list[dict[str, Any]]]
    manifests = {"train": rows, "validation": rows[:1], "answers": answers}
    for split, listed in manifests.items():
        write_manifest(corpus / f"{split}.jsonl", listed)
    write_json(corpus / "domain.json", {"phones": list(_LETTERS)})
    seal(corpus)
    tokens.mkdir()
    pair = CodePair(
        rng.integers(LINGUISTIC_CODES, size=GROUPS * LINGUISTIC_PER_GROUP).tolist(),
        rng.integers(SEMANTIC_CODES, size=GROUPS * SEMANTIC_PER_GROUP).tolist(),
    )
    keys = [f"{name}/{row['id']}" for name, listed in manifests.items() for row in listed]
    meta = {"tokenizer_hash": "", "corpus_hash": tree_hash(corpus), "question_books": "both"}
    write_store(tokens, dict.fromkeys(keys, pair), meta)
