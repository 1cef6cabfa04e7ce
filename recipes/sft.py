"""Fine-tune on spoken dialogues, first or second round (paper section 3.2).

What goes in: a corpus, its token store, a backbone: that of pre-training for SFT 1, that of SFT 1
for SFT 2.
What comes out: runs/sft_1/model, then runs/sft_2/model: backbones that answer a spoken question
with text and speech in one stream.

On a laptop:
    python recipes/sft.py preset=walkthrough/sft_1
    python recipes/sft.py preset=walkthrough/sft_2 parents.model=runs/sft_1/model
On a cluster (composes; not run yet):
    sbatch slurm/launch.sh sft preset=paper/sft_1

Time: about 5 minutes of one quiet CPU core for SFT 1, 2 for SFT 2 (recipes/sft.json).
Expect: validation/text_accuracy of the task aqtaa close to 1; SFT 2 moves little.
Ours: mixture, rates, steps (the paper states none), replay of pre-training tasks in SFT 1. The
synthetic corpus holds nothing to choose from, so SFT 2 has the same AQTAA rows as SFT 1.

More: recipes/sft.md.
"""

import sys

from aqaa.cli import main

if __name__ == "__main__":
    sys.exit(main(["sft", *sys.argv[1:]]))
