"""Run the whole chain, tiny: from a synthetic corpus to judged spoken answers (the whole paper).

What goes in: nothing.
What comes out: runs/walkthrough with one run folder a stage, model/, results.json and report.html.

On a laptop:
    python recipes/walkthrough.py
To see only that it runs, a few steps a stage:
    python recipes/walkthrough.py preset=walkthrough/smoke
There is no cluster form: on a cluster each stage is launched alone.

Time: about 25 minutes on 2 cores; a minute or two for the smoke preset. Stop it with Ctrl-C
and run it again: finished steps are kept, a half one goes on.
Expect: a table of shares with their 95 % intervals; most held-out questions are answered rightly,
in text and in sound. The smoke preset's model understands nothing.
Ours: the corpus, every size and step count, the judge.

More: recipes/walkthrough.md.
"""

import sys

from aqaa.cli import main

if __name__ == "__main__":
    sys.exit(main(["walkthrough", *sys.argv[1:]]))
