"""Ear, tokenizer, backbone, vocoder: a spoken question in, a spoken answer out.

A model folder holds ``tokenizer/{linguistic,semantic}``, ``backbone`` and
``vocoder/{flow,waveform}``; :meth:`Pipeline.load` needs nothing but that folder.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from aqaa.audio.file import prepare
from aqaa.backbone.decoding import Decoder, Sampling
from aqaa.backbone.loading import Backbone, load_backbone
from aqaa.errors import UsageError
from aqaa.grammar import Mode
from aqaa.lineage import ORGANS, tokenizer_hash
from aqaa.signals import CodePair, Turn, Waveform
from aqaa.storage import atomic_folder, tree_hash, verify_manifest
from aqaa.tokenizer.dual import DualTokenizer
from aqaa.vocoder.voice import Voice, load_voice


@dataclass(frozen=True)
class Reply:
    """An answer.

    ``text`` of its text stream, ``ids`` as written, ``sound`` or None where nothing was said,
    ``complete`` if it ended by itself.
    """

    text: str
    ids: list[int]
    sound: Waveform | None
    complete: bool


class Pipeline:
    """The organs of one model."""

    def __init__(self, tokenizer: DualTokenizer, backbone: Backbone, vocoder: Voice) -> None:
        self.tokenizer = tokenizer
        self.backbone = backbone
        self.vocoder = vocoder
        self._decoder = Decoder(backbone)

    @classmethod
    def from_folders(
        cls,
        *,
        tokenizer: str | Path,
        backbone: str | Path,
        flow: str | Path,
        waveform: str | Path,
    ) -> "Pipeline":
        """Put a model together from the folders of its organs.

        Args:
            tokenizer: holds linguistic/ and semantic/.
            backbone: a model folder of a language stage or of a merge.
            flow: a model folder of the flow vocoder.
            waveform: a model folder of the waveform head.

        Raises:
            UsageError: an organ is missing or damaged, or the backbone was trained on the codes
                of other tokenizers.
        """
        decoder, found = load_backbone(backbone), tokenizer_hash(tokenizer)
        if (trained_on := decoder.ids.tokenizer_hash) != found:
            raise UsageError(
                f"{backbone} was trained on the codes of tokenizers {trained_on}, but {tokenizer} "
                f"holds {found}: give the tokenizers it was trained with"
            )
        return cls(DualTokenizer.load(tokenizer), decoder, load_voice(flow, waveform))

    @classmethod
    def load(cls, folder: str | Path) -> "Pipeline":
        """Load a model folder; UsageError names what is missing or does not belong together."""
        folder = Path(folder)
        missing = [organ for organ in ORGANS if not (folder / organ).is_dir()]
        if missing:
            raise UsageError(f"{folder} is not a whole model: it lacks {', '.join(missing)}")
        if tree_hash(folder):
            verify_manifest(folder, allow_extra=True)  # a card or a question may lie beside
        return cls.from_folders(
            tokenizer=folder / "tokenizer",
            backbone=folder / "backbone",
            flow=folder / "vocoder" / "flow",
            waveform=folder / "vocoder" / "waveform",
        )

    def save(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write a model folder as a whole, with its manifest.

        Args:
            folder: replaced if it exists.
            dtype: precision the numbers are stored in, e.g. ``torch.float16`` for half the size;
                :meth:`load` computes in float32 whatever it is. None: as they are.
        """
        with atomic_folder(folder) as temporary:
            self.tokenizer.save(temporary / "tokenizer", dtype=dtype)
            self.vocoder.save(temporary / "vocoder", dtype=dtype)
            # The tokenizers' files may be other bytes now, and the backbone names them by hash.
            ids = replace(
                self.backbone.ids, tokenizer_hash=tokenizer_hash(temporary / "tokenizer")
            )
            replace(self.backbone, ids=ids).save(temporary / "backbone", dtype=dtype)

    def listen(self, question: Waveform) -> CodePair:
        """Codes of a question, after silence is trimmed and the level set."""
        level = self.tokenizer.peak
        samples = torch.from_numpy(prepare(question, peak=level).samples)
        return self.tokenizer.encode(samples, books=self.backbone.ids.layout.books)

    def reply(
        self,
        codes: CodePair,
        *,
        mode: Mode = "both",
        system: str = "",
        sampling: Sampling | None = None,
        seed: int = 0,
    ) -> Reply:
        """Answer a question given as codes, after a ``system`` turn if there is one."""
        ids = self.backbone.ids
        asked = [*([Turn("system", system)] if system else []), Turn("human", speech=[codes])]
        prompt = ids.layout.prompt(asked, ids.text, ids.vocabulary)
        generator = torch.Generator().manual_seed(seed)
        written = self._decoder.answer(prompt, mode=mode, sampling=sampling, generator=generator)
        answer = ids.layout.parse(written, ids.text, ids.vocabulary)
        spoken = CodePair(
            [code for pair in answer.speech for code in pair.linguistic],
            [code for pair in answer.speech for code in pair.semantic],
        )
        sound = self.vocoder.speak(spoken) if spoken.groups else None
        return Reply(answer.text, written, sound, answer.complete)

    def answer(self, question: Waveform) -> Reply:
        """Answer a spoken question with the most likely ids."""
        return self.reply(self.listen(question))
