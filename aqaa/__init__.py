"""Step-Audio-AQAA, trainable: a spoken question in, a spoken answer out (arXiv 2506.08967).

The rooms, in the order of the signal; a room knows only those above it in this list.

- signals, vocabulary, text: what flows, the id space, the text ids
- grammar, stream: what may come next in an answer, the layout of a turn
- losses, layers: the mathematics, shared network layers
- errors, storage, lineage, states: the one error of use, files that are whole or absent, run
  records, folders of saved states
- audio: the ear and the file
- tokenizer: sound to two streams of codes and their 2:3 interleave
- backbone: ids to ids (the Step-1 decoder, decoding under the layout's grammar, merging)
- vocoder: audio ids to sound (flow matching to a mel, a small head to a waveform)
- pipeline: the four organs in a row
- release: public weights of the family, in and out
- data: manifests, the synthetic corpus, stored tokens, batches
- evaluation: the judge, the figures and the report
- stages: one file per training stage
- runtime: Hydra, the trainer, checkpoints, the walkthrough
"""
