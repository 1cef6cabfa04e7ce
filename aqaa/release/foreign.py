"""What else a state dict may be: relatives of the vocoder, recognised by the names of tensors.

Letters: none of its own.
"""

from collections.abc import Iterable

from aqaa.errors import UsageError

EDITX_DIT = "the DiT flow of Step-Audio-EditX (24 kHz, 50 Hz mel)"
_BY_NAME = {
    "decoder.estimator.blocks.": EDITX_DIT,
    "decoder.estimator.transformer_blocks.": "the DiT flow of CosyVoice 3 (24 kHz)",
    "encoder.up_encoders.": "the causal flow of CosyVoice 2 and Step-Audio 2 (25 Hz, 24 kHz)",
    "decoder.estimator.": "a U-Net flow of CosyVoice's kind",
    "f0_predictor.": "a HiFT waveform head",
    "llm.": "a language model of CosyVoice",
    "model.layers.": "a language model",
    "encoder.blocks.": "a speech tokenizer",
    "encoder.encoders0.": "a Paraformer encoder",
}


def name_of(names: Iterable[str]) -> str | None:
    """Which known thing has tensors of such names; None where nothing is known."""
    names = list(names)
    found = (thing for start, thing in _BY_NAME.items() if any(n.startswith(start) for n in names))
    return next(found, None)


def expect(names: Iterable[str], *, start: str, wanted: str) -> None:
    """Refuse a state dict of something else.

    Args:
        names: of the tensors.
        start: the names of the wanted thing begin so.
        wanted: what is expected, for the error.

    Raises:
        UsageError: it is something else, which the sentence names if it is known.
    """
    found = name_of(names)
    if found != _BY_NAME[start]:
        raise UsageError(f"these are tensors of {found or 'something unknown'}, not of {wanted}")
