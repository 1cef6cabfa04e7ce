"""Any causal language model of transformers as backbone: its table grown by audio ids and markers.

Tensor by tensor from the base's files into ours, so that no model is ever in memory whole.
Letters: V rows of the base's table, W width, D code width.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from aqaa.backbone.loading import RECORD, Ids, stay_local
from aqaa.backbone.shards import SHARD_BYTES, read_tensors, tensor_files, write_tensors
from aqaa.backbone.sizes import empty_model
from aqaa.backbone.step1 import AutoConfig
from aqaa.backbone.table import grown
from aqaa.errors import UsageError
from aqaa.storage import atomic_folder, check_replaceable, read_json
from aqaa.stream import StreamLayout
from aqaa.text import TextTokenizer
from aqaa.vocabulary import Vocabulary

# How base models spell what our frame needs; the role in the base's own settings comes second.
_NAMES = {
    "bos": ("<s>", "<|begin_of_text|>", "<bos>"),
    "eot": ("<|EOT|>", "<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>"),
    "bot": ("<|BOT|>", "<|im_start|>", "<|start_header_id|>", "<start_of_turn>"),
    "pad": ("<pad>", "<|pad|>", "<|finetune_right_pad_id|>"),
}
_ROLES = {"bos": "bos", "eot": "eos", "pad": "pad"}
_SCALED = ("final_logit_softcapping", "logit_scale", "logits_scaling")


@dataclass(frozen=True)
class Base:
    """A base folder: its config, its text ids, the names of its tables, one where they are tied."""

    folder: Path
    config: Any
    text: TextTokenizer
    tables: tuple[str, ...]

    @property
    def rows(self) -> int:
        """V."""
        rows: int = self.config.get_text_config().vocab_size
        return rows


def grow(
    base: str | Path,
    out: str | Path,
    *,
    layout: StreamLayout,
    tokenizer_hash: str,
    codebooks: dict[str, Tensor] | None = None,
    row_multiple: int = 64,
    seed: int = 0,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a base model with audio ids as a backbone folder; its old rows keep their bytes.

    Args:
        base: folder of a causal language model: config.json, safetensors, tokenizer.json.
        out: folder, written as a whole.
        layout: of the turns.
        tokenizer_hash: of the speech tokenizers.
        codebooks: code vectors by book, ``linguistic`` (1024, D) and ``semantic`` (4096, D), that
            audio rows start from; None draws them like the old rows.
        row_multiple: the table's rows are rounded up to a multiple of this.
        seed: decides the new rows.
        shard_bytes: size of a weight file.

    Raises:
        UsageError: the base cannot be read or cannot be a backbone.
    """
    check_replaceable(out)
    found = read_base(base)
    specials = _specials(found)
    vocabulary = Vocabulary.behind(found.rows, specials, row_multiple=row_multiple)
    config = found.config
    config.get_text_config().vocab_size = vocabulary.rows
    config.tie_word_embeddings = len(found.tables) == 1
    for name, role in _ROLES.items():
        setattr(config, f"{role}_token_id", getattr(vocabulary, name))

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in read_tensors(found.folder):
            if name in found.tables:
                tensor = grown(
                    tensor, name=name, vocabulary=vocabulary, codebooks=codebooks, seed=seed
                )
            yield name, tensor

    with atomic_folder(out) as temporary:
        write_tensors(temporary, tensors(), shard_bytes=shard_bytes)
        config.save_pretrained(temporary)
        Ids(found.text, vocabulary, layout, tokenizer_hash, config.model_type).save(temporary)


def read_base(folder: str | Path) -> Base:
    """Look at a base folder and say in a sentence why it cannot be a backbone, if so."""
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise UsageError(
            f"base={folder} holds no config.json: give the folder of a causal language model"
        )
    if (folder / RECORD).is_file():
        raise UsageError(f"base={folder} has audio ids already: train it as parents.model={folder}")
    stay_local()
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model = empty_model(config)
    except (ImportError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"base={folder} is no causal language model we know: {reason}") from None
    config.architectures = [type(model).__name__]
    tables = _tables(folder, config, model)
    text = TextTokenizer.load(folder)
    base = Base(folder, config, text, tables)
    if text.size > base.rows:
        raise UsageError(f"base={folder}: {text.size} text ids do not fit {base.rows} rows")
    return base


def _tables(folder: Path, config: Any, model: Any) -> tuple[str, ...]:
    """Names of the embedding and, where it has rows of its own, of the head, in the files."""
    scaled = [k for k in _SCALED if getattr(config.get_text_config(), k, None) not in (None, 1)]
    head = model.get_output_embeddings()
    if scaled or getattr(head, "bias", None) is not None:
        what = scaled[0] if scaled else "a bias of its head"
        raise UsageError(f"base={folder} has {what}, which our loss head does not compute")
    stored = {name for names in tensor_files(folder).values() for name in names}
    places = {id(module): name for name, module in model.named_modules()}
    embedding = f"{places[id(model.get_input_embeddings())]}.weight"
    prefix = f"{model.base_model_prefix}."
    if embedding not in stored:  # files of the decoder alone have no prefix
        embedding = embedding.removeprefix(prefix)
    if embedding not in stored:
        raise UsageError(f"base={folder} has no tensor {embedding} in its safetensors")
    name = f"{places[id(head)]}.weight"
    if name in stored:
        return embedding, name
    if read_json(folder / "config.json").get("tie_word_embeddings") is False:
        raise UsageError(f"base={folder} has no tensor {name}, but its config.json ties no head")
    return (embedding,)


def _specials(base: Base) -> dict[str, int | None]:
    """Ids of the frame's specials in the base, None where none fits.

    A turn's end must be told from everything else and its begin too; pad may be bos.
    """
    path = base.folder / "tokenizer_config.json"
    settings = read_json(path) if path.is_file() else {}
    found: dict[str, int | None] = {}
    for name, spellings in _NAMES.items():
        role = _ROLES.get(name, "")
        told = settings.get(f"{role}_token")
        told = told.get("content") if isinstance(told, dict) else told
        number = getattr(base.config, f"{role}_token_id", None)
        number = number[0] if isinstance(number, list) else number
        taken = {found[k] for k in found if not (name == "pad" and k == "bos")}
        named = base.text.special(*spellings)
        candidates = [named, base.text.special(told), base.text.special(number)]
        if name == "bos":  # many bases spell nothing else than one end of text
            candidates = [*candidates[1:], named]
        found[name] = next((c for c in candidates if c is not None and c not in taken), None)
    return found
