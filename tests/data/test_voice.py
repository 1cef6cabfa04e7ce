"""Batches of the vocoder's two networks, of the tokenizers, and the corpus they come from."""

import random
from pathlib import Path

import pytest
import torch

from aqaa.audio.mel import LOG_MEL_FLOOR, log_mel
from aqaa.data.augment import Augmentation
from aqaa.data.corpus import Corpus, question_part
from aqaa.data.speech import SpeechBatches
from aqaa.data.token_store import TokenStore
from aqaa.data.voice import FlowBatches, WaveformBatches
from aqaa.errors import UsageError
from tests.conftest import Chain


def flow(chain: Chain, **options: object) -> FlowBatches:
    folders = {"corpus": str(chain / "corpus"), "tokens": str(chain / "tokens")}
    return FlowBatches(**folders, batch=8, **options)  # type: ignore[arg-type]


def test_mels_are_those_of_the_sound(chain: Chain) -> None:
    corpus = Corpus(chain / "corpus")
    parts = [question_part(row) for row in corpus.rows("test")]
    for part, mel in zip(parts, corpus.mels(parts), strict=True):
        alone = log_mel(corpus.samples(part)[None])[0]
        # Half precision, and the last frame's window reaches into the padding of the batch.
        assert mel.shape == alone.shape and mel.shape[1] % 12 == 0
        assert (mel - alone).abs().max() < 0.01
    with pytest.raises(UsageError, match="is not a corpus: run `aqaa data synthesize"):
        Corpus(chain / "tokens")


