"""Pre-train the backbone on speech and text (paper section 3.1).

What goes in: a corpus, its token store (`aqaa data tokenize`), a backbone folder (`aqaa init`).
What comes out: runs/pretrain/model, a backbone that hears (ASR), speaks (TTS, interleaved), goes on
with a sound (continuation) and knows the answers as text.

On a laptop:
    python recipes/pretrain.py preset=walkthrough/pretrain
On a cluster, the first of the paper's three steps (composes; not run yet):
    sbatch slurm/launch.sh pretrain preset=paper/pretrain_1

Time: about 4 minutes of one quiet CPU core (recipes/pretrain.json).
Expect: validation/text_accuracy and validation/linguistic_accuracy in metrics.csv rise together;
text comes first, sound later.
Ours: the mixture's shares at toy size, the weights by kind of id, the loss over what may stand at a
position, audio rows started from the codebooks. There is no image part.

More: recipes/pretrain.md.
"""

import sys

from aqaa.cli import main

if __name__ == "__main__":
    sys.exit(main(["pretrain", *sys.argv[1:]]))
