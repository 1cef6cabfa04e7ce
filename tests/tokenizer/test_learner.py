"""What is trained is what will hear: learners against the tokenizers that they leave behind."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from aqaa.audio.fbank import linguistic_frontend
from aqaa.audio.pitch import voice
from aqaa.audio.whisper_mel import whisper_mel
from aqaa.data.hearing import Targets
from aqaa.errors import UsageError
from aqaa.tokenizer.codebook import mini_batch_kmeans
from aqaa.tokenizer.dual import DualTokenizer, load_book
from aqaa.tokenizer.learner import LinguisticLearner, SemanticLearner, load_learner
from tests.golden.make import randomise

LABELS, EMOTIONS = ["a", "b", " "], ["calm", "glad"]
linguistic = partial(
    LinguisticLearner, labels=LABELS, emotions=EMOTIONS,
    width=16, blocks=3, heads=2, inner=24, kernel=5, codes=16, ctc_steps=3,
)  # fmt: skip
SIZES = {"bins": 128, "width": 16, "blocks": 2, "heads": 2, "inner": 24, "positions": 200,
         "codes": 16}  # fmt: skip
semantic = partial(
    SemanticLearner, labels=LABELS, emotions=EMOTIONS, network=SIZES, behind=1, ctc_steps=2,
)  # fmt: skip


def clip(samples: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    places = torch.arange(samples)
    level = (places * 0.0011).sin() * 0.3
    return level * (places * 0.07).sin() + 0.03 * torch.randn(samples, generator=generator)


CLIPS = [clip(n, n) for n in (9000, 21_000, 16_000, 1200)]


def batch(frames: list[Tensor], emotion: list[int] | None = None) -> tuple[Tensor, Tensor, Targets]:
    voices = [voice(c, -(-len(f) // 4)) for c, f in zip(CLIPS, frames, strict=True)]
    f0, level = (pad_sequence([v[i] for v in voices], batch_first=True) for i in range(2))
    lengths = torch.tensor([len(f) for f in frames])
    numbers = torch.tensor(emotion or [-1] * len(frames))
    return pad_sequence(frames, batch_first=True), lengths, Targets(f0, level, numbers)


def fbanks() -> tuple[Tensor, Tensor, Targets]:
    return batch([linguistic_frontend(c) for c in CLIPS])


def mels(emotion: list[int] | None = None) -> tuple[Tensor, Tensor, Targets]:
    return batch([whisper_mel(c).T for c in CLIPS], emotion)


def started(learner: Any, inputs: Any, seed: int = 0) -> Any:
    randomise(learner, seed)
    if isinstance(learner, LinguisticLearner):
        learner.measure([inputs[:2]])
    vectors = learner.vectors(*inputs)
    learner.codebook.hold(mini_batch_kmeans(vectors, codes=16, epochs=3))
    return learner


def test_the_measure_is_mean_and_spread_of_what_is_real() -> None:
    learner = linguistic()
    feats, lengths, _ = fbanks()
    learner.measure([(feats[:2], lengths[:2]), (feats[2:], lengths[2:])])
    rows = torch.cat([f[:n] for f, n in zip(feats, lengths.tolist(), strict=True)]).double()
    tokenizer = learner.tokenizer
    torch.testing.assert_close(tokenizer.shift.double(), -rows.mean(0))
    torch.testing.assert_close(tokenizer.scale.double(), 1 / rows.std(0).clamp(min=1e-2))
    scaled = tokenizer.normalise(rows.float())
    assert float(scaled.mean(0).abs().max()) < 1e-3


@torch.no_grad()
def test_what_the_linguistic_encoder_learns_on_is_what_a_stream_gives(tmp_path: Path) -> None:
    inputs = fbanks()
    learner = started(linguistic(), inputs)
    out = learner.train()(*inputs)
    tokenizer = learner.eval().tokenizer
    learner.save(tmp_path)
    loaded = load_book(tmp_path)
    for row, sound in enumerate(CLIPS):
        real = int(inputs[1][row])
        state, heard = tokenizer.encoder.start(1), []
        for chunk in tokenizer.normalise(inputs[0][row, :real]).split(4):
            heard.append(tokenizer.encoder.encode_chunk(chunk[None], state)[0])
        torch.testing.assert_close(out.z[row, :real], torch.cat(heard), rtol=1e-4, atol=1e-4)
        codes = tokenizer.codebook.search(out.z[row, :real]).tolist()
        assert loaded.encode_sound(sound) == codes and len(set(codes)) >= min(4, real)
    assert out.steps.tolist() == [3 * n for n in inputs[1].tolist()]
    assert torch.allclose(out.log_probs.exp().sum(-1), torch.ones(4, int(out.steps.max())))


@torch.no_grad()
def test_what_the_semantic_book_learns_on_is_what_is_exported(tmp_path: Path) -> None:
    inputs = mels()
    learner = started(semantic(), inputs).eval()
    out = learner(*inputs)
    learner.save(tmp_path)
    loaded = load_book(tmp_path)
    for row, sound in enumerate(CLIPS):
        real = int(out.mask[row].sum())
        assert loaded.encode_sound(sound) == out.codes[row, :real].tolist()
    assert {p.name for p in tmp_path.iterdir()} == {"config.json", "model.safetensors", "heads"}
    state = loaded.state_dict()  # type: ignore[attr-defined]
    assert not [name for name in state if "behind" in name or "head" in name]


@torch.no_grad()
def test_a_clip_in_a_batch_is_the_clip_alone() -> None:
    inputs = mels()
    learner = started(semantic(weights={"pitch": 1.0}), inputs).eval()
    whole = learner(*inputs)
    for row in range(len(CLIPS)):
        frames = int(inputs[1][row])
        places = -(-frames // 4)
        targets = Targets(*(t[row : row + 1, :places] for t in inputs[2][:2]), inputs[2][2][:1])
        alone = learner(inputs[0][row : row + 1, :frames], inputs[1][row : row + 1], targets)
        steps = int(alone.steps[0])
        assert steps == int(whole.steps[row]) == 2 * places
        near = {"rtol": 1e-4, "atol": 1e-4}
        torch.testing.assert_close(whole.log_probs[row, :steps], alone.log_probs[0], **near)
        torch.testing.assert_close(whole.mel[row, :, :frames], alone.mel[0], **near)


def test_the_words_are_read_from_codes_alone() -> None:
    inputs = mels()
    learner = started(semantic(), inputs).eval()
    out = learner(*inputs)
    chosen = learner.codebook.vectors[out.codes]
    with torch.no_grad():
        again = learner.read(learner.listen(chosen, out.mask))
    torch.testing.assert_close(out.log_probs.detach(), again, rtol=1e-4, atol=1e-4)
    # ... and the gradient goes past the book, into the encoder.
    out.log_probs[..., 1].sum().backward()
    gradient = learner.tokenizer.network.encoder.conv1.weight.grad
    assert gradient is not None and float(gradient.abs().sum()) > 0


def test_every_head_hears_each_code_by_itself() -> None:
    inputs = mels(emotion=[0, 1, -1, 1])
    learner = started(semantic(weights={"emotion": 1.0}), inputs).eval()
    out = learner(*inputs)
    assert set(out.extra) == set(out.weights) == {"pitch", "energy", "emotion"}
    told = 4.0 * learner.codebook.vectors[out.codes]
    rebuilt = learner.mel_head(told[1, 7]).view(4, 128)
    torch.testing.assert_close(out.mel[1, :, 28:32].T, rebuilt, rtol=1e-4, atol=1e-4)
    mean = torch.stack([told[i, : int(out.mask[i].sum())].mean(0) for i in range(4)])
    scores = learner.emotion_head(mean).log_softmax(-1)
    expected = -(scores[0, 0] + scores[1, 1] + scores[3, 1]) / 3
    torch.testing.assert_close(out.extra["emotion"], expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(UsageError, match="needs utterances of at least two emotions"):
        semantic(emotions=["calm"], weights={"emotion": 1.0})


def test_dead_codes_begin_again_where_the_sound_is() -> None:
    inputs = mels()
    learner = started(semantic(), inputs)
    learner.codebook.counts[[3, 5]] = 1e-4
    before = learner.codebook.vectors.clone()
    out = learner(*inputs)
    after = learner.codebook.vectors.clone()
    generator = torch.Generator().manual_seed(0)
    learner.codebook.counts[[3, 5]] = 1e-4
    assert learner.restart(out, generator=generator) == 2
    found = learner.codebook.vectors
    z = (out.z[out.mask.bool()] / 4).detach()
    for code in (3, 5):
        assert float((z - found[code]).norm(dim=-1).min()) < 1e-5
        assert not found[code].equal(before[code])
    rest = [k for k in range(16) if k not in (3, 5)]
    assert found[rest].equal(after[rest])
    assert learner.restart(out, generator=generator) == 0  # each has the evidence of one vector


@pytest.mark.parametrize("kind", [linguistic, semantic])
def test_saved_with_its_heads_it_is_whole_again(kind: Any, tmp_path: Path) -> None:
    inputs = fbanks() if kind is linguistic else mels()
    learner = started(kind(), inputs).eval()
    learner.save(tmp_path)
    found = load_learner(tmp_path)
    assert found.settings == learner.settings
    with torch.no_grad():
        assert found(*inputs).log_probs.equal(learner(*inputs).log_probs)
    (tmp_path / "heads" / "config.json").unlink()
    with pytest.raises(UsageError, match="holds no heads/"):
        load_learner(tmp_path)


def test_a_tokenizer_of_another_size_is_no_start() -> None:
    one, other = linguistic(), linguistic(width=32)
    with pytest.raises(UsageError, match="choose tokenizer=... of its size"):
        one.take(other.tokenizer)
    twin = randomise(linguistic(), 4)
    one.take(twin.tokenizer)
    assert one.tokenizer.encoder.after_norm.weight.equal(twin.tokenizer.encoder.after_norm.weight)


def test_both_make_a_dual_tokenizer_that_streams(tmp_path: Path) -> None:
    started(linguistic(), fbanks()).save(tmp_path / "linguistic")
    started(semantic(network={**SIZES, "positions": 1500}), mels()).save(tmp_path / "semantic")
    both = DualTokenizer.load(tmp_path)
    whole = both.encode(CLIPS[1])
    stream = both.stream()
    parts = [stream.push(part) for part in CLIPS[1].split(777)] + [stream.finish()]
    got = [c for p in parts for c in p.linguistic], [c for p in parts for c in p.semantic]
    assert got == (whole.linguistic[: 2 * whole.groups], whole.semantic[: 3 * whole.groups])


def test_the_released_sizes_are_the_released_ones() -> None:
    from aqaa.runtime.compose import compose

    found = {}
    for option, kind in (("sanm", LinguisticLearner), ("whisper", SemanticLearner)):
        data = {"sanm": "linguistic", "whisper": "semantic"}[option]
        cfg = compose("tokenizer", [f"preset=paper/tokenizer_{data}"])
        sizes = {k: v for k, v in cfg.tokenizer.items() if not k.startswith("_")}
        with torch.device("meta"):
            learner = kind(labels=LABELS, emotions=[], **sizes)
        owner = learner.tokenizer if option == "sanm" else learner.tokenizer.network
        found[option] = owner.encoder.state_dict(), owner.codebook.vectors.shape
    sanm, book = found["sanm"]
    assert (len(sanm), sum(t.numel() for t in sanm.values())) == (652, 157_975_648)
    assert book == (1024, 512)
    whisper, book = found["whisper"]
    total = sum(t.numel() for t in whisper.values()) + book.numel()
    assert (len(whisper) + 1, total) == (96, 130_629_120)
    assert book == (4096, 1280)
