"""Batches of the released ears: clean ones are what the tokenizers themselves hear."""

import random
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from aqaa.audio.fbank import linguistic_frontend
from aqaa.audio.pitch import voice
from aqaa.audio.whisper_mel import whisper_mel
from aqaa.data import hearing
from aqaa.data.augment import Augmentation
from aqaa.data.hearing import HeardBatches
from aqaa.errors import UsageError
from aqaa.tokenizer.released import PEAK


def source(corpus: Path, book: str, **more: object) -> HeardBatches:
    return HeardBatches(corpus=str(corpus), book=book, batch=6, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("book", ["linguistic", "semantic"])
def test_a_clean_batch_is_what_the_tokenizer_hears(book: str, corpus: Path) -> None:
    assert hearing.PEAK == PEAK
    heard = source(corpus, book)
    batch = heard.batch(0)
    rows = heard._sampler.rows(0)
    for row, place in enumerate(rows):
        utterance = heard._train[place]
        samples = utterance.samples(corpus, peak=PEAK)
        own = linguistic_frontend(samples) if book == "linguistic" else whisper_mel(samples).T
        assert int(batch.lengths[row]) == len(own)
        assert batch.feats[row, : len(own)].equal(own)
        text = utterance.text or ""
        assert "".join(heard.labels[i - 1] for i in batch.labels[row] or ()) == text.lower()
        if book == "semantic":
            places = -(-len(own) // 4)
            known = voice(samples, places)
            assert batch.targets.f0_hz[row, :places].equal(known.f0_hz)
            level = known.level - known.level.mean()
            assert batch.targets.level[row, :places].equal(level)
    assert batch.mask.sum(1).tolist() == batch.lengths.tolist()


@pytest.mark.parametrize("book", ["linguistic", "semantic"])
def test_a_batch_is_a_function_of_seed_and_step(book: str, corpus: Path) -> None:
    change = Augmentation(warp=0.7 if book == "linguistic" else 0.0)
    a, b = (source(corpus, book, augmentation=change) for _ in range(2))
    for step in (3, 40):
        one, two = a.batch(step), b.batch(step)
        assert one.feats.equal(two.feats) and one.labels == two.labels
    plain = source(corpus, book).batch(3)
    assert plain.feats.shape != one.feats.shape or not plain.feats.equal(one.feats)
    other = source(corpus, book, augmentation=change, seed=1)
    assert not all(map(torch.equal, other.batch(3).inputs[:1], a.batch(3).inputs[:1]))


def test_an_augmentation_that_does_nothing_changes_nothing(corpus: Path) -> None:
    still = Augmentation(warp=0, gain=0, equaliser=0, noise=0, mask=0)
    for book in ("linguistic", "semantic"):
        changed, plain = source(corpus, book, augmentation=still), source(corpus, book)
        torch.testing.assert_close(
            changed.batch(0).feats, plain.batch(0).feats, rtol=1e-4, atol=1e-4
        )


def test_phones_where_the_parts_have_them_and_questions_and_answers_alike(corpus: Path) -> None:
    heard = source(corpus, "linguistic", labels="phones")
    assert heard.unit == "phone" and "@" in heard.labels
    paths = {u.part["path"].split("/")[-1] for u in heard._train}
    assert any("answer" in path for path in paths) and any("train" in path for path in paths)
    assert heard.emotions  # the styles of the answers


def test_pitch_and_a_changed_tempo_do_not_go_together(corpus: Path) -> None:
    with pytest.raises(UsageError, match="set data.augmentation.warp=0 in place of 0.7"):
        source(corpus, "semantic", augmentation=Augmentation())


def test_sound_without_words_shapes_codes_and_teaches_no_words(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = hearing.read_utterances(corpus, hearing.TRAIN)
    muted = [hearing.Utterance(u.part, u.duration_s, None) for u in known[::2]] + known[1::2]
    monkeypatch.setattr(hearing, "read_utterances", lambda folder, splits: list(muted))
    linguistic, semantic = source(corpus, "linguistic"), source(corpus, "semantic")
    assert len(linguistic._train) == len(known[1::2]) and len(semantic._train) == len(known)
    assert None not in linguistic.batch(0).labels
    found = [labels for step in range(8) for labels in semantic.batch(step).labels]
    assert None in found and any(found)
    clips = sum(len(batch.labels) for batch in linguistic.clean(1000))
    assert clips == len(known)
    muted[:] = muted[: len(known[::2])]
    with pytest.raises(UsageError, match="has characters: a transcript is needed"):
        source(corpus, "linguistic")


def test_clean_batches_are_drawn_over_the_whole_corpus(corpus: Path) -> None:
    heard = source(corpus, "linguistic")
    few = heard.clean(2)
    assert sum(len(b.labels) for b in few) == 12
    lengths = [int(n) for b in few for n in b.lengths]
    assert lengths == sorted(lengths)
    random.seed(3)
    again = source(corpus, "linguistic").clean(2)
    assert all(a.feats.equal(b.feats) for a, b in zip(few, again, strict=True))


def noise(samples: int, rate_hz: int = 16_000, channels: int = 1) -> np.ndarray:
    generator = np.random.default_rng(0)
    return 0.1 * generator.standard_normal((samples * rate_hz // 16_000, channels))


def spoiled() -> np.ndarray:
    samples = noise(9000)
    samples[77] = np.nan
    return samples


BAD = {
    "no samples": (noise(0), 16_000, "FLOAT", "holds no sound"),
    "one sample": (noise(1), 16_000, "FLOAT", "too short to hear: leave it out"),
    "too short": (noise(800), 16_000, "FLOAT", "too short to hear: leave it out"),
    "not a number": (spoiled(), 16_000, "FLOAT", "holds 1 NaN or infinite samples"),
}
ODD = {
    "silence": (0 * noise(9000), 16_000, "PCM_16"),
    "faint": (1e-6 * noise(9000), 16_000, "FLOAT"),
    "clipped": (np.clip(100 * noise(9000), -1, 1), 16_000, "PCM_16"),
    "8 kHz": (noise(9000, 8000), 8000, "PCM_16"),
    "192 kHz": (noise(9000, 192_000), 192_000, "PCM_16"),
    "stereo": (noise(9000, channels=2), 16_000, "PCM_16"),
    "24-bit": (noise(9000), 16_000, "PCM_24"),
}


def one_file(folder: Path, samples: np.ndarray, rate_hz: int, subtype: str) -> Path:
    """A corpus of this one file, again and again."""
    soundfile.write(folder / "odd.wav", samples, rate_hz, subtype=subtype)
    row = '{"id": "a", "kind": "asr", "text": "a b", "audio": {"path": "odd.wav"}}\n'
    for split in ("train", "validation"):
        (folder / f"{split}.jsonl").write_text(row)
    return folder


@pytest.mark.parametrize("book", ["linguistic", "semantic"])
@pytest.mark.parametrize("name", BAD)
def test_a_file_that_cannot_be_learnt_from_is_named(name: str, book: str, tmp_path: Path) -> None:
    samples, rate_hz, subtype, sentence = BAD[name]
    folder = one_file(tmp_path, samples, rate_hz, subtype)
    heard = HeardBatches(corpus=str(folder), book=book, batch=1)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=sentence) as error:
        heard.batch(0)
    assert "odd.wav" in str(error.value)


@pytest.mark.parametrize("book", ["linguistic", "semantic"])
@pytest.mark.parametrize("name", ODD)
def test_an_odd_file_is_heard(name: str, book: str, tmp_path: Path) -> None:
    samples, rate_hz, subtype = ODD[name]
    folder = one_file(tmp_path, samples, rate_hz, subtype)
    batch = HeardBatches(corpus=str(folder), book=book, batch=1).batch(0)  # type: ignore[arg-type]
    assert bool(batch.feats.isfinite().all()) and bool(batch.targets.level.isfinite().all())
    assert batch.feats.shape[1] == (9 if book == "linguistic" else 56)
