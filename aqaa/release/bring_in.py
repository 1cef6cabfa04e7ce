"""The verb: a released folder into a run folder of ours, that every other verb can start from.

A backbone goes through tensor by tensor, so that no more than a shard is ever in memory; nothing
the release brings along is run. The lineage says ``verified: false``: nobody's manifest vouched.
Letters: none of its own; tensors keep their shapes.
"""

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aqaa import lineage
from aqaa.backbone.loading import Ids
from aqaa.backbone.shards import SHARD_BYTES, read_tensors, write_tensors
from aqaa.errors import UsageError
from aqaa.release.backbone import inspect_backbone
from aqaa.release.sentencepiece import FILE as PIECES
from aqaa.release.sentencepiece import read_text_ids
from aqaa.release.tokenizer import load_tokenizer
from aqaa.release.vocoder import load_vocoder
from aqaa.storage import atomic_folder, write_text
from aqaa.stream import StreamLayout
from aqaa.text import FILE as TEXT_IDS
from aqaa.text import TextTokenizer
from aqaa.vocabulary import Vocabulary

STAGE = "import"
STEP1_TEXT_TOKENS = 65_536
SETTINGS = "config.yaml"


def bring_in(
    *,
    folder: str,
    out: str,
    codes: str | None = None,
    layout: dict[str, Any] | None = None,
    ignore: Sequence[str] = (),
    token_rate_hz: float | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Import a released backbone, tokenizer or vocoder; which one, its files tell.

    Args:
        folder: as it was released.
        out: run folder; its ``model`` holds ``linguistic`` and ``semantic`` of a tokenizer,
            ``flow`` and ``waveform`` of a vocoder, or the files of a backbone.
        codes: for a backbone, folder with both speech tokenizers whose codes its audio ids are.
        layout: of a backbone's turns, settings of :class:`StreamLayout`.
        ignore: prefixes of tensors that are there and not wanted, a vision tower's for one.
        token_rate_hz: of a vocoder, instead of what its cosyvoice.yaml says.
        shard_bytes: of a backbone's weight files.

    Returns:
        The model folder.

    Raises:
        UsageError: another family's folder, or one that is incomplete, damaged or contradictory.
    """
    begun, release, run = time.monotonic(), Path(folder), Path(out)
    kind = _kind(release)
    done = lineage.read_lineage(run)
    if done is not None and done.stage != STAGE:
        raise UsageError(f"{run} holds a run of {done.stage}, not an import: choose another out")
    parents = {"release": lineage.parent(release)}
    model = run / lineage.MODEL
    if kind == "tokenizer":
        dual = load_tokenizer(release, ignore=tuple(ignore))
        with atomic_folder(model) as temporary:
            dual.save(temporary)
        parameters = _numbers(*(book.state_dict() for book in (dual.linguistic, dual.semantic)))
    elif kind == "vocoder":
        voice = load_vocoder(release, token_rate_hz=token_rate_hz, ignore=tuple(ignore))
        with atomic_folder(model) as temporary:
            voice.save(temporary)
        parameters = _numbers(voice.flow.state_dict(), voice.head.state_dict())
    else:
        declared, codes = StreamLayout(**(layout or {})), _books(codes)
        parents["codes"] = lineage.parent(codes)
        parameters = _backbone(release, model, codes, declared, tuple(ignore), shard_bytes)
    settings = {"kind": kind, "layout": layout, "ignore": list(ignore),
                "token_rate_hz": token_rate_hz}  # fmt: skip
    record = {"folder": folder, "codes": codes, **settings, "out": out}
    write_text(run / SETTINGS, "".join(f"{k}: {json.dumps(v)}\n" for k, v in record.items()))
    lineage.finish_at_once(
        run, stage=STAGE, settings=settings, parents=parents, begun_s=begun,
        parameters=parameters,
    )  # fmt: skip
    return model


def _kind(release: Path) -> str:
    if not release.is_dir():
        raise UsageError(f"{release} is not a folder: give a released one")
    if (release / "cosyvoice.yaml").is_file() or (release / "flow.pt").is_file():
        return "vocoder"
    if (release / "linguistic_tokenizer.npy").is_file() or any(release.rglob("am.mvn")):
        return "tokenizer"
    if (release / "config.json").is_file():
        return "backbone"
    raise UsageError(
        f"{release} is no release we know: a backbone has config.json, a tokenizer am.mvn and "
        "linguistic_tokenizer.npy, a vocoder cosyvoice.yaml and flow.pt"
    )


def _books(codes: str | None) -> str:
    if codes is None:
        raise UsageError(
            "a backbone's audio ids are codes of speech tokenizers: import those first and give "
            "codes=FOLDER"
        )
    inside = Path(codes) / lineage.MODEL
    return str(inside) if (inside / "linguistic").is_dir() else codes


def _backbone(
    release: Path,
    model: Path,
    codes: str,
    layout: StreamLayout,
    ignore: tuple[str, ...],
    shard_bytes: int,
) -> int:
    config = inspect_backbone(release, ignore=ignore).config
    text = _text_ids(release)
    vocabulary = _vocabulary(config.vocab_size, text, release)
    counted = 0

    def tensors() -> Iterator[tuple[str, Tensor]]:
        nonlocal counted
        for name, tensor in read_tensors(release):
            if name.startswith(ignore):
                continue
            if not bool(tensor.isfinite().all()):
                raise UsageError(f"{release}: {name} holds NaN or infinity")
            counted += tensor.numel()
            yield name, tensor

    with atomic_folder(model) as temporary:
        write_tensors(temporary, tensors(), shard_bytes=shard_bytes)
        config.architectures = ["Step1ForCausalLM"]
        config.save_pretrained(temporary)
        hashed = lineage.tokenizer_hash(codes)
        Ids(text, vocabulary, layout, hashed, config.model_type).save(temporary)
    return counted


def _text_ids(release: Path) -> TextTokenizer:
    if (release / PIECES).is_file():
        return read_text_ids(release / PIECES)
    if (release / TEXT_IDS).is_file():
        return TextTokenizer.load(release)
    raise UsageError(f"{release} holds neither {PIECES} nor {TEXT_IDS}: its text ids are unknown")


def _vocabulary(rows: int, text: TextTokenizer, release: Path) -> Vocabulary:
    """Step-1's ids; a smaller table's text ids end where its tokenizer does."""
    text_tokens = min(STEP1_TEXT_TOKENS, text.size)
    try:
        return Vocabulary(text_tokens, table_rows=rows)
    except ValueError:
        raise UsageError(
            f"the table of {release} has {rows} rows for {text_tokens} text ids: there is no room "
            f"for audio ids, so grow it with `aqaa init base={release}`"
        ) from None


def _numbers(*states: dict[str, torch.Tensor]) -> int:
    return sum(tensor.numel() for state in states for tensor in state.values())
