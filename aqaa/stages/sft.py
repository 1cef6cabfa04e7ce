"""Supervised fine-tuning (paper section 3.2).

SFT 1 learns from AQTA and AQTAA, SFT 2 from chosen AQTAA alone: two presets of this one stage.
"""

from aqaa.stages.language import LanguageModel


class Sft(LanguageModel):
    """Next-token training on answers: loss on the assistant's ids alone."""
