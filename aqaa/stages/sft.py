"""Supervised fine-tuning (paper section 3.2): SFT 1 on AQTA and AQTAA, SFT 2 on chosen AQTAA alone."""

from aqaa.stages.language import LanguageModel


class Sft(LanguageModel):
    """Next-token training on answers: loss on the assistant's ids alone."""
