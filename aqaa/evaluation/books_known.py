"""What can be told from the codes of one book: letters or phones, pitch, level, speaker, emotion.

Every figure is a linear map in closed form from the vectors of the codes, with the same from the
vectors before the book as its ceiling.
Letters: N codes, D code width, C clips, T samples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from aqaa.audio.pitch import voice
from aqaa.data.utterances import Utterance
from aqaa.evaluation.probes import classification, regression, windows
from aqaa.signals import LINGUISTIC_RATE_HZ, QUESTION_RATE_HZ, SEMANTIC_RATE_HZ

RATES_HZ = {"linguistic": LINGUISTIC_RATE_HZ, "semantic": SEMANTIC_RATE_HZ}
_SIDES = {"linguistic": 1, "semantic": 2}  # codes on either side: 180 and 200 ms are looked at


@dataclass(frozen=True)
class Heard:
    """One clip through one book.

    ``vectors`` (N, D) before it, ``codes`` (N,), ``chosen`` (N, D) its own vectors.
    """

    vectors: Tensor
    codes: Tensor
    chosen: Tensor


@dataclass(frozen=True)
class Moments:
    """What is said when.

    ``labels`` of each clip at ``rate_hz``, None where nothing is said; a clip has none where nobody
    wrote down its words. ``reason``: why no clip has any.
    """

    labels: Sequence[Sequence[str | None]]
    rate_hz: float
    reason: str = ""

    def at(self, clip: int, codes: int, rate_hz: float) -> list[str | None]:
        """What is said in the middle of each of a clip's codes."""
        said = self.labels[clip]
        places = [int((n + 0.5) / rate_hz * self.rate_hz) for n in range(codes)]
        return [said[p] if p < len(said) else None for p in places]


def known(
    book: str,
    utterances: Sequence[Utterance],
    sounds: Sequence[Tensor],
    heard: Sequence[Heard],
    moments: Mapping[str, Moments],
    fit: Tensor,
) -> dict[str, dict[str, Any]]:
    """Every probe of one book: its value from ``codes``, its ``ceiling``, ``chance`` and ``n``.

    Args:
        book: its name.
        utterances: the clips.
        sounds: of each (T,).
        heard: each through the book.
        moments: what is said when, in letters (``label``) and in sounds (``phone``).
        fit: (C,), True for the clips the maps are fitted to; the others give the figures.
    """
    rate_hz = float(RATES_HZ[book])
    step = round(QUESTION_RATE_HZ / rate_hz)
    voices = [voice(s, len(h.codes), step_samples=step) for s, h in zip(sounds, heard, strict=True)]
    said: dict[str, list[str | None]] = {kind: [] for kind in moments}
    for clip, one in enumerate(heard):
        for kind, what in moments.items():
            said[kind] += what.at(clip, len(one.codes), rate_hz)
    targets = {kind: _numbers(names) for kind, names in said.items()} | {
        "f0_hz": torch.cat([v.f0_hz for v in voices]),
        "level": torch.cat([v.level - v.level.mean() for v in voices]),
        "speaker": _numbers([u.speaker for u in utterances]),
        "emotion": _numbers([u.emotion for u in utterances]),
        "rows": fit.repeat_interleave(torch.tensor([len(h.codes) for h in heard])),
    }
    chosen = _measured([h.chosen for h in heard], _SIDES[book], targets, fit)
    before = _measured([h.vectors for h in heard], _SIDES[book], targets, fit)
    return {
        name: {
            "codes": probe.value, "ceiling": before[name].value, "chance": probe.chance,
            "n": probe.n, "reason": _reason(moments, name) or probe.reason,
        }
        for name, probe in chosen.items()
    }  # fmt: skip


def _measured(
    clips: list[Tensor], side: int, targets: dict[str, Tensor], fit: Tensor
) -> dict[str, Any]:
    """All probes of vectors (N, D) of each clip."""
    x = torch.cat([windows(clip, side) for clip in clips])
    rows, f0_hz = targets["rows"], targets["f0_hz"]
    voiced = f0_hz > 0
    found = {
        "voicing": classification(x, voiced.long(), rows),
        "pitch": regression(x[voiced], f0_hz[voiced].log2(), rows[voiced]),
        "energy": regression(x, targets["level"], rows),
    }
    for kind in ("label", "phone"):
        said = targets[kind] >= 0
        found[kind] = classification(x[said], targets[kind][said], rows[said])
    whole = torch.stack([torch.cat([c.mean(0), c.std(0, correction=0)]) for c in clips])
    for owner in ("speaker", "emotion"):
        mine = targets[owner] >= 0
        found[owner] = classification(whole[mine], targets[owner][mine], fit[mine])
    return found


def _reason(moments: Mapping[str, Moments], name: str) -> str:
    return moments[name].reason if name in moments else ""


def _numbers(names: Sequence[str | None]) -> Tensor:
    """Each name's number, -1 for None; (N,)."""
    number = {name: i for i, name in enumerate(sorted({name for name in names if name}))}
    return torch.tensor([number.get(name or "", -1) for name in names])
