"""Tiny organs from a seed, and the golden files made of them.

`python -m tests.golden.make` writes the files anew. Do that only when an organ is meant to compute
something else than before: the files are what a change is held against.
"""

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from aqaa.audio.whisper_mel import whisper_mel
from aqaa.backbone.initial import write_initial
from aqaa.backbone.loading import Backbone, Ids, load_backbone
from aqaa.backbone.step1 import Step1Config, Step1ForCausalLM
from aqaa.storage import load_tensors, save_tensors
from aqaa.stream import StreamLayout
from aqaa.text import TextTokenizer
from aqaa.tokenizer.codebook import mini_batch_kmeans
from aqaa.tokenizer.dual import DualTokenizer
from aqaa.tokenizer.released import LinguisticTokenizer, SemanticTokenizer
from aqaa.tokenizer.sanm import SanmEncoder
from aqaa.tokenizer.speech_tokenizer import SpeechTokenizer
from aqaa.tokenizer.whisper import SemanticEncoder
from aqaa.vocabulary import Vocabulary
from aqaa.vocoder.flow import FlowVocoder
from aqaa.vocoder.hift import Hift
from aqaa.vocoder.token_flow import TokenFlow
from aqaa.vocoder.vocoder import Vocoder
from aqaa.vocoder.waveform import WaveformHead

FOLDER = Path(__file__).parent
WORDS = [f"w{i:02}" for i in range(46)]
FRAMES_PER_CODE = {"linguistic": 6, "semantic": 4}
RELEASED = ("sanm", "whisper", "token_flow", "hift")
ORGANS = ("linguistic", "semantic", "step1", "flow", "waveform", *RELEASED)
SANM = {"in_width": 560, "width": 8, "blocks": 2, "heads": 2, "inner": 12, "kernel": 5}
WHISPER = {"bins": 128, "width": 8, "blocks": 2, "heads": 2, "inner": 12, "positions": 40}


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter random values, those that start at zero or one too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(module.named_parameters()):
            vector = parameter.dim() == 1
            scale = 0.3 if vector else (parameter[0].numel() + 1) ** -0.5
            gain = vector and not name.endswith("bias")
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(0.5 * gain + scale * noise)
    return module.eval()


