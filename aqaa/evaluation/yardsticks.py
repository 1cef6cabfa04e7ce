"""What the organs around the backbone allow: originals, resynthesis, the tokenizer's ceiling."""

from typing import Any

import torch
from rapidfuzz.distance import Levenshtein

from aqaa.audio.file import at_rate
from aqaa.audio.mel import pad_mels
from aqaa.data.corpus import Corpus, question_part
from aqaa.evaluation.judge import Ear, ground_truth
from aqaa.evaluation.measure import Figure, figure, split_label
from aqaa.losses.ctc import greedy_labels
from aqaa.progress import track
from aqaa.tokenizer.dual import DualTokenizer
from aqaa.tokenizer.speech_tokenizer import SpeechTokenizer
from aqaa.vocoder.voice import Voice

RESYNTHESIS_SPLIT = "answer clips, which tokenizers and vocoder were trained on"


def resynthesis(
    corpus: Corpus, tokenizer: DualTokenizer, vocoder: Voice, recogniser: Ear
) -> Figure:
    """Share of answer clips still recognised after tokenizing and speaking their codes."""
    hits = 0
    clips = corpus.answers.values()
    for row in track(clips, "resynthesis", len(clips), unit="clips"):
        codes = tokenizer.encode(corpus.samples(row["audio"]))
        hits += recogniser(at_rate(vocoder.speak(codes)).samples) == row["text"]
    return figure(hits, len(corpus.answers), RESYNTHESIS_SPLIT)


def tokenizer_ceiling(corpus: Corpus, tokenizer: SpeechTokenizer, *, rows: int) -> Figure:
    """Share of unseen-voice questions whose decoded phones lie nearest to the right question.

    The phones come from the quantised codes alone: what the book leaves for any backbone to hear.
    """
    known: dict[str, list[str]] = {}
    for split in ("train", "validation", "test"):
        for row in corpus.rows(split):
            part = question_part(row)
            known.setdefault(part["text"], part["phones"])
    parts = [question_part(row) for row in corpus.rows("test")[:rows]]
    hits = sum(
        _nearest(heard, known) == part["text"]
        for part, heard in zip(parts, phones(corpus, tokenizer, parts), strict=True)
    )
    return figure(hits, len(parts), f"{split_label('test')}, nearest of {len(known)} questions")


@torch.inference_mode()
def phones(
    corpus: Corpus, tokenizer: SpeechTokenizer, parts: list[dict[str, Any]]
) -> list[list[str]]:
    """Phones of each clip as its quantised codes give them."""
    heard = []
    for begin in range(0, len(parts), 32):
        out = tokenizer(*pad_mels(corpus.mels(parts[begin : begin + 32])))
        for log_probs, steps in zip(out.log_probs, out.steps.long().tolist(), strict=True):
            heard.append([tokenizer.phones[p - 1] for p in greedy_labels(log_probs, steps)])
    return heard


def _nearest(heard: list[str], known: dict[str, list[str]]) -> str:
    return min(known, key=lambda text: Levenshtein.distance(heard, known[text]))


def yardsticks(
    corpus: Corpus, tokenizer: DualTokenizer, vocoder: Voice, recogniser: Ear, *, rows: int = 240
) -> dict[str, Figure]:
    """All three figures, by their name in results.json."""
    clips = corpus.answers.values()
    return {
        "ground_truth_recognised": ground_truth(clips, recogniser, corpus.folder),
        "resynthesis_recognised": resynthesis(corpus, tokenizer, vocoder, recogniser),
        "tokenizer_ceiling": tokenizer_ceiling(corpus, tokenizer.linguistic, rows=rows),
    }
