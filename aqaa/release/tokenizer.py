"""The released tokenizers: a Paraformer's encoder with k-means centres, and a Whisper-style one.

Every size is read from the tensors; nothing that the release brings along is run.
Letters: T samples, F frames of 60 ms, I frame width, W width, K codes, B clips.
"""

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from aqaa.audio.fbank import FRAME_WIDTH, linguistic_frontend
from aqaa.errors import UsageError
from aqaa.release.cosyvoice_yaml import VocoderNumbers
from aqaa.release.onnx_weights import read_semantic_onnx
from aqaa.release.strict import State, count, fill, read_state, shape_of
from aqaa.signals import SEMANTIC_RATE_HZ
from aqaa.storage import load_tensors, read_json
from aqaa.tokenizer.dual import Book, DualTokenizer, load_book
from aqaa.tokenizer.released import LinguisticTokenizer, SemanticTokenizer
from aqaa.tokenizer.sanm import SanmEncoder
from aqaa.tokenizer.whisper import SemanticEncoder
from aqaa.vocoder.token_flow import TOKEN_RATE_HZ

__all__ = [
    "linguistic_encoder_from_state",
    "linguistic_frontend",
    "load_tokenizer",
    "semantic_encoder_from_state",
]

# The rest of a Paraformer, which writes text: read by nobody here.
PARAFORMER_PREFIXES = ("decoder.", "predictor.")
CENTRES = "linguistic_tokenizer.npy"
SEMANTIC_FILES = tuple(
    f"speech_tokenizer_v1{rate}{kind}"
    for kind in (".onnx", ".safetensors", ".pt")
    for rate in ("", "_25hz")
)
_RATE_TOLERANCE_HZ = 0.5
PARAFORMER_HEADS = 4
SEMANTIC_HEAD_WIDTH = 64
_FOREIGN_MODELS = re.compile(r"step[-_]?audio[-_]?(2|r1)", re.IGNORECASE)
_BOOK = "quantizer._codebook.embed"
_LINGUISTIC, _SEMANTIC = "the linguistic encoder", "the semantic encoder"


def linguistic_encoder_from_state(state: State, *, heads: int = PARAFORMER_HEADS) -> SanmEncoder:
    """The streaming encoder from a Paraformer's tensors, in float32 and evaluation mode.

    Args:
        state: ``encoder.*``; what writes text (``decoder.*``, ``predictor.*``) may lie beside.
        heads: of its attention, which no shape tells.

    Raises:
        UsageError: a tensor is missing, unknown, or of another shape.
    """
    sizes = _sanm_sizes(state, heads)
    return fill(
        lambda: SanmEncoder(**sizes),
        state,
        what=_LINGUISTIC,
        prefix="encoder.",
        ignore=PARAFORMER_PREFIXES,
    )


def semantic_encoder_from_state(state: State, *, heads: int) -> SemanticEncoder:
    """The 25 Hz encoder with its book, in float32 and evaluation mode.

    Args:
        state: ``encoder.*`` and ``quantizer._codebook.embed``.
        heads: of its attention, which no shape tells (64 wide each in the released one).

    Raises:
        UsageError: a tensor is missing, unknown, or of another shape; another family's tokenizer.
    """
    sizes = _semantic_sizes(state, heads)
    network = SemanticEncoder(**sizes)
    own = dict(state)
    book = own.pop(_BOOK)
    network.encoder = fill(
        lambda: SemanticEncoder(**sizes).encoder, own, what=_SEMANTIC, prefix="encoder."
    )
    network.codebook.hold(book.float())
    return network.eval()


