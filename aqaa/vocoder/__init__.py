"""Audio ids to sound: a mel by flow matching, then a small head to the waveform."""
