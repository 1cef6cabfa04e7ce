"""A backbone folder: safetensors and config.json, tokenizer.json, aqaa.json.

aqaa.json says how the ids are laid out and which speech tokenizers its audio ids came from.
Letters: B sequences, T ids, V table rows, W width, S rows of a slot.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from aqaa.backbone.shards import SHARD_BYTES, write_tensors
from aqaa.errors import UsageError
from aqaa.storage import Gather, atomic_folder, in_place, narrowed, read_json, write_json
from aqaa.stream import Slot, StreamLayout
from aqaa.text import TextTokenizer
from aqaa.vocabulary import Vocabulary

RECORD = "aqaa.json"
ADAPTER = "adapter"


@dataclass(frozen=True)
class Ids:
    """Everything that gives an id its meaning.

    ``tokenizer_hash`` names the speech tokenizers whose codes the audio ids are; ``model_type`` is
    what config.json said when the weights beside it were written, '' where that is not known.
    """

    text: TextTokenizer
    vocabulary: Vocabulary
    layout: StreamLayout
    tokenizer_hash: str
    model_type: str = ""

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json and aqaa.json."""
        self.text.save(folder)
        record = {
            "vocabulary": asdict(self.vocabulary),
            "layout": asdict(self.layout),
            "tokenizer_hash": self.tokenizer_hash,
        }
        if self.model_type:
            record["model_type"] = self.model_type
        write_json(Path(folder) / RECORD, record)

    @classmethod
    def load(cls, folder: str | Path) -> "Ids":
        """Read what :meth:`save` wrote."""
        path = Path(folder) / RECORD
        record = read_json(path)
        try:
            return cls(
                TextTokenizer.load(folder),
                Vocabulary(**record["vocabulary"]),
                StreamLayout(**record["layout"]),
                record["tokenizer_hash"],
                record.get("model_type", ""),
            )
        except (KeyError, TypeError) as error:
            raise UsageError(f"{path} does not describe ids of this version: {error}") from None


@dataclass(frozen=True)
class Backbone:
    """A loaded decoder (``model``, a transformers causal LM) and the meaning of its ids.

    ``adapter`` is the :class:`aqaa.backbone.lora.Adapter` in its layers, if there is one.
    """

    model: Any
    ids: Ids
    adapter: Any = None

    @property
    def table(self) -> nn.Parameter:
        """Output rows (V, W)."""
        table: nn.Parameter = self.model.get_output_embeddings().weight
        return table

    def hidden(self, input_ids: Tensor, **more: Any) -> Any:
        """Run the decoder without its head; the result has ``last_hidden_state`` (B, T, W).

        ``position_ids`` (B, T) that begin again at 0 keep the documents of a packed row apart;
        transformers' own models do so only where no cache is asked for, which is the default here.
        """
        return self.model.base_model(input_ids=input_ids, **{"use_cache": False, **more})

    def slot_rows(self, slot: Slot) -> Tensor:
        """Ids a slot is decided over, as a tensor (S,)."""
        rows = self.ids.layout.slot_ids(slot, self.ids.vocabulary)
        return torch.tensor(rows, dtype=torch.long)

    def save(
        self,
        folder: str | Path,
        *,
        dtype: torch.dtype | None = None,
        gather: Gather = in_place,
    ) -> None:
        """Write the folder as a whole (Hugging Face layout), optionally in another precision.

        Every rank calls this; the one that ``gather`` says keeps the parameters writes. An adapter
        is written beside it, as ``adapter``, and added to the weights.
        """
        # Transformers renames the tensors of a few families as it saves, which takes all at once.
        renamed = getattr(self.model, "_weight_conversions", None)
        if any(map(is_sharded, self.model.parameters())) and not renamed:
            self._save_one_by_one(Path(folder), dtype, gather)
            return
        state = whole_state(self.model, gather)
        if state is None:
            return
        if self.adapter is not None:
            self.adapter.save(Path(folder).parent / ADAPTER, state)
            state = dict(self.adapter.merged(state.items(), state))
        with atomic_folder(folder) as temporary:
            kept: dict[int, Tensor] = {}  # tied tensors stay one, or the table is written twice
            stored = {
                name: kept.setdefault(id(tensor), narrowed(name, tensor, dtype))
                for name, tensor in state.items()
            }
            self.model.save_pretrained(temporary, state_dict=stored)
            replace(self.ids, model_type=self.model.config.model_type).save(temporary)

    def _save_one_by_one(self, folder: Path, dtype: torch.dtype | None, gather: Gather) -> None:
        """The same of shards: beside its share the writing rank holds one file's worth."""
        state = self.model.state_dict(keep_vars=True)
        adapter = dict(gathered({n: t for n, t in state.items() if ".lora_" in n}, gather))
        rest = gathered({n: t for n, t in state.items() if ".lora_" not in n}, gather)
        try:
            first = next(rest, None)
            if first is None:  # another rank writes
                return
            tensors: Iterator[tuple[str, Tensor]] = chain([first], rest)
            if self.adapter is not None:
                self.adapter.save(folder.parent / ADAPTER, adapter)
                tensors = self.adapter.merged(tensors, adapter)
            with atomic_folder(folder) as temporary:
                stored = ((name, narrowed(name, tensor, dtype)) for name, tensor in tensors)
                write_tensors(temporary, stored, shard_bytes=SHARD_BYTES)
                self._write_config(temporary)
                replace(self.ids, model_type=self.model.config.model_type).save(temporary)
        finally:
            for _ in rest:  # whatever went wrong here, the others wait in every gather
                pass

    def _write_config(self, folder: Path) -> None:
        """What ``save_pretrained`` writes beside the weights."""
        config = self.model.config
        config.dtype = str(self.model.dtype).removeprefix("torch.")
        config.architectures = [type(self.model).__name__]
        config.save_pretrained(folder)
        if self.model.can_generate():
            self.model.generation_config.save_pretrained(folder)


