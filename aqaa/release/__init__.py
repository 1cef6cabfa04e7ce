"""Released weights of the Step-Audio family, in and out: one door for what others trained."""

from aqaa.audio.vocoder_mel import vocoder_mel
from aqaa.release.vocoder import (
    flow_from_state,
    load_vocoder,
    save_vocoder,
    waveform_from_state,
)

__all__ = ["flow_from_state", "load_vocoder", "save_vocoder", "vocoder_mel", "waveform_from_state"]
