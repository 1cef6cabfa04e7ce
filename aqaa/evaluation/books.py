"""What the codes of two tokenizers know, side by side: language and what is not language.

Letters: T samples, N codes, D code width, C clips.
"""

from pathlib import Path
from random import Random
from typing import Any

import torch
from rapidfuzz.distance import Levenshtein
from torch import Tensor
from torch.nn import functional as F

from aqaa.audio.file import pad_to_groups
from aqaa.audio.mel import log_mel
from aqaa.audio.whisper_mel import whisper_mel
from aqaa.data.utterances import Utterance, read_utterances, readable
from aqaa.errors import UsageError
from aqaa.evaluation.align import FRAME_RATE_HZ, Aligner
from aqaa.evaluation.books_known import RATES_HZ, Heard, Moments, known
from aqaa.evaluation.books_page import FILE, page
from aqaa.losses.ctc import best_alignment, greedy_labels
from aqaa.progress import track
from aqaa.storage import atomic_folder, check_replaceable, write_json, write_text
from aqaa.tokenizer.dual import DualTokenizer, load_book
from aqaa.tokenizer.learner import HEADS, LinguisticLearner, SemanticLearner, load_learner
from aqaa.tokenizer.released import LinguisticTokenizer, SemanticTokenizer

Learner = LinguisticLearner | SemanticLearner
_FIT_SHARE = 2 / 3
_LONGEST_S = 30.0


def report(
    *,
    corpus: str,
    linguistic: str,
    semantic: str,
    out: str,
    splits: list[str] | None = None,
    labels: str = "characters",
    clips: int = 300,
    seed: int = 0,
) -> Path:
    """Write report.json and report.html on two books.

    Args:
        corpus: folder of the manifests.
        linguistic: model folder of that tokenizer.
        semantic: model folder of the other one.
        out: folder of the report, written as a whole.
        splits: manifests whose clips are heard; none that was trained on.
        labels: ``characters`` of the transcripts, or ``phones`` of the parts that have them: what
            the tokenizers learned to write.
        clips: so many at the most.
        seed: of the draw, and of which clips the probes are fitted to.
    """
    check_replaceable(out)
    if labels not in ("characters", "phones"):
        raise UsageError(f"labels={labels} is neither characters nor phones")
    folders = {"linguistic": Path(linguistic), "semantic": Path(semantic)}
    books = {name: load_book(folder) for name, folder in folders.items()}
    peak = DualTokenizer(*books.values()).peak
    learners = {n: load_learner(f) for n, f in folders.items() if (f / HEADS).is_dir()}
    found = _drawn(corpus, splits or ["validation", "test"], clips, seed)
    sounds = [u.samples(Path(corpus), peak=peak) for u in found]
    heard: dict[str, list[Heard]] = {name: [] for name in books}
    for samples in track(sounds, "listen", len(sounds), unit="clips"):
        for name, book in books.items():
            heard[name].append(hear(book, samples))
    spoken = [_spoken(u, labels) for u in found]
    moments = {"label": _letters(learners, heard, spoken), "phone": _phones(found, sounds)}
    fit = torch.rand(len(found), generator=torch.Generator().manual_seed(seed)) < _FIT_SHARE
    figures = {
        name: {
            **_usage(books[name], heard[name], RATES_HZ[name]),
            "errors": _errors(learners.get(name), heard[name], spoken),
            "probes": known(name, found, sounds, heard[name], moments, fit),
        }
        for name in books
    }
    record = {"corpus": str(corpus), "clips": len(found), "fitted": int(fit.sum()),
              "labels": labels, "seconds": sum(u.duration_s for u in found), **figures}  # fmt: skip
    with atomic_folder(out) as folder:
        write_json(folder / "report.json", record)
        runs = {name: path.parent for name, path in folders.items()}
        write_text(folder / FILE, page(record, runs))
    return Path(out)


def _drawn(corpus: str, splits: list[str], clips: int, seed: int) -> list[Utterance]:
    found = [u for u in read_utterances(corpus, splits) if u.duration_s <= _LONGEST_S]
    if len(found) < 6:
        raise UsageError(
            f"{corpus} has {len(found)} clips of at most {_LONGEST_S:g} s in {', '.join(splits)}: "
            "a report needs six or more"
        )
    return found if len(found) <= clips else Random(seed).sample(found, clips)


