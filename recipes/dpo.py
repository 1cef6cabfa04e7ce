"""Optimise preferences, audio ids and markers masked out of the term (paper section 3.3, Eq. 2).

What goes in: preference pairs (`aqaa data pairs`) and the SFT 1 model they were sampled from, which
is also the frozen reference.
What comes out: runs/dpo/model, and runs/pairs.scores, the reference's scores, computed once.

On a laptop:
    python recipes/dpo.py preset=walkthrough/dpo
On a cluster (composes; not run yet):
    sbatch slurm/launch.sh dpo preset=paper/dpo

Time: half a minute of one quiet CPU core (recipes/dpo.json), and a few for the pairs.
Expect: train/accuracy and train/margin in metrics.csv rise; the answers change little, which is
what a small rate from a good model should do.
Ours: where the pairs come from (0/1 on the text of own answers), beta 0.1, rate and steps. The
paper states none of them. All markers count as audio, <text_end> among them; <|EOT|> as text.

More: recipes/dpo.md.
"""

import sys

from aqaa.cli import main

if __name__ == "__main__":
    sys.exit(main(["dpo", *sys.argv[1:]]))
