"""Hears a few fixed questions answered at the checks of a training: `answers=heard`.

Nothing of the training changes by it: no generator is drawn from, no weight is touched.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning.pytorch as pl
import torch

from aqaa.backbone.loading import Backbone, is_sharded, load_backbone, shape_of
from aqaa.data.corpus import Corpus
from aqaa.data.domain import EXTRA_PRONUNCIATIONS
from aqaa.data.token_store import TokenStore
from aqaa.errors import UsageError
from aqaa.evaluation.agreement import hear_prompts, shares
from aqaa.evaluation.recognise import Recogniser
from aqaa.pipeline import Pipeline
from aqaa.runtime.log import log_answers
from aqaa.runtime.randomness import undrawn
from aqaa.runtime.strategy import gather_of
from aqaa.tokenizer.dual import DualTokenizer
from aqaa.vocoder.voice import load_voice

_BYTES_PER_PARAMETER = 4  # a copy is computed with in 32 bits, on the CPU


class HearAnswers(pl.Callback):
    """Lets the backbone in training answer, a vocoder speak, and a recogniser hear it.

    The share of answers whose speech says their text is logged as ``validation/agrees``, beside
    ``validation/text_right`` and ``validation/spoken_right``; ``agreement/`` of the run folder
    holds table, page and sounds. One rank does it, on the CPU. Where the weights lie in shards or
    on a GPU it works on a copy, unless that would be too large.

    Args:
        run: the run folder.
        corpus: its first validation questions are the prompts.
        tokens: its token store, which holds the tokenizers.
        flow: folder of the vocoder's first network.
        waveform: folder of its second.
        every: this often, in checks.
        prompts: how many.
        most_copied_gb: a larger copy is not made.
    """

    def __init__(
        self,
        *,
        run: str,
        corpus: str,
        tokens: str,
        flow: str,
        waveform: str,
        every: int = 1,
        prompts: int = 4,
        most_copied_gb: float = 8.0,
    ) -> None:
        if every < 1 or prompts < 1:
            raise UsageError(f"answers.every={every}, answers.prompts={prompts}: give 1 or more")
        self._run = Path(run)
        self._corpus = Corpus(corpus)
        self._rows = self._corpus.rows("validation")[:prompts]
        if not self._rows:
            raise UsageError(f"{corpus} has no validation question to hear answered")
        with undrawn():  # networks are built at random, then loaded
            self._tokenizer = DualTokenizer.load(TokenStore(tokens).tokenizer)
            self._voice = load_voice(flow, waveform)
        self._ear = Recogniser(self._corpus.domain["answers"], EXTRA_PRONUNCIATIONS)
        self._every = every
        self._most_bytes = most_copied_gb * 1e9
        self._checks = 0

    def state_dict(self) -> dict[str, int]:
        """How many checks there were, for a resume."""
        return {"checks": self._checks}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on counting."""
        self._checks = int(state_dict["checks"])

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Hear the answers of this check, if it is one of those."""
        self._checks += 1
        if (self._checks - 1) % self._every:
            return
        with undrawn(), self._backbone(trainer, pl_module) as backbone:
            if backbone is None:
                return
            pipeline = Pipeline(self._tokenizer, backbone, self._voice)
            rows = hear_prompts(
                pipeline,
                self._corpus,
                self._rows,
                ear=self._ear,
                run=self._run,
                step=trainer.global_step,
            )
        for name, share in shares(rows).items():
            pl_module.log(f"validation/{name}", share, rank_zero_only=True)
        log_answers(trainer.loggers, rows, self._run, trainer.global_step)

    @contextmanager
    def _backbone(self, trainer: pl.Trainer, stage: Any) -> Iterator[Backbone | None]:
        """The backbone on the rank that hears, whole and on the CPU; None where it does not."""
        parameters = list(stage.backbone.model.parameters())
        if not any(is_sharded(p) or p.device.type != "cpu" for p in parameters):
            yield stage.backbone if trainer.is_global_zero else None
            return
        size = _BYTES_PER_PARAMETER * sum(shape_of(p).numel() for p in parameters)
        if size > self._most_bytes:
            if trainer.is_global_zero and self._checks == 1:
                print(
                    f"answers are not heard: a copy of the backbone takes {size / 1e9:.1f} GB, "
                    f"answers.most_copied_gb={self._most_bytes / 1e9:g}",
                    flush=True,
                )
            yield None
            return
        with TemporaryDirectory(dir=self._run) as folder:
            # Every rank gives its shards; the first writes them, and reads them as one.
            stage.export(Path(folder) / "model", gather_of(trainer.strategy))
            with torch.inference_mode(False):
                whole = load_backbone(Path(folder) / "model") if trainer.is_global_zero else None
            yield whole