def speech_tokenizer(book: str, *, codes: int, seed: int = 0) -> SpeechTokenizer:
    """A tokenizer with a started codebook."""
    tokenizer = SpeechTokenizer(
        book=book,
        phones=["a", "b", "c"],
        codes=codes,
        frames_per_code=FRAMES_PER_CODE[book],
        ctc_steps=2,
        width=8,
        blocks=1,
        code_width=4,
    )
    randomise(tokenizer, seed)
    generator = torch.Generator().manual_seed(seed)
    # Codes where the encoder's vectors are, so that all of them are in use.
    frames = 32 * tokenizer.frames_per_code
    mel = 6 * torch.randn(codes // 32, 80, frames, generator=generator) - 3
    with torch.no_grad():
        z = tokenizer(mel, torch.ones(len(mel), frames)).z
    tokenizer.codebook.start(z.flatten(0, 1), rounds=1, generator=generator)
    return tokenizer


def sanm(seed: int = 0) -> SanmEncoder:
    """A streaming encoder of the released kind."""
    encoder = SanmEncoder(**SANM)
    randomise(encoder, seed)
    return encoder


def whisper(*, codes: int = 32, positions: int = 40, seed: int = 0) -> SemanticEncoder:
    """A semantic encoder of the released kind, its codes on the unit sphere."""
    network = SemanticEncoder(**{**WHISPER, "codes": codes, "positions": positions})
    randomise(network, seed)
    generator = torch.Generator().manual_seed(seed)
    book = torch.randn(codes, WHISPER["width"], generator=generator)
    network.codebook.hold(nn.functional.normalize(book, dim=-1))
    return network


def released_dual(seed: int = 0) -> DualTokenizer:
    """Both tokenizers of the released kind, their codes where the encoders' vectors are."""
    linguistic = LinguisticTokenizer(codes=64, encoder=SANM)
    linguistic.encoder = sanm(seed)
    generator = torch.Generator().manual_seed(seed)
    linguistic.shift.copy_(torch.randn(560, generator=generator) - 8)
    linguistic.scale.copy_(0.2 + 0.1 * torch.rand(560, generator=generator))
    places = torch.arange(160_000)
    level = (places * 0.0007).sin() * 0.2
    clip = level * (places * 0.09).sin() + 0.05 * torch.randn(len(places), generator=generator)
    with torch.no_grad():
        linguistic.codebook.hold(mini_batch_kmeans(linguistic.vectors([clip])[0], codes=64))
    semantic = SemanticTokenizer(network={**WHISPER, "positions": 1500, "codes": 64})
    semantic.network = whisper(codes=64, positions=1500, seed=seed)
    mel = whisper_mel(clip)[None]
    with torch.no_grad():
        hidden = semantic.network(mel, torch.tensor([mel.shape[2]])).hidden[0]
    unit = nn.functional.normalize(hidden, dim=-1)
    semantic.codebook.hold(mini_batch_kmeans(unit, codes=64))
    return DualTokenizer(linguistic, semantic)


def dual(seed: int = 0) -> DualTokenizer:
    """Both tokenizers at the real sizes of their books."""
    return DualTokenizer(
        speech_tokenizer("linguistic", codes=1024, seed=seed),
        speech_tokenizer("semantic", codes=4096, seed=seed + 1),
    )


def step1(*, tied: bool = False, heads: int = 6, seed: int = 0) -> Step1ForCausalLM:
    """A decoder of 40 rows."""
    config = Step1Config(
        vocab_size=40,
        hidden_size=4 * heads,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_attention_groups=2,
        tie_word_embeddings=tied,
    )
    model = Step1ForCausalLM(config)
    model.tie_weights()
    randomise(model, seed)
    return model


def flow(seed: int = 0) -> FlowVocoder:
    """A flow vocoder."""
    vocoder = FlowVocoder(width=8, code_width=2, time_width=8)
    randomise(vocoder, seed)
    return vocoder


def waveform(seed: int = 0) -> WaveformHead:
    """A waveform head."""
    head = WaveformHead(channels=8, inner=16, blocks=2)
    randomise(head, seed)
    return head


def token_flow(seed: int = 0, *, tokens: int = 24) -> TokenFlow:
    """A flow of the released architecture; no two of its widths are equal."""
    flow = TokenFlow(
        tokens=tokens,
        encoder={"code_width": 6, "width": 8, "heads": 2, "inner": 12, "layers": 2},
        estimator={"channels": [8, 16], "heads": 3, "head_width": 4, "blocks": 2, "middle": 1},
        mel_bins=10,
        speaker_width=5,
        regulator_layers=2,
    )
    randomise(flow, seed)
    return flow


def hift(seed: int = 0) -> Hift:
    """A waveform head of the released architecture."""
    head = Hift(
        channels=12,
        kernels=(3, 5),
        source_kernels=(5, 3),
        dilations=2,
        harmonics=2,
        pitch_channels=6,
        pitch_layers=3,
        mel_bins=10,
    )
    randomise(head, seed)
    return head


def ids(tokenizer_hash: str = "", layout: StreamLayout | None = None) -> Ids:
    """Ids over a vocabulary of 46 words."""
    text = TextTokenizer.train_words(WORDS)
    return Ids(text, Vocabulary(text.size), layout or StreamLayout(), tokenizer_hash)


def backbone(
    folder: Path, *, tokenizer_hash: str = "", layout: StreamLayout | None = None, tied: bool = True
) -> Backbone:
    """A decoder with real ids, written to ``folder`` and loaded from there."""
    meaning = ids(tokenizer_hash, layout)
    config = Step1Config(
        vocab_size=meaning.vocabulary.rows,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_attention_groups=2,
        tie_word_embeddings=tied,
    )
    write_initial(folder, config=config, ids=meaning, seed=3)
    return load_backbone(folder)


def vocoder() -> Vocoder:
    """A voice."""
    return Vocoder(flow(), waveform())


def build(organ: str) -> nn.Module:
    """The organ of a golden file."""
    if organ in FRAMES_PER_CODE:
        return speech_tokenizer(organ, codes=32)
    made = {"step1": step1, "flow": flow, "waveform": waveform, "sanm": sanm, "whisper": whisper,
            "token_flow": token_flow, "hift": hift}  # fmt: skip
    return made[organ]()


@torch.no_grad()
def run(organ: str, module: nn.Module) -> dict[str, Tensor]:
    """Outputs of an organ for inputs that need no generator of random numbers."""
    if organ == "step1":
        assert isinstance(module, Step1ForCausalLM)
        return {"logits": module(torch.arange(18).reshape(2, 9) * 7 % 40).logits}
    if organ == "flow":
        assert isinstance(module, FlowVocoder)
        codes = torch.arange(12)[None]
        linguistic, semantic = codes[:, :8] * 101 % 1024, codes * 331 % 4096
        noise = wave(160 * 24).reshape(1, 160, 24)
        return {"sample": module.sample(linguistic, semantic, steps=3, guidance=0.7, noise=noise)}
    if organ in RELEASED:
        return _run_released(organ, module)
    mel = 3 * wave(80 * 36).reshape(1, 80, 36) - 3
    if organ == "waveform":
        return {"samples": module(mel)}
    assert isinstance(module, SpeechTokenizer)
    mask = torch.ones(1, 36)
    out = module(mel, mask)
    found = {"codes": module.encode(mel, mask), "log_probs": out.log_probs, "z": out.z}
    return found if out.mel is None else {**found, "mel": out.mel}


def _run_released(organ: str, module: nn.Module) -> dict[str, Tensor]:
    """The same for the organs of the released sizes' shapes."""
    if organ == "token_flow":
        assert isinstance(module, TokenFlow)
        tokens = torch.arange(9)[None] * 7 % 24
        given = {"prompt_tokens": tokens[:, :4], "prompt_mel": wave(70).reshape(1, 10, 7)}
        noise = wave(10 * 25).reshape(1, 10, 25)
        speaker = wave(5)[None]
        return {"sample": module.sample(tokens, speaker=speaker, noise=noise, steps=3, **given)}
    if organ == "hift":
        assert isinstance(module, Hift)
        mel, source = wave(120).reshape(1, 10, 12), wave(256 * 12).reshape(1, 1, -1)
        return {"f0": module.f0(mel), "samples": module.decode(mel, 0.1 * source)}
    if organ == "sanm":
        assert isinstance(module, SanmEncoder)
        feats = wave(560 * 22).reshape(1, 22, 560)
        return {"vectors": module.encode_chunks(feats, [4] * 5 + [2])}
    mel, lengths = wave(2 * 128 * 50).reshape(2, 128, 50), torch.tensor([50, 31])
    found = module(mel, lengths)
    parts = {f"hidden_{i}": found.hidden[i, :n] for i, n in enumerate(found.lengths.tolist())}
    return {**parts, "codes": found.codes[0]}


def wave(count: int) -> Tensor:
    """Numbers in -1..1 without a pattern an organ could notice."""
    return torch.sin(torch.arange(count, dtype=torch.float64).pow(1.5)).float()


def main() -> None:
    """Write every golden file."""
    for organ in ORGANS:
        module = build(organ)
        # Halves keep the files small; the outputs are those of the halves.
        whole = module.state_dict()
        state = {k: v.half() if v.is_floating_point() else v for k, v in whole.items()}
        module.load_state_dict(state)
        outputs = {f"out.{k}": v for k, v in run(organ, module).items()}
        tensors = {**{f"state.{k}": v for k, v in state.items()}, **outputs}
        save_tensors(FOLDER / f"{organ}.safetensors", tensors)
        size = (FOLDER / f"{organ}.safetensors").stat().st_size
        print(json.dumps({"organ": organ, "bytes": size}))


def golden(organ: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(state, outputs) of a golden file."""
    tensors = load_tensors(FOLDER / f"{organ}.safetensors")
    state = {k[6:]: v for k, v in tensors.items() if k.startswith("state.")}
    return state, {k[4:]: v for k, v in tensors.items() if k.startswith("out.")}


if __name__ == "__main__":
    main()
