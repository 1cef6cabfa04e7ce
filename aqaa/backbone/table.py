"""Rows for ids a table does not have yet: like its old rows, audio ones by their code vectors.

Letters: V rows, N new rows, W width, K codes, D code width, R rows a new one is mixed of.
"""

import zlib

import torch
from torch import Tensor

from aqaa.layers import spread
from aqaa.vocabulary import Vocabulary

_CODEBOOK_SHARE, _NOISE_SHARE = 0.9, 0.43  # squares sum to one: rows as large as any other
_MIXED_ROWS = 4096


def named_generator(seed: int, name: str) -> torch.Generator:
    """Randomness that a seed and a tensor's name decide, and nothing else."""
    return torch.Generator().manual_seed(zlib.crc32(f"{seed}:{name}".encode()))


def start_from_codes(
    noise: Tensor, codebooks: dict[str, Tensor], vocabulary: Vocabulary, *, std: float, first: int
) -> Tensor:
    """Put code vectors into the audio rows, in place.

    Args:
        noise: (N, W) random rows of spread ``std`` round zero, of ids ``first``..
        codebooks: code vectors by book, ``linguistic`` (1024, D) and ``semantic`` (4096, D).
        vocabulary: where the books lie.
        std: spread of a row's numbers.
        first: id of the first row.
    """
    starts = {"linguistic": vocabulary.linguistic_start, "semantic": vocabulary.semantic_start}
    for book, start in starts.items():
        vectors = spread(codebooks[book], noise.shape[1], seed=start)
        rows = slice(start - first, start - first + len(vectors))
        noise[rows] = _CODEBOOK_SHARE * std * vectors + _NOISE_SHARE * noise[rows]
    return noise


def grown(
    table: Tensor,
    *,
    name: str,
    vocabulary: Vocabulary,
    codebooks: dict[str, Tensor] | None = None,
    seed: int = 0,
) -> Tensor:
    """A table with the rows of ``vocabulary``; the old ones keep their bytes.

    New rows are drawn from the normal distribution that has the old rows' mean and covariance: each
    is the mean and a random mix of old rows' distances from it. Audio rows then keep 0.43 of that
    distance and take 0.9 from their code vectors.

    Args:
        table: (V, W) embedding or head.
        name: the tensor's; with the seed it decides the new rows.
        vocabulary: its ``text_tokens`` are V.
        codebooks: code vectors by book, or None.
        seed: of the randomness.
    """
    count = vocabulary.rows - len(table)
    old = table.float()
    mean = old.mean(0)
    generator = named_generator(seed, name)
    chosen = old[torch.randperm(len(old), generator=generator)[:_MIXED_ROWS]] - mean
    mix = torch.randn(count, len(chosen), generator=generator) / len(chosen) ** 0.5
    rows = mix @ chosen
    if codebooks is not None:
        std = float(chosen.square().mean().sqrt())
        rows = start_from_codes(rows, codebooks, vocabulary, std=std, first=len(table))
    return torch.cat([table, (mean + rows).to(table.dtype)])