def load_tokenizer(folder: str | Path, *, ignore: Iterable[str] = ()) -> DualTokenizer:
    """Both tokenizers of a released folder.

    Args:
        folder: holds a Paraformer's folder (``model.pt`` and ``am.mvn``, at any depth),
            ``linguistic_tokenizer.npy`` and ``speech_tokenizer_v1.onnx`` (or the same weights
            as ``.safetensors`` or ``.pt``, which do not tell 25 Hz from 50: of such a folder they
            are taken to be the former, unless its name or a cosyvoice.yaml says otherwise).
        ignore: prefixes of further tensors in ``model.pt`` to leave aside.

    Raises:
        UsageError: a file is missing or damaged, or the folder is another family's.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder: give the released tokenizer's")
    _refuse_foreign(folder)
    return DualTokenizer(_linguistic(folder, tuple(ignore)), _semantic(folder))


def load_one(folder: str | Path, book: str) -> Book:
    """One book, of a released folder or of a folder that a training of ours has written."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder: give a tokenizer's")
    if (folder / "model.safetensors").is_file():
        return load_book(folder)
    _refuse_foreign(folder)
    return _linguistic(folder, ()) if book == "linguistic" else _semantic(folder)


def _linguistic(folder: Path, ignore: tuple[str, ...]) -> LinguisticTokenizer:
    statistics = sorted(folder.rglob("am.mvn"))
    if len(statistics) != 1:
        raise UsageError(
            f"{folder} holds {len(statistics)} files am.mvn: exactly one, in the Paraformer's "
            "folder beside its model.pt, is needed"
        )
    state = _own(read_state(statistics[0].with_name("model.pt")), ignore)
    centres = _centres(folder / CENTRES)
    sizes = _sanm_sizes(state, PARAFORMER_HEADS)
    if centres.shape[1] != sizes["width"]:
        raise UsageError(
            f"{folder / CENTRES} holds centres of width {centres.shape[1]}, "
            f"the encoder gives {sizes['width']}: they do not belong together"
        )
    if sizes["in_width"] != FRAME_WIDTH:
        raise UsageError(
            f"the encoder takes frames of {sizes['in_width']} numbers, the front end gives "
            f"{FRAME_WIDTH}"
        )
    tokenizer = LinguisticTokenizer(codes=len(centres), encoder=sizes)
    tokenizer.encoder = linguistic_encoder_from_state(state, heads=PARAFORMER_HEADS)
    tokenizer.shift, tokenizer.scale = _statistics(statistics[0])
    tokenizer.codebook.hold(centres)
    return tokenizer.eval()


