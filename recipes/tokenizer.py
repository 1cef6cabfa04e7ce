"""Train one speech tokenizer: sound to codes (paper section 2.1).

What goes in: a corpus (`aqaa data synthesize`, or your own manifest in the same form).
What comes out: runs/tokenizer_linguistic/model or runs/tokenizer_semantic/model, the encoder with
its codebook: 1,024 codes at 16.7 Hz that keep what was said, or 4,096 at 25 Hz that also keep how.

On a laptop, the linguistic book and then the semantic one:
    python recipes/tokenizer.py preset=walkthrough/tokenizer_linguistic
    python recipes/tokenizer.py preset=walkthrough/tokenizer_semantic
On a GPU at the size of the released encoders (composes; not run yet):
    python recipes/tokenizer.py preset=paper/tokenizer_linguistic

Time: about 4 and 2 minutes of one quiet CPU core (recipes/tokenizer.json).
Expect: validation/phone_error_rate in metrics.csv near 0.02 (linguistic) and 0.12 (semantic) on
voices that were never trained.
Ours: the small encoder, CTC on phones instead of a released Paraformer, the codebook started by
k-means half-way. The paper takes two trained tokenizers as they are.

More: recipes/tokenizer.md.
"""

import sys

from aqaa.cli import main

if __name__ == "__main__":
    sys.exit(main(["tokenizer", *sys.argv[1:]]))
