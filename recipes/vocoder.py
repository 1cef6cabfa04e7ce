"""Train the vocoder: audio ids to a mel by flow matching, a mel to a waveform (paper section 2.3).

What goes in: a corpus; for the flow also its token store.
What comes out: runs/vocoder_flow/model and runs/vocoder_waveform/model.

On a laptop:
    python recipes/vocoder.py preset=walkthrough/vocoder_flow
    python recipes/vocoder.py preset=walkthrough/vocoder_waveform
At 22.05 kHz, with the released architecture:
    python recipes/vocoder.py preset=speech/vocoder_flow
    python recipes/vocoder.py preset=speech/vocoder_vocos
On a GPU (composes; not run yet):
    python recipes/vocoder.py preset=paper/vocoder_flow

Time: about 5 minutes of one quiet CPU core for the flow, 4 for the head (recipes/vocoder.json);
about an hour each for the two at 22.05 kHz.
Expect: `aqaa listen` gives back the corpus' own answers so that every word is understood.
Ours: in the walkthrough 16 kHz sound and a 100 Hz mel, a regression head beside the flow, code
embeddings started from the codebooks, sampling from the mode of the noise, an inverse-STFT head
trained by spectral losses alone; at 22.05 kHz heads are trained against judges.

More: recipes/vocoder.md.
"""

import sys

from aqaa.cli import main

if __name__ == "__main__":
    sys.exit(main(["vocoder", *sys.argv[1:]]))