def test_codes_stand_beside_their_mel(chain: Chain) -> None:
    batch = flow(chain, corruption=(0.0, 0.0)).batch(0)
    store, corpus = TokenStore(chain / "tokens"), Corpus(chain / "corpus")
    known = {
        (tuple(pair.linguistic), tuple(pair.semantic))
        for pair in (store[f"answers/{key}"] for key in corpus.answers)
    }
    rows = zip(batch.linguistic, batch.semantic, batch.mel, batch.mask, strict=True)
    for linguistic, semantic, mel, mask in rows:
        groups = int(mask.sum()) // 12
        found = tuple(linguistic[: 2 * groups].tolist()), tuple(semantic[: 3 * groups].tolist())
        assert found in known
        assert (mel[:, 12 * groups :] == mel[0, -1]).all() or groups * 12 == mel.shape[1]
    assert batch.noise.shape == (8, 160, batch.mel.shape[2] // 2)
    assert ((batch.time >= 0) & (batch.time < 1)).all()


def test_codes_are_spoilt_by_their_share_in_training_alone(chain: Chain) -> None:
    share = (0.2, 0.4)
    clean, spoilt = flow(chain, corruption=(0.0, 0.0)), flow(chain, corruption=share)
    for book, wanted in zip(("linguistic", "semantic"), share, strict=True):
        wrong = total = 0
        for step in range(6):
            a, b = getattr(clean.batch(step), book), getattr(spoilt.batch(step), book)
            wrong, total = wrong + int((a != b).sum()), total + a.numel()
        assert wanted * 0.85 < wrong / total < wanted * 1.15
    for a, b in zip(clean.validation(), spoilt.validation(), strict=True):
        assert torch.equal(a.linguistic, b.linguistic) and torch.equal(a.semantic, b.semantic)


def test_conditions_are_kept_by_their_share(chain: Chain) -> None:
    source = flow(chain, keep=0.7)
    kept = torch.cat([source.batch(step).keep for step in range(60)])
    assert set(kept.tolist()) == {0.0, 1.0} and 0.6 < kept.mean() < 0.8


def test_segments_hold_a_mel_and_its_sound(chain: Chain) -> None:
    batch = WaveformBatches(corpus=str(chain / "corpus"), batch=16, segment_frames=40).batch(0)
    assert batch.mel.shape == (16, 80, 40) and batch.samples.shape == (16, 6400)
    inside = slice(3, 37)  # away from the cuts, where the windows see the same samples
    error = (log_mel(batch.samples) - batch.mel)[:, :, inside].abs()
    assert error.max() < 0.02


def test_segments_reach_the_last_frame_of_a_clip(chain: Chain) -> None:
    corpus = Corpus(chain / "corpus")
    mels = corpus.mels([row["audio"] for _, row in sorted(corpus.answers.items())])
    longest = max(mel.shape[1] for mel in mels)
    source = WaveformBatches(corpus=str(corpus.folder), batch=64, segment_frames=longest - 1)
    starts = {start for step in range(20) for start in _places(source, step, longest)}
    assert starts == {0, 1}


def _places(source: WaveformBatches, step: int, frames: int) -> list[int]:
    """Where the segments of one batch begin in the clips of so many frames."""
    rng = random.Random(step)
    places = [source._place(rng) for _ in range(64)]
    return [start for clip, start in places if source._mels[clip].shape[1] == frames]


def test_segments_longer_than_a_clip_are_padded_with_silence(chain: Chain) -> None:
    batch = WaveformBatches(corpus=str(chain / "corpus"), batch=4, segment_frames=900).batch(0)
    assert batch.mel.shape == (4, 80, 900) and batch.samples.shape == (4, 144_000)
    assert (batch.mel[:, :, -1] == LOG_MEL_FLOOR).all() and (batch.samples[:, -160:] == 0).all()


def test_a_share_of_the_clips_are_answers_and_phones_are_labels(chain: Chain) -> None:
    source = SpeechBatches(corpus=str(chain / "corpus"), batch=8, answers_share=0.25)
    corpus = Corpus(chain / "corpus")
    assert source.phones == corpus.domain["phones"]

    def labels(part: dict) -> tuple[int, ...]:
        return tuple(source.phones.index(phone) + 1 for phone in part["phones"])

    questions = {labels(question_part(row)) for row in corpus.rows("train")}
    answers = {labels(row["audio"]) for row in corpus.answers.values()}
    for step in range(10):
        found = [tuple(row) for row in source.batch(step).labels]
        assert len(found) == 8 and questions.issuperset(found[:6]) and answers.issuperset(found[6:])
    total = sum(len(batch.labels) for batch in source.validation())
    assert total == len(corpus.rows("validation")) == 8


def test_a_few_questions_only(chain: Chain) -> None:
    source = SpeechBatches(corpus=str(chain / "corpus"), batch=4, answers_share=0, questions=4)
    assert len({tuple(map(tuple, source.batch(step).labels)) for step in range(5)}) <= 24
    with pytest.raises(UsageError, match="4 rows do not make batches of 5"):
        SpeechBatches(corpus=str(chain / "corpus"), batch=5, answers_share=0, questions=4)


def test_augmentation_keeps_whole_groups_and_changes_every_draw() -> None:
    mel = torch.randn(80, 120, generator=torch.Generator().manual_seed(0)) - 3

    def draw(seed: int, **options: float) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return Augmentation(**options).apply(mel, random.Random(seed), generator)  # type: ignore[arg-type]

    drawn = [draw(seed) for seed in range(12)]
    assert all(d.shape[0] == 80 and d.shape[1] % 12 == 0 and d.isfinite().all() for d in drawn)
    assert all(d.min() >= LOG_MEL_FLOOR - 1e-6 for d in drawn)
    assert len({d.shape[1] for d in drawn}) > 2
    assert torch.equal(draw(3), drawn[3])
    quiet = {"warp": 0.0, "gain": 0.0, "equaliser": 0.0, "noise": 0.0, "mask": 0.0}
    assert torch.equal(draw(0, **quiet), mel.clamp(min=LOG_MEL_FLOOR))
    masked = draw(1, **{**quiet, "mask": 1.0})
    changed = masked != mel.clamp(min=LOG_MEL_FLOOR)
    assert changed.any() and (masked[changed] == -5.0).all()


def test_a_corpus_without_answers_file_says_so(chain: Chain, tmp_path: Path) -> None:
    (tmp_path / "domain.json").write_bytes((chain / "corpus" / "domain.json").read_bytes())
    with pytest.raises(UsageError, match="the manifest .*answers.jsonl does not exist"):
        _ = Corpus(tmp_path).answers
