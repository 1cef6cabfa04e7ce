"""Multimodal pre-training (paper section 3.1): audio continuation, then interleaved, ASR and TTS.

The paper's three stages are three presets of this one stage: they differ in mixture and rates.
"""

from aqaa.stages.language import LanguageModel


class Pretrain(LanguageModel):
    """Next-token training on the pre-training mixture."""