def _semantic(folder: Path) -> SemanticTokenizer:
    found = [folder / name for name in SEMANTIC_FILES if (folder / name).is_file()]
    if not found:
        raise UsageError(f"{folder} lacks a semantic tokenizer: {SEMANTIC_FILES[0]} or its like")
    if found[0].suffix != ".onnx":
        _refuse_50_hz(found[0])
    readers = {".onnx": read_semantic_onnx, ".safetensors": load_tensors, ".pt": read_state}
    state = readers[found[0].suffix](found[0])
    heads = max(1, shape_of(state, "encoder.conv1.weight", _SEMANTIC)[0] // SEMANTIC_HEAD_WIDTH)
    tokenizer = SemanticTokenizer(network=_semantic_sizes(state, heads))
    tokenizer.network = semantic_encoder_from_state(state, heads=heads)
    return tokenizer.eval()


def _refuse_50_hz(path: Path) -> None:
    """Let bare tensors of CosyVoice's 50 Hz tokenizer not pass for the 25 Hz one.

    The two differ in the step of their first layer, which an .onnx tells and no tensor does. A
    folder tells by Step-Audio's own centres of the other book, by the rate in its cosyvoice.yaml
    (that of the semantic codes, or of both books interleaved), or by its or the file's name.
    """
    folder, yaml = path.parent, path.with_name("cosyvoice.yaml")
    names = f"{folder.resolve().name}/{path.name}".lower()
    rate_hz = VocoderNumbers.read(yaml).token_rate_hz if yaml.is_file() else None
    known = [float(SEMANTIC_RATE_HZ), float(TOKEN_RATE_HZ)]
    fits = rate_hz is not None and any(abs(rate_hz - r) < _RATE_TOLERANCE_HZ for r in known)
    if "50hz" in names or (rate_hz is not None and not fits):
        said = "its name" if rate_hz is None or fits else f"the {rate_hz:g} Hz of {yaml}"
        raise UsageError(
            f"{path} is, by {said}, CosyVoice's 50 Hz tokenizer or another one: the semantic book "
            f"of this family has {float(SEMANTIC_RATE_HZ):g} Hz"
        )
    if not fits and "25hz" not in names and not (folder / CENTRES).is_file():
        raise UsageError(
            f"{path} may be CosyVoice's 50 Hz tokenizer, which has the same tensors: give the "
            ".onnx, which tells, or name the file speech_tokenizer_v1_25hz if that is what it is"
        )


def _refuse_foreign(folder: Path) -> None:
    """Name a folder of Step-Audio 2 or R1, which hears by other means."""
    config = folder / "config.json"
    said = str(read_json(config)) if config.is_file() else ""
    if _FOREIGN_MODELS.search(said) or any(folder.glob("**/speech_tokenizer_v2*")):
        raise UsageError(
            f"{folder} is of Step-Audio 2 or R1: a continuous encoder and 6,561 CosyVoice 2 codes, "
            "not the two books of this family"
        )


def _sanm_sizes(state: State, heads: int) -> dict[str, int]:
    first = "encoder.encoders0.0."
    width, inner = shape_of(state, first + "feed_forward.w_2.weight", _LINGUISTIC)[:2]
    return {
        "in_width": shape_of(state, first + "self_attn.linear_q_k_v.weight", _LINGUISTIC)[1],
        "width": width,
        "blocks": 1 + count(state, "encoder.encoders"),
        "heads": heads,
        "inner": inner,
        "kernel": shape_of(state, first + "self_attn.fsmn_block.weight", _LINGUISTIC)[2],
    }


def _semantic_sizes(state: State, heads: int) -> dict[str, int]:
    if any("project_down" in name or "fsmn_block" in name for name in state):
        raise UsageError(
            "this is CosyVoice 2's tokenizer (6,561 codes by rounding, as in Step-Audio 2), "
            "not the 25 Hz one of 4,096 codes"
        )
    width, bins, _ = shape_of(state, "encoder.conv1.weight", _SEMANTIC)
    return {
        "bins": bins,
        "width": width,
        "blocks": count(state, "encoder.blocks"),
        "heads": heads,
        "inner": shape_of(state, "encoder.blocks.0.mlp.0.weight", _SEMANTIC)[0],
        "positions": shape_of(state, "encoder.positional_embedding", _SEMANTIC)[0],
        "codes": shape_of(state, _BOOK, _SEMANTIC)[0],
    }


def _own(state: State, ignored: tuple[str, ...]) -> dict[str, Tensor]:
    """The tensors that no ignored prefix claims."""
    return {k: v for k, v in state.items() if not (ignored and k.startswith(ignored))}


def _centres(path: Path) -> Tensor:
    """Cluster centres (K, W)."""
    try:
        found = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist") from None
    except (OSError, ValueError, EOFError) as error:
        raise UsageError(f"{path} is no array of numbers: {error}") from None
    if found.ndim != 2 or found.dtype.kind != "f" or not np.isfinite(found).all():
        raise UsageError(
            f"{path} holds {found.dtype} of shape {found.shape}: centres (codes, width) are needed"
        )
    return torch.from_numpy(found.astype(np.float32))


def _statistics(path: Path) -> tuple[Tensor, Tensor]:
    """Shift and scale (I,) of a Kaldi file of mean and variance."""
    words = path.read_text("utf-8", errors="replace").split()
    found = []
    for part in ("<AddShift>", "<Rescale>"):
        try:
            begin = words.index("[", words.index(part)) + 1
            numbers = [float(word) for word in words[begin : words.index("]", begin)]]
        except ValueError:
            raise UsageError(f"{path} is damaged: {part} is followed by no [ numbers ]") from None
        if len(numbers) != FRAME_WIDTH or not np.isfinite(numbers).all():
            raise UsageError(
                f"{path}: {part} has {len(numbers)} numbers, {FRAME_WIDTH} finite ones are needed"
            )
        found.append(torch.tensor(numbers))
    return found[0], found[1]
