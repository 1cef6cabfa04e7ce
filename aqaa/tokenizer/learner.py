"""The released kind of tokenizers with the heads that teach them; the heads stay behind on export.

The linguistic encoder learns to transcribe (CTC), and its book is clustered when it has. The
semantic one has its book in the middle: blocks behind it transcribe from the codes alone, and each
code must tell pitch, level and emotion by itself, which words do not.
Letters: B clips, F frames, I numbers a frame, N codes, W width, K codes, P labels with blank, S CTC
steps, E emotions, M mel bins, n vectors.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aqaa.audio.fbank import FRAME_WIDTH
from aqaa.errors import UsageError
from aqaa.losses.voice import emotion_loss, level_distance, pitch_distance
from aqaa.signals import LINGUISTIC_CODES
from aqaa.storage import load_tensors, read_json, save_organ
from aqaa.tokenizer.codebook import Codebook, Quantised
from aqaa.tokenizer.released import LinguisticTokenizer, SemanticTokenizer
from aqaa.tokenizer.speech_tokenizer import TokenizerOutput
from aqaa.tokenizer.whisper import STRIDE, WhisperBlock

HEADS = "heads"  # the folder of the teaching heads inside an export
_TOKENIZER = "tokenizer."
_FRAMES_PER_CODE = STRIDE * STRIDE
_FAINTEST_SCALE = 1e-2


class Voiced(Protocol):
    """What a clip's voice does at every code: :class:`aqaa.data.hearing.Targets`."""

    @property
    def f0_hz(self) -> Tensor:
        """Pitch (B, N), 0 where nothing is voiced."""
        ...

    @property
    def level(self) -> Tensor:
        """Level (B, N) in nats against the clip's mean."""
        ...

    @property
    def emotion(self) -> Tensor:
        """Number of the emotion (B,), -1 where none is known."""
        ...


class LinguisticLearner(nn.Module):
    """A :class:`LinguisticTokenizer` that transcribes.

    Args:
        labels: CTC labels in order; label 0 is the blank and not among them.
        emotions: unused here: words alone shape this book.
        width, blocks, heads, inner, kernel: of the encoder.
        codes: size of the book.
        ctc_steps: CTC steps a code; speech has more letters than 16.7 a second.
    """

    book = "linguistic"

    def __init__(
        self,
        *,
        labels: list[str],
        emotions: list[str],
        width: int = 512,
        blocks: int = 50,
        heads: int = 4,
        inner: int = 2048,
        kernel: int = 11,
        codes: int = LINGUISTIC_CODES,
        ctc_steps: int = 4,
    ) -> None:
        super().__init__()
        sizes = {"width": width, "blocks": blocks, "heads": heads, "inner": inner, "kernel": kernel}
        self.settings: dict[str, Any] = {"labels": list(labels), "emotions": [], **sizes}
        self.settings |= {"codes": codes, "ctc_steps": ctc_steps}
        self.ctc_steps = ctc_steps
        self.tokenizer = LinguisticTokenizer(
            codes=codes, encoder={"in_width": FRAME_WIDTH, **sizes}
        )
        self.ctc_head = nn.Linear(width, ctc_steps * (len(labels) + 1))

    @property
    def codebook(self) -> Codebook:
        """The tokenizer's book."""
        return self.tokenizer.codebook

    @torch.no_grad()
    def measure(self, batches: list[tuple[Tensor, Tensor]]) -> None:
        """Set the normalisation by the frames (B, F, I), lengths (B,) of many clips."""
        found = torch.cat([feats[_real(lengths, feats.shape[1])] for feats, lengths in batches])
        spread, mean = torch.std_mean(found.double(), 0)
        self.tokenizer.shift.copy_(-mean)
        self.tokenizer.scale.copy_(1 / spread.clamp(min=_FAINTEST_SCALE))

    def hidden(self, feats: Tensor, lengths: Tensor) -> Tensor:
        """(B, F, I), (B,) -> (B, F, W)."""
        encoded: Tensor = self.tokenizer.encoder(self.tokenizer.normalise(feats), lengths)
        return encoded

    def read(self, hidden: Tensor) -> Tensor:
        """Log-probabilities (B, S, P) of the labels in (B, N, W)."""
        return _read(self.ctc_head, hidden, self.ctc_steps)

    def forward(self, feats: Tensor, lengths: Tensor, targets: Voiced) -> TokenizerOutput:
        """Transcribe (B, F, I) of so many frames (B,)."""
        z = self.hidden(feats, lengths)
        mask = _real(lengths, z.shape[1]).to(z.dtype)
        return TokenizerOutput(self.read(z), lengths * self.ctc_steps, None, z, z, None, mask)

    @torch.no_grad()
    def vectors(self, feats: Tensor, lengths: Tensor, targets: Voiced) -> Tensor:
        """What the codebook is to name (n, W)."""
        return self.hidden(feats, lengths)[_real(lengths, feats.shape[1])]

    def take(self, tokenizer: LinguisticTokenizer) -> None:
        """Begin with the weights, normalisation and book of another of the same sizes."""
        _take(self.tokenizer, tokenizer)

    def save(self, folder: str | Path) -> None:
        """Write the tokenizer, and its head in a folder of its own."""
        self.tokenizer.save(folder)
        _save_heads(self, folder)


