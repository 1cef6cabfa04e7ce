"""Average models, each with its weight (paper section 3.4, Eq. 3).

What goes in: model folders that grew from one pre-training, with the same tokenizers.
What comes out: runs/merge/model, (5 SFT 1 + 5 SFT 2 + 1 DPO) / 11, every tensor summed in float64
and rounded once.

On a laptop:
    python recipes/merge.py
With other parts:
    python recipes/merge.py 'models=[runs/sft_1/model,runs/dpo/model]' 'weights=[1,1]' out=runs/half

Time: seconds, or what the disk takes. There is no cluster form: memory does not grow with the size.
Expect: a model about as good as its parts; the walkthrough's report shows all four side by side.
Ours: embeddings and head are averaged like the rest unless audio_weights says otherwise.

More: recipes/merge.md.
"""

import sys

from aqaa.cli import main

if __name__ == "__main__":
    sys.exit(main(["merge", *sys.argv[1:]]))
