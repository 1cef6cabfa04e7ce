"""Ear, tokenizer, backbone, vocoder: a spoken question in, a spoken answer out.

A model folder holds ``tokenizer/{linguistic,semantic}``, ``backbone`` and
``vocoder/{flow,waveform}``; :meth:`Pipeline.load` needs nothing but that folder.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from aqaa.audio.file import prepare, read_audio
from aqaa.backbone.decoding import Decoder, Sampling
from aqaa.backbone.loading import Backbone, load_backbone
from aqaa.errors import UsageError
from aqaa.lineage import tokenizer_hash
from aqaa.signals import CodePair, Turn, Waveform
from aqaa.stream import Mode
from aqaa.tokenizer.dual import DualTokenizer
from aqaa.vocoder.vocoder import Vocoder

ORGANS = ("tokenizer", "backbone", "vocoder")


@dataclass(frozen=True)
class Reply:
    """An answer: its ``text`` stream, its ``ids`` as written, its ``sound`` (None where nothing
    was said) and whether it ended by itself."""

    text: str
    ids: list[int]
    sound: Waveform | None
    complete: bool


class Pipeline:
    """The four organs of one model."""

    def __init__(self, tokenizer: DualTokenizer, backbone: Backbone, vocoder: Vocoder) -> None:
        self.tokenizer = tokenizer
        self.backbone = backbone
        self.vocoder = vocoder
        self._decoder = Decoder(backbone)

    @classmethod
    def load(cls, folder: str | Path) -> "Pipeline":
        """Load a model folder; UsageError names what is missing or does not belong together."""
        folder = Path(folder)
        missing = [organ for organ in ORGANS if not (folder / organ).is_dir()]
        if missing:
            raise UsageError(f"{folder} is not a whole model: it lacks {', '.join(missing)}")
        backbone = load_backbone(folder / "backbone")
        made_with, found = backbone.ids.tokenizer_hash, tokenizer_hash(folder / "tokenizer")
        if made_with != found:
            raise UsageError(f"{folder}: the backbone was trained on codes of tokenizers {made_with}, "
                             f"these are {found}")
        return cls(
            DualTokenizer.load(folder / "tokenizer"), backbone, Vocoder.load(folder / "vocoder")
        )

    def listen(self, question: Waveform) -> CodePair:
        """Codes of a question, after silence is trimmed and the level set."""
        return self.tokenizer.encode(torch.from_numpy(prepare(question).samples))

    def reply(
        self, codes: CodePair, *, mode: Mode = "both", sampling: Sampling | None = None, seed: int = 0
    ) -> Reply:
        """Answer a question given as codes."""
        ids = self.backbone.ids
        prompt = ids.layout.prompt([Turn("human", speech=[codes])], ids.text, ids.vocabulary)
        generator = torch.Generator().manual_seed(seed)
        written = self._decoder.answer(prompt, mode=mode, sampling=sampling, generator=generator)
        answer = ids.layout.parse(written, ids.text, ids.vocabulary)
        spoken = CodePair(
            [code for pair in answer.speech for code in pair.linguistic],
            [code for pair in answer.speech for code in pair.semantic],
        )
        sound = self.vocoder.speak(spoken) if spoken.groups else None
        return Reply(answer.text, written, sound, answer.complete)

    def answer(self, question: str | Path, *, seed: int = 0) -> Reply:
        """Answer a question read from a sound file."""
        return self.reply(self.listen(read_audio(question)), seed=seed)