def gathered(state: Mapping[str, Tensor], gather: Gather) -> Iterator[tuple[str, Tensor]]:
    """Tensors of a state dict of shards, whole and tied ones once, on the rank that keeps them.

    On the others nothing comes; all ranks must come to the end of it.
    """
    seen: set[int] = set()
    keeps = False
    for name, tensor in state.items():
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        whole = tensor.detach()
        if is_sharded(tensor):
            with gather([tensor]) as keeps:
                whole = tensor.detach().to("cpu", copy=True) if keeps else whole
        if keeps:
            yield name, whole


def whole_state(model: nn.Module, gather: Gather) -> dict[str, Tensor] | None:
    """The state dict with every parameter whole, on the rank that keeps it; None on the others.

    Parameters are gathered one by one, so that only the keeper ever holds more than one.
    """
    sharded = any(is_sharded(p) for p in model.parameters())
    kept: dict[int, Tensor] = {}
    for parameter in model.parameters():
        with gather([parameter]) as mine:
            if mine:
                kept[id(parameter)] = parameter.detach().to("cpu", copy=sharded)
    if not kept:
        return None
    return {
        name: kept[id(tensor)] if id(tensor) in kept else tensor.detach().cpu()
        for name, tensor in model.state_dict(keep_vars=True).items()
    }


def is_sharded(parameter: Tensor) -> bool:
    """Whether ZeRO-3 holds this parameter in parts; outside its module's forward it is empty."""
    return hasattr(parameter, "ds_shape")


def shape_of(parameter: Tensor) -> torch.Size:
    """The shape of the whole parameter, also where it is sharded."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


def stay_local() -> None:
    """Keep transformers from the network, and deepspeed, which it asks, from guessing aloud."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


@contextmanager
def _into_shards(deepspeed: dict[str, Any] | None) -> Iterator[None]:
    """Let transformers load into ZeRO-3 shards, which it does while this object lives."""
    if deepspeed is None:
        yield
        return
    from transformers.integrations import HfDeepSpeedConfig

    alive = HfDeepSpeedConfig(deepspeed)
    yield
    del alive


def load_backbone(
    folder: str | Path,
    *,
    layout: StreamLayout | None = None,
    deepspeed: dict[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Backbone:
    """Load a backbone folder.

    Args:
        folder: as :meth:`Backbone.save` or :func:`aqaa.backbone.initial.write_initial` leave it.
        layout: read and write another layout than the one it was trained with.
        deepspeed: settings of a ZeRO-3 engine to come: every rank of its group loads its shards.
        dtype: of the loaded weights, whatever the stored ones are; under ``deepspeed`` its own
            precision decides.

    Raises:
        UsageError: the folder is missing, damaged or incomplete, or its parts do not fit.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    from aqaa.audio.torchaudio_shim import ensure

    ensure()
    import aqaa.backbone.step1  # noqa: F401  registers Step-1 with transformers

    folder = Path(folder)
    if not (folder / RECORD).is_file():
        raise UsageError(f"{folder} is not a backbone folder: it holds no {RECORD}")
    stay_local()
    logging.disable_progress_bar()
    ids = Ids.load(folder)
    _check_kind(folder, ids)
    try:
        with _into_shards(deepspeed):
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,  # None would ask, then run what the folder brings
                output_loading_info=True,
            )
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"{folder} cannot be loaded: {reason}") from error
    model, report = loaded
    # transformers only warns of these, and leaves the tensors as the memory was.
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if names := sorted(map(str, report[problem])):
            kind = problem.removesuffix("_keys")
            raise UsageError(f"{folder} does not fit its config.json: {kind} {names[0]}")
    rows, wanted = shape_of(model.get_input_embeddings().weight)[0], ids.vocabulary.rows
    if rows != wanted:
        raise UsageError(f"{folder}: the table has {rows} rows, {RECORD} says {wanted}")
    return Backbone(model.eval(), replace(ids, layout=layout) if layout else ids)


def _check_kind(folder: Path, ids: Ids) -> None:
    """Refuse a config.json of another class than the one that wrote the weights.

    Step-1's tensor names are Llama's: a Llama class would load them and compute garbage.
    """
    try:
        config = read_json(folder / "config.json")
    except UsageError as error:
        raise UsageError(f"{folder} cannot be loaded: {error}") from None
    settings = config if isinstance(config, dict) else {}
    found, classes = settings.get("model_type"), settings.get("architectures") or []
    wrote = ids.model_type or ("step1" if any(str(c).startswith("Step1") for c in classes) else "")
    if wrote and wrote != found:
        raise UsageError(
            f"{folder} cannot be loaded: its weights were written as {wrote}, but its config.json "
            f"says {found}; another class may take the tensors and compute garbage"
        )
