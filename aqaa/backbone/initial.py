"""From-scratch weights, written tensor by tensor and seeded by name, then loaded like any others.

So a model starts from the same bytes on any number of ranks, and 130B never exists before it is
sharded. Letters: D code width.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aqaa.backbone.growing import grow
from aqaa.backbone.loading import Ids
from aqaa.backbone.shards import SHARD_BYTES, write_tensors
from aqaa.backbone.sizes import shapes
from aqaa.backbone.step1 import Step1Config
from aqaa.backbone.table import named_generator, start_from_codes
from aqaa.errors import UsageError
from aqaa.lineage import tokenizer_hash
from aqaa.storage import atomic_folder, load_tensors, read_json
from aqaa.stream import StreamLayout
from aqaa.text import TextTokenizer
from aqaa.vocabulary import Vocabulary


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
        folder: written as a whole, with its manifest; a shard of it is in memory at a time.
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
    with atomic_folder(folder) as temporary:
        tensors = _tensors(config, ids.vocabulary, codebooks, seed, row_std)
        write_tensors(temporary, tensors, shard_bytes=SHARD_BYTES)
        config.architectures = ["Step1ForCausalLM"]
        config.save_pretrained(temporary)
        replace(ids, model_type=config.model_type).save(temporary)


def _tensors(
    config: Step1Config,
    vocabulary: Vocabulary,
    codebooks: dict[str, Tensor] | None,
    seed: int,
    row_std: float,
) -> Iterator[tuple[str, Tensor]]:
    """Name and values of each tensor, made when it is asked for."""
    for name, shape in shapes(config).items():
        generator = named_generator(seed, name)
        if len(shape) == 1:
            yield name, torch.ones(shape)
        elif name.endswith(("embed_tokens.weight", "lm_head.weight")):
            rows = row_std * torch.randn(shape, generator=generator)
            if codebooks is not None:
                rows = start_from_codes(rows, codebooks, vocabulary, std=row_std, first=0)
            yield name, rows
        else:
            std = 1 / math.sqrt(3 * shape[1])
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                std /= math.sqrt(2 * config.num_hidden_layers)
            yield name, std * torch.randn(shape, generator=generator)


def initialise(
    *,
    out: str,
    codes: str,
    texts: str,
    text: str = "words",
    base: str | None = None,
    backbone: dict[str, Any],
    layout: dict[str, Any],
    codebook_rows: bool = True,
    row_multiple: int = 64,
    seed: int = 0,
) -> None:
    """Write a backbone folder for a pair of speech tokenizers (`aqaa init`).

    Args:
        out: the folder.
        codes: folder with both speech tokenizers, as a token store keeps it.
        texts: JSON file whose ``words`` make the text vocabulary (domain.json of a corpus).
        text: ``words`` or ``bytes``.
        base: folder of a causal language model to grow; it brings its own text ids and sizes, and
            ``texts``, ``text`` and ``backbone`` are not looked at. None: from scratch.
        backbone: sizes of :class:`Step1Config`.
        layout: settings of :class:`StreamLayout`.
        codebook_rows: start the audio rows from the code vectors.
        row_multiple: the table's rows are rounded up to this.
        seed: decides every tensor.
    """
    declared = StreamLayout(**layout)
    hashed = tokenizer_hash(codes)
    books = {book: _code_vectors(Path(codes) / book) for book in ("linguistic", "semantic")}
    codebooks = books if codebook_rows else None
    if base is not None:
        grow(
            base, out, layout=declared, tokenizer_hash=hashed, codebooks=codebooks,
            row_multiple=row_multiple, seed=seed,
        )  # fmt: skip
        return
    encoder = _text_ids(texts, text)
    vocabulary = Vocabulary(encoder.size, row_multiple=row_multiple)
    ids = Ids(encoder, vocabulary, declared, hashed)
    config = Step1Config(vocab_size=vocabulary.rows, **backbone)
    write_initial(out, config=config, ids=ids, codebooks=codebooks, seed=seed)


def _code_vectors(folder: Path) -> Tensor:
    """Code vectors (codes, D) of a speech tokenizer of whichever kind."""
    for name, tensor in load_tensors(folder / "model.safetensors").items():
        if name == "codebook.vectors" or name.endswith(".codebook.vectors"):
            return tensor.float()
    raise UsageError(f"{folder} holds no code vectors: it is no speech tokenizer of ours")


def _text_ids(texts: str, text: str) -> TextTokenizer:
    if text not in ("words", "bytes"):
        raise UsageError(f"text={text} is neither words nor bytes")
    domain = read_json(texts)
    if not isinstance(domain, dict) or not isinstance(domain.get("words"), list):
        raise UsageError(f"{texts} holds no list of words: give the domain.json of a corpus")
    words = TextTokenizer.train_words(domain["words"])
    return words if text == "words" else TextTokenizer.train_bytes()
