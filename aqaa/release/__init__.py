"""Released weights of the Step-Audio family, in and out: one door for what others trained."""

from aqaa.audio.vocoder_mel import vocoder_mel
from aqaa.release.backbone import backbone_from_state, load_backbone
from aqaa.release.tokenizer import (
    linguistic_encoder_from_state,
    linguistic_frontend,
    load_tokenizer,
    semantic_encoder_from_state,
)
from aqaa.release.vocoder import (
    flow_from_state,
    load_vocoder,
    save_vocoder,
    waveform_from_state,
)

__all__ = [
    "backbone_from_state",
    "flow_from_state",
    "linguistic_encoder_from_state",
    "linguistic_frontend",
    "load_backbone",
    "load_tokenizer",
    "load_vocoder",
    "save_vocoder",
    "semantic_encoder_from_state",
    "vocoder_mel",
    "waveform_from_state",
]
