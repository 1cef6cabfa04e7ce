"""From-scratch weights, written tensor by tensor and seeded by name, then loaded like any others.

So a model starts from the same bytes on any number of ranks, and 130B never exists before it is
sharded. Letters: K codes, D code width, W width.
"""

import math
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aqaa.backbone.loading import Ids
from aqaa.backbone.step1 import Step1Config, Step1ForCausalLM
from aqaa.errors import UsageError
from aqaa.layers import spread
from aqaa.lineage import tokenizer_hash
from aqaa.storage import atomic_folder, load_tensors, read_json, save_tensors
from aqaa.stream import StreamLayout
from aqaa.text import TextTokenizer
from aqaa.vocabulary import Vocabulary

_CODEBOOK_SHARE, _NOISE_SHARE = 0.9, 0.43  # squares sum to one: rows as large as any other


def write_initial(
    folder: str | Path,
    *,
    config: Step1Config,
    ids: Ids,
    codebooks: dict[str, Tensor] | None = None,
    seed: int = 0,
    row_std: float = 0.05,
) -> None:
    """Write a from-scratch backbone folder.

    Args:
        folder: written as a whole, with its manifest.
        config: sizes; ``vocab_size`` must equal ``ids.vocabulary.rows``.
        ids: saved beside the weights.
        codebooks: code vectors by book, ``linguistic`` (1024, D) and ``semantic`` (4096, D); audio
            rows start from them, so that codes that sound alike start alike (ours; worth 35 points
            of answers at 50 CPU-seconds of training). None: random rows.
        seed: with a tensor's name it decides the tensor.
        row_std: spread of the table's rows.
    """
    if config.vocab_size != ids.vocabulary.rows:
        raise ValueError(f"vocab_size {config.vocab_size} != {ids.vocabulary.rows} rows of the ids")
    with torch.device("meta"):
        shapes = {k: v.shape for k, v in Step1ForCausalLM(config).state_dict().items()}
    if config.tie_word_embeddings:
        del shapes["lm_head.weight"]
    state = {}
    for name, shape in shapes.items():
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}:{name}".encode()))
        if len(shape) == 1:
            state[name] = torch.ones(shape)
        elif name.endswith(("embed_tokens.weight", "lm_head.weight")):
            rows = row_std * torch.randn(shape, generator=generator)
            if codebooks is not None:
                rows = _start(rows, codebooks, ids.vocabulary, row_std)
            state[name] = rows
        else:
            std = 1 / math.sqrt(3 * shape[1])
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                std /= math.sqrt(2 * config.num_hidden_layers)
            state[name] = std * torch.randn(shape, generator=generator)
    with atomic_folder(folder) as temporary:
        save_tensors(temporary / "model.safetensors", state, {"format": "pt"})
        config.architectures = ["Step1ForCausalLM"]
        config.save_pretrained(temporary)
        ids.save(temporary)


def _start(
    rows: Tensor, codebooks: dict[str, Tensor], vocabulary: Vocabulary, std: float
) -> Tensor:
    """Put the codebooks into the audio rows of a random table (V, W)."""
    starts = {"linguistic": vocabulary.linguistic_start, "semantic": vocabulary.semantic_start}
    for book, start in starts.items():
        vectors = spread(codebooks[book], rows.shape[1], seed=start)
        end = start + len(vectors)
        rows[start:end] = _CODEBOOK_SHARE * std * vectors + _NOISE_SHARE * rows[start:end]
    return rows


def initialise(
    *,
    out: str,
    codes: str,
    texts: str,
    text: str = "words",
    backbone: dict[str, Any],
    layout: dict[str, Any],
    codebook_rows: bool = True,
    row_multiple: int = 64,
    seed: int = 0,
) -> None:
    """Write a from-scratch backbone folder for a pair of speech tokenizers (`aqaa init`).

    Args:
        out: the folder.
        codes: folder with both speech tokenizers, as a token store keeps it.
        texts: JSON file whose ``words`` make the text vocabulary (domain.json of a corpus).
        text: ``words`` or ``bytes``.
        backbone: sizes of :class:`Step1Config`.
        layout: settings of :class:`StreamLayout`.
        codebook_rows: start the audio rows from the code vectors.
        row_multiple: the table's rows are rounded up to this.
        seed: decides every tensor.
    """
    if text not in ("words", "bytes"):
        raise UsageError(f"text={text} is neither words nor bytes")
    domain = read_json(texts)
    if not isinstance(domain, dict) or not isinstance(domain.get("words"), list):
        raise UsageError(f"{texts} holds no list of words: give the domain.json of a corpus")
    words = TextTokenizer.train_words(domain["words"])
    encoder = words if text == "words" else TextTokenizer.train_bytes()
    vocabulary = Vocabulary(encoder.size, row_multiple=row_multiple)
    ids = Ids(encoder, vocabulary, StreamLayout(**layout), tokenizer_hash(codes))
    books = {
        book: load_tensors(Path(codes) / book / "model.safetensors")["codebook.vectors"].float()
        for book in ("linguistic", "semantic")
    }
    config = Step1Config(vocab_size=vocabulary.rows, **backbone)
    codebooks = books if codebook_rows else None
    write_initial(out, config=config, ids=ids, codebooks=codebooks, seed=seed)
