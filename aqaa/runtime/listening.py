"""`aqaa listen`: what a token store holds, or what a training of the backbone asks to be learnt."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aqaa.backbone.loading import Ids
from aqaa.data.listen import listen as speak_store
from aqaa.data.targets import Target, targets
from aqaa.errors import UsageError
from aqaa.evaluation.targets_page import PAGE, write_targets
from aqaa.grammar import Slot
from aqaa.runtime.replay import check_parents, origins_of, settings_of, source_of
from aqaa.stages.language import SLOT_WEIGHTS, weights_by_slot
from aqaa.storage import atomic_folder, check_replaceable
from aqaa.vocoder.voice import load_voice, tune

TRAININGS = ("pretrain", "sft", "dpo")


def listen(
    *,
    source: str,
    flow: str | None,
    waveform: str | None,
    out: str,
    keys: Sequence[str] | str | None = None,
    count: int = 8,
    batch: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
    solver: str | None = None,
    overrides: Sequence[str] = (),
) -> Path:
    """Make what is to be learnt heard and seen before a machine spends hours on it.

    Args:
        source: a token store, whose clips become WAVs; or a run folder, or a stage that has not
            run, whose documents become a page with the loss mask over each, a text and WAVs.
        flow: folder of the vocoder's first network (None, of a training: nothing is heard).
        waveform: folder of its second.
        out: folder that is written as a whole.
        keys: clips of the store (None: the first ``count`` with both books).
        count: clips, or documents.
        batch: of a training: begin with this one.
        steps: calls of the flow (None, here and below: as its kind is made to be).
        guidance: of the flow.
        solver: of the flow.
        overrides: settings of the stage.

    Returns:
        The page of a training, the folder of clips.
    """
    settings = _settings(source, overrides)
    solved: dict[str, Any] = {"steps": steps, "guidance": guidance, "solver": solver}
    if settings is None:
        if overrides:
            raise UsageError(f"{overrides[0]} is no setting of listening to a token store")
        if not flow or not waveform:
            raise UsageError("a token store is heard through a vocoder: give flow= and waveform=")
        own = {"flow": flow, "waveform": waveform, **solved}
        return speak_store(source=source, out=out, keys=keys, count=count, **own)
    if count < 1 or batch < 0:
        raise UsageError(f"count={count} documents from batch={batch}: begin at 0, show 1 or more")
    if keys is not None:
        raise UsageError("keys names clips of a token store; documents are shown batch by batch")
    check_replaceable(out)
    data = source_of(Path(source), settings)
    voice = load_voice(flow, waveform) if flow and waveform else None
    if voice is not None:
        tune(voice, **solved)
    ids = Ids.load(settings["stage"]["model"])
    shown = _documents(data, settings, ids, batch, count)
    with atomic_folder(out) as folder:
        print(write_targets(folder, f"{source} from batch {batch}", shown, ids, voice), end="")
    return Path(out) / PAGE


def _settings(source: str, overrides: Sequence[str]) -> dict[str, Any] | None:
    """The settings of a training, run or not; None for anything else."""
    if source in TRAININGS:
        from omegaconf import OmegaConf

        from aqaa.runtime.compose import bind_targets, compose

        cfg = compose(source, overrides)
        bind_targets(cfg)
        found: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
        return found
    if not (Path(source) / "config.yaml").is_file():
        return None
    if overrides:
        raise UsageError(f"{overrides[0]}: the run {source} has its settings already")
    check_parents(Path(source))
    return settings_of(Path(source))


def _documents(
    data: Any, settings: Mapping[str, Any], ids: Ids, batch: int, count: int
) -> list[Target]:
    """The first ``count`` documents from a batch on, as the data of the stage gives them."""
    weights, repeat = loss_weights(settings), settings["run"].get("repeat_batches")
    found: list[Target] = []
    while len(found) < count:
        number = batch % repeat if repeat else batch
        names = [
            [f"batch {number}, {document['task']} of {document['id']}" for document in row]
            for row in origins_of(data, number)
        ]
        found += targets(data.batch(number), names, weights, ids.vocabulary.pad)
        batch += 1
    return found[:count]


def loss_weights(settings: Mapping[str, Any]) -> dict[Slot, float]:
    """What a position of each slot weighs in the loss of a stage; pairs weigh all alike."""
    stage = settings["stage"]
    normalise = stage.get("normalise", "slot")
    if "slot_weights" in stage:
        return weights_by_slot(stage["slot_weights"], normalise)
    return dict.fromkeys(weights_by_slot(SLOT_WEIGHTS, normalise), 1.0)
