"""The paper's ablations at toy size, with several seeds (paper section 5.2).

What goes in: a finished walkthrough, whose corpus, codes and vocoder all variants share.
What comes out: runs/ablations/report.html and results.json: our table beside the paper's, with
intervals over seeds and questions; which of its claims agree, and what a toy cannot decide.

On a laptop, one seed of two layouts:
    python recipes/ablations.py seeds=[0] only=[ratio_10_15,ratio_3_5]
The same with the paper's presets is a list of jobs for a cluster (see recipes/ablations.md).

Time: by the walkthrough's times about 10 minutes of one CPU core a layout and seed, and 10 more for
what follows SFT 1.
Expect: audio_only far behind; what else agrees is for the report to say. It was run for a few steps
only so far.
Ours: which models are compared, the judge, the sizes; the paper's judge is GPT-4o.

More: recipes/ablations.md.
"""

import sys

from aqaa.cli import main

if __name__ == "__main__":
    sys.exit(main(["ablations", *sys.argv[1:]]))