class SemanticLearner(nn.Module):
    """A :class:`SemanticTokenizer` and what listens to its codes.

    Args:
        labels: CTC labels in order; label 0 is the blank and not among them.
        emotions: names of the emotions in the data.
        network: sizes of the :class:`SemanticTokenizer`: ``bins`` of the mel; ``width``,
            ``blocks``, ``heads`` and ``inner`` of the encoder; ``positions``, the longest clip in
            steps of 40 ms; ``codes`` of the book.
        behind: blocks behind the book.
        ctc_steps: CTC steps a code.
        weights: of the heads that each code is told from: ``pitch``, ``energy``, ``emotion``; one
            left out does not learn.
        decay: of the book's moving averages.
    """

    book = "semantic"

    def __init__(
        self,
        *,
        labels: list[str],
        emotions: list[str],
        network: Mapping[str, int],
        behind: int = 6,
        ctc_steps: int = 2,
        weights: Mapping[str, float] | None = None,
        decay: float = 0.97,
    ) -> None:
        super().__init__()
        sizes = {name: int(size) for name, size in network.items()}
        self.weights = {"pitch": 0.0, "energy": 0.0, "emotion": 0.0}
        if unknown := sorted(set(weights or {}) - set(self.weights)):
            raise UsageError(f"tokenizer.weights {unknown}: there are {', '.join(self.weights)}")
        self.weights |= weights or {}
        if self.weights["emotion"] and len(emotions) < 2:
            raise UsageError(
                f"tokenizer.weights.emotion={self.weights['emotion']:g} needs utterances of at "
                f"least two emotions; the data name {emotions or 'none'}"
            )
        self.settings: dict[str, Any] = {"labels": list(labels), "emotions": list(emotions)}
        self.settings |= {"network": sizes, "behind": behind, "ctc_steps": ctc_steps}
        self.settings |= {"weights": self.weights, "decay": decay}
        self.ctc_steps = ctc_steps
        self.tokenizer = SemanticTokenizer(network=sizes)
        self.tokenizer.codebook.decay = decay
        width = sizes["width"]
        self.behind = nn.ModuleList(
            WhisperBlock(width=width, heads=sizes["heads"], inner=sizes["inner"])
            for _ in range(behind)
        )
        self.norm = nn.LayerNorm(width)
        self.ctc_head = nn.Linear(width, ctc_steps * (len(labels) + 1))
        self.voice_head = nn.Linear(width, 3)  # voiced, pitch, level
        self.emotion_head = nn.Linear(width, len(emotions)) if self.weights["emotion"] else None
        self.mel_head = nn.Linear(width, sizes["bins"] * _FRAMES_PER_CODE)

    @property
    def codebook(self) -> Codebook:
        """The tokenizer's book."""
        return self.tokenizer.codebook

    def listen(self, vectors: Tensor, mask: Tensor) -> Tensor:
        """What the blocks behind the book make of unit vectors (B, N, W), real where (B, N) is."""
        places = self.tokenizer.network.encoder.positional_embedding[: vectors.shape[1]]
        x = vectors * self._spread + places
        for block in self.behind:
            x = block(x, mask.bool()[:, None, None])
        return self.norm(x)

    def read(self, hidden: Tensor) -> Tensor:
        """Log-probabilities (B, S, P) of the labels in what :meth:`listen` gave (B, N, W)."""
        return _read(self.ctc_head, hidden, self.ctc_steps)

    def encode(self, feats: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Unit vectors (B, N, W) of a mel (B, F, I) before the book, and their mask (B, N)."""
        hidden, places = self.tokenizer.network.encoder(feats.transpose(1, 2), lengths)
        return F.normalize(hidden, dim=-1), _real(places, hidden.shape[1]).to(hidden.dtype)

    def forward(self, feats: Tensor, lengths: Tensor, targets: Voiced) -> TokenizerOutput:
        """Transcribe a mel (B, F, I) of so many frames (B,) from its codes.

        Without a book yet, from the vectors themselves. ``z`` and ``quantised`` come out with unit
        variance, so that the weight of the commitment does not depend on the width.
        """
        z, mask = self.encode(feats, lengths)
        heard = Quantised(z, mask.long(), z)
        active = bool(self.codebook.active)
        if active:
            heard = self.tokenizer.codebook(z, mask)
        log_probs = self.read(self.listen(heard.vectors, mask))
        told = heard.vectors * self._spread
        mel = self.mel_head(told).unflatten(-1, (_FRAMES_PER_CODE, -1)).flatten(1, 2)
        return TokenizerOutput(
            log_probs,
            mask.sum(1).long() * self.ctc_steps,
            mel[:, : feats.shape[1]].transpose(1, 2),
            z * self._spread,
            heard.chosen * self._spread,
            heard.codes if active else None,
            mask,
            self._voice(told, mask, targets),
            self.weights,
        )

    def _voice(self, told: Tensor, mask: Tensor, targets: Voiced) -> dict[str, Tensor]:
        """Loss terms of what each code (B, N, W) tells by itself."""
        voiced, octaves, level = self.voice_head(told).unbind(-1)
        terms = {
            "pitch": pitch_distance(voiced, octaves, targets.f0_hz, mask),
            "energy": level_distance(level, targets.level, mask),
        }
        if self.emotion_head is not None:
            mean = (told * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            terms["emotion"] = emotion_loss(self.emotion_head(mean), targets.emotion)
        return terms

    @property
    def _spread(self) -> float:
        """Brings the numbers of a unit vector to unit variance."""
        return math.sqrt(self.norm.normalized_shape[0])

    @torch.no_grad()
    def vectors(self, feats: Tensor, lengths: Tensor, targets: Voiced) -> Tensor:
        """What the codebook is to name (n, W)."""
        z, mask = self.encode(feats, lengths)
        return z[mask.bool()]

    @torch.no_grad()
    def restart(self, out: TokenizerOutput, *, generator: torch.Generator) -> int:
        """Give codes that are dead a vector of this batch each; how many there were."""
        vectors = out.z[out.mask.bool()] / self._spread
        return self.tokenizer.codebook.restart(vectors, generator=generator)

    def take(self, tokenizer: SemanticTokenizer) -> None:
        """Begin with the weights and book of another of the same sizes."""
        _take(self.tokenizer, tokenizer)

    def save(self, folder: str | Path) -> None:
        """Write the tokenizer, cut behind its book, and what was cut off in a folder of its own."""
        self.tokenizer.save(folder)
        _save_heads(self, folder)


def _read(head: nn.Linear, hidden: Tensor, ctc_steps: int) -> Tensor:
    """(B, N, W) -> (B, N ctc_steps, P)."""
    return head(hidden).unflatten(-1, (ctc_steps, -1)).flatten(1, 2).log_softmax(-1)


def _real(lengths: Tensor, places: int) -> Tensor:
    """(B,) -> (B, places): True before each length."""
    return torch.arange(places, device=lengths.device) < lengths[:, None]


def _take(mine: Any, other: Any) -> None:
    if type(mine) is not type(other) or mine.settings != other.settings:
        raise UsageError(
            f"the tokenizer to start from is a {type(other).__name__} of {other.settings}, not a "
            f"{type(mine).__name__} of {mine.settings}: choose tokenizer=... of its size"
        )
    mine.load_state_dict(other.state_dict(), strict=True)


def _save_heads(learner: LinguisticLearner | SemanticLearner, folder: str | Path) -> None:
    own = {k: v for k, v in learner.state_dict().items() if not k.startswith(_TOKENIZER)}
    save_organ(Path(folder) / HEADS, type(learner).__name__, learner.settings, own)


def load_learner(folder: str | Path) -> LinguisticLearner | SemanticLearner:
    """Read a tokenizer's folder with the heads that taught it, in evaluation mode.

    Raises:
        UsageError: the folder holds no heads: what was released, or the walkthrough's small kind.
    """
    heads = Path(folder) / HEADS
    if not (heads / "config.json").is_file():
        raise UsageError(f"{folder} holds no {HEADS}/, with which a tokenizer learns to transcribe")
    settings = read_json(heads / "config.json")
    kinds = {kind.__name__: kind for kind in (LinguisticLearner, SemanticLearner)}
    kind = kinds.get(settings.pop("organ", ""))
    if kind is None:
        raise UsageError(f"{heads} does not hold the heads of a tokenizer")
    learner: Any = kind(**settings)
    own = load_tensors(Path(folder) / "model.safetensors")
    state = load_tensors(heads / "model.safetensors")
    try:
        learner.load_state_dict(state | {_TOKENIZER + k: v for k, v in own.items()}, strict=True)
    except RuntimeError as error:
        raise UsageError(f"{folder} is damaged: {' '.join(str(error).split())[:200]}") from None
    return learner.eval()
