"""One book: shapes, normalisation, gradients, saving, refusals."""

import json
from pathlib import Path

import pytest
import torch

from aqaa.errors import UsageError
from aqaa.losses.codebook import commitment, mel_distance
from aqaa.losses.ctc import ctc
from aqaa.storage import load_tensors, save_tensors
from aqaa.tokenizer.speech_tokenizer import SpeechTokenizer
from tests.golden.make import speech_tokenizer

MEL = 2 * torch.randn(2, 80, 24, generator=torch.Generator().manual_seed(0)) - 3


def mask() -> torch.Tensor:
    mask = torch.ones(2, 24)
    mask[1, 12:] = 0
    return mask


@pytest.mark.parametrize(("book", "codes"), [("linguistic", 4), ("semantic", 6)])
def test_shapes(book: str, codes: int) -> None:
    tokenizer = speech_tokenizer(book, codes=32)
    out = tokenizer(MEL, mask())
    assert out.codes is not None
    assert out.codes.shape == (2, codes)
    assert torch.equal(out.codes, tokenizer.encode(MEL, mask()))
    assert out.log_probs.shape == (2, 2 * codes, 4)
    torch.testing.assert_close(out.log_probs.exp().sum(-1), torch.ones(2, 2 * codes))
    assert out.steps.tolist() == [2 * codes, codes]
    assert out.z.shape == out.quantised.shape == (2, codes, 4)
    assert torch.equal(out.quantised, tokenizer.codebook.vectors[out.codes])
    if book == "semantic":
        assert out.mel is not None
        assert out.mel.shape == MEL.shape
    else:
        assert out.mel is None


@pytest.mark.parametrize("book", ["linguistic", "semantic"])
def test_a_clip_alone_and_in_a_batch(book: str) -> None:
    tokenizer = speech_tokenizer(book, codes=32)
    loud = MEL.clone()
    loud[1, :, 12:] = 50  # padding
    together = tokenizer(loud, mask())
    alone = tokenizer(MEL[1:, :, :12], torch.ones(1, 12))
    n = 12 // tokenizer.frames_per_code
    assert together.codes is not None and alone.codes is not None
    assert together.codes[1, :n].tolist() == alone.codes[0].tolist()
    torch.testing.assert_close(
        together.log_probs[1, : 2 * n], alone.log_probs[0], rtol=0, atol=1e-5
    )
    if together.mel is not None and alone.mel is not None:
        torch.testing.assert_close(together.mel[1, :, :12], alone.mel[0], rtol=0, atol=1e-4)


def test_the_linguistic_book_does_not_hear_the_mean_spectrum() -> None:
    tokenizer = speech_tokenizer("linguistic", codes=32)
    shifted = MEL + torch.linspace(-3, 3, 80)[:, None]
    torch.testing.assert_close(
        tokenizer.normalise(shifted, mask()) * mask()[:, None],
        tokenizer.normalise(MEL, mask()) * mask()[:, None],
        rtol=0,
        atol=1e-5,
    )
    semantic = speech_tokenizer("semantic", codes=32)
    assert not torch.allclose(semantic.normalise(shifted, mask()), semantic.normalise(MEL, mask()))


def test_every_parameter_learns() -> None:
    tokenizer = speech_tokenizer("semantic", codes=32).train()
    out = tokenizer(MEL, mask())
    assert out.mel is not None
    loss = ctc(out.log_probs, out.steps, [[1, 2, 3], [1]]) + mel_distance(out.mel, MEL, mask())
    (loss + commitment(out.z, out.quantised, out.mask)).backward()
    silent = [n for n, p in tokenizer.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


def test_the_loss_sees_the_vectors_that_were_chosen() -> None:
    tokenizer = speech_tokenizer("semantic", codes=32).train()
    before = tokenizer.codebook.vectors.clone()
    out = tokenizer(MEL, mask())
    assert out.codes is not None
    assert torch.equal(out.quantised, before[out.codes])
    assert not torch.equal(tokenizer.codebook.vectors, before)


def test_before_the_book_starts_vectors_pass_through() -> None:
    tokenizer = SpeechTokenizer(
        book="semantic", phones=["a"], codes=9, frames_per_code=4, ctc_steps=1, width=8, blocks=1
    )
    out = tokenizer(MEL, mask())
    assert out.codes is None
    assert torch.equal(out.quantised, out.z)
    with pytest.raises(UsageError, match="semantic codebook was never started"):
        tokenizer.encode(MEL, mask())


def test_a_third_book_is_refused() -> None:
    with pytest.raises(UsageError, match="book 'third' is neither"):
        SpeechTokenizer(book="third", phones=[], codes=9, frames_per_code=4, ctc_steps=1)


@pytest.mark.parametrize("book", ["linguistic", "semantic"])
def test_saved_and_loaded_it_gives_the_same_codes(book: str, tmp_path: Path) -> None:
    tokenizer = speech_tokenizer(book, codes=32)
    tokenizer.save(tmp_path)
    loaded = SpeechTokenizer.load(tmp_path)
    assert loaded.settings == tokenizer.settings
    assert torch.equal(loaded.encode(MEL, mask()), tokenizer.encode(MEL, mask()))
    before = (tmp_path / "model.safetensors").read_bytes()
    loaded.save(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_stored_as_halves_it_takes_half_the_room(tmp_path: Path) -> None:
    tokenizer = speech_tokenizer("semantic", codes=32)
    tokenizer.save(tmp_path / "whole")
    tokenizer.save(tmp_path / "half", dtype=torch.float16)
    sizes = [(tmp_path / n / "model.safetensors").stat().st_size for n in ("half", "whole")]
    assert sizes[0] < 0.62 * sizes[1]
    loaded = SpeechTokenizer.load(tmp_path / "half")
    assert loaded.codebook.vectors.dtype == torch.float32
    torch.testing.assert_close(
        loaded.codebook.vectors, tokenizer.codebook.vectors, rtol=1e-3, atol=1e-3
    )


def test_an_unfit_folder_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="config.json does not exist"):
        SpeechTokenizer.load(tmp_path)
    tokenizer = speech_tokenizer("semantic", codes=32)
    tokenizer.save(tmp_path)
    config = tmp_path / "config.json"
    record = json.loads(config.read_text())
    config.write_text(json.dumps({**record, "organ": "WaveformHead"}))
    with pytest.raises(UsageError, match="holds a WaveformHead, not a SpeechTokenizer"):
        SpeechTokenizer.load(tmp_path)
    config.write_text(json.dumps({**record, "codes": 64}))
    with pytest.raises(UsageError, match="does not fit a SpeechTokenizer: .*codebook"):
        SpeechTokenizer.load(tmp_path)
    config.write_text(json.dumps(record))
    weights = tmp_path / "model.safetensors"
    state = load_tensors(weights)
    save_tensors(weights, {k: v for k, v in state.items() if k != "widen.bias"})
    with pytest.raises(UsageError, match="widen.bias"):
        SpeechTokenizer.load(tmp_path)
    weights.write_bytes(weights.read_bytes()[:-40])
    with pytest.raises(UsageError, match="damaged"):
        SpeechTokenizer.load(tmp_path)