@torch.no_grad()
def hear(book: Any, samples: Tensor) -> Heard:
    """One clip (T,) of at most 30 s through a book of any kind."""
    if isinstance(book, LinguisticTokenizer):
        vectors = book.vectors([samples])[0]
    elif isinstance(book, SemanticTokenizer):
        mel = whisper_mel(samples, bins=book.network.encoder.conv1.in_channels)[None]
        hidden, _ = book.network.encoder(mel, torch.tensor([mel.shape[2]]))
        vectors = F.normalize(hidden[0], dim=-1)
    else:
        mel = log_mel(torch.from_numpy(pad_to_groups(samples.numpy()))[None])
        vectors = book.vectors(mel, torch.ones(1, mel.shape[2]))
    codes = book.codebook.search(vectors)
    return Heard(vectors, codes, book.codebook.vectors[codes])


def _spoken(utterance: Utterance, labels: str) -> list[str]:
    if labels == "phones":
        return list(utterance.phones or ())
    return list(readable(utterance.text or ""))


def _usage(book: Any, heard: list[Heard], rate_hz: Any) -> dict[str, Any]:
    counts = torch.zeros(len(book.codebook.vectors), dtype=torch.long)
    for clip in heard:
        counts += torch.bincount(clip.codes, minlength=len(counts))
    share = counts[counts > 0] / counts.sum()
    bits = float(-(share * share.log2()).sum())
    used = int((counts > 0).sum())
    return {
        "codes": len(counts), "rate_hz": float(rate_hz), "used": used, "dead": len(counts) - used,
        "perplexity": 2**bits, "bits_per_s": bits * float(rate_hz), "counts": counts.tolist(),
    }  # fmt: skip


# ---- words


@torch.no_grad()
def read(learner: Learner, vectors: Tensor) -> Tensor:
    """Log-probabilities (S, P) of the labels in what a book gives of one clip (N, D)."""
    if isinstance(learner, SemanticLearner):
        vectors = learner.listen(vectors[None], torch.ones(1, len(vectors)))[0]
    return learner.read(vectors[None])[0]


def _errors(learner: Learner | None, heard: list[Heard], spoken: list[list[str]]) -> dict[str, Any]:
    """Error rates of what is written, from the vectors and from their codes alone.

    ``against_own``: what codes give against what the vectors give, whatever was said.
    """
    if learner is None:
        return {"reason": "no heads lie beside this tokenizer: it cannot write"}
    names = learner.settings["labels"]
    counts = {"continuous": 0, "codes": 0, "against_own": 0}
    said, own = 0, 0
    for clip, truth in zip(heard, spoken, strict=True):
        if not truth or not len(clip.codes):
            continue
        whole, coded = (
            [names[i - 1] for i in greedy_labels(read(learner, v), 10**9)]
            for v in (clip.vectors, clip.chosen)
        )
        counts["continuous"] += Levenshtein.distance(whole, truth)
        counts["codes"] += Levenshtein.distance(coded, truth)
        counts["against_own"] += Levenshtein.distance(coded, whole)
        said, own = said + len(truth), own + len(whole)
    totals = {"continuous": said, "codes": said, "against_own": own}
    return {name: n / totals[name] if totals[name] else None for name, n in counts.items()} | {
        "n": said
    }


@torch.no_grad()
def _letters(
    learners: dict[str, Learner], heard: dict[str, list[Heard]], spoken: list[list[str]]
) -> Moments:
    """Which label is said at every moment of each clip, by the first encoder that can write.

    The best alignment of the transcript with what it hears.
    """
    for name, learner in learners.items():
        number = {label: i + 1 for i, label in enumerate(learner.settings["labels"])}
        labels = []
        for clip, said in zip(heard[name], spoken, strict=True):
            names = [label for label in said if label in number]
            places: list[int] = []
            if names and len(clip.codes):
                log_probs = read(learner, clip.vectors)
                places = best_alignment(log_probs, [number[label] for label in names])
            labels.append([names[place] for place in places])
        return Moments(labels, float(RATES_HZ[name]) * learner.ctc_steps)
    return Moments([[] for _ in spoken], 1.0, "no tokenizer here can write")


def _phones(utterances: list[Utterance], sounds: list[Tensor]) -> Moments:
    """Which phone is said at every moment, by an aligner that knows neither tokenizer."""
    try:
        aligner = Aligner()
    except UsageError as error:
        return Moments([[] for _ in sounds], FRAME_RATE_HZ, str(error))
    pairs = track(zip(utterances, sounds, strict=True), "align", len(sounds), unit="clips")
    found = [aligner(sound.numpy(), clip.text or "") for clip, sound in pairs]
    return Moments(found, FRAME_RATE_HZ)
