"""Any step's exact batches, made again from a run folder's settings, and the dumps beside them.

Letters: none; tensors pass through in their batches' shapes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from aqaa.backbone.loading import Ids
from aqaa.data.collate import TokenBatch
from aqaa.data.dialogues import DialogueBatches
from aqaa.data.module import shares
from aqaa.data.preferences import PreferenceBatches
from aqaa.errors import UsageError
from aqaa.lineage import parent, read_lineage
from aqaa.runtime.dumps import DUMPS, read_dump
from aqaa.runtime.starts import Start, read_starts
from aqaa.stages.language import SLOT_WEIGHTS, weight_of_slots, weights_by_slot
from aqaa.states import STATES, saved_states, step_folder, step_of
from aqaa.storage import atomic_folder, check_replaceable, save_tensors, write_json

# A run folder's settings may come from anywhere: they choose among these and build nothing else.
_SOURCES: dict[str, Callable[..., Any]] = {
    "aqaa.data.dialogues.DialogueBatches": DialogueBatches,
    "aqaa.data.preferences.PreferenceBatches": PreferenceBatches,
}
_NEEDED = {"data", "run", "stage", "trainer"}
_SHOWN = 4


@dataclass(frozen=True)
class Turn:
    """One batch of a step: its number in the data's order, and which rank takes it when."""

    number: int
    rank: int
    micro: int


def replay(*, source: str, step: int, out: str | None = None, ranks: int | None = None) -> None:
    """Make the batches of an optimizer step again, print what they hold, and open its dumps.

    Args:
        source: a run folder of pretrain, sft or dpo.
        step: the optimizer step, counted from zero.
        out: folder for the tensors and the list of documents (None: print only).
        ranks: how many ranks took the step (None: as many as the run folder says; a run may have
            been taken up on another number).

    Raises:
        UsageError: no run folder, a stage without such batches, parents that have changed, a step
            that the run never takes.
    """
    if out is not None:
        check_replaceable(out)
    if step < 0:
        raise UsageError(f"step={step} must be 0 or more")
    folder = Path(source)
    settings = settings_of(folder)
    check_parents(folder)
    _check_step(folder, settings, step)
    data = source_of(folder, settings)
    taken = turns(settings, step, ranks, read_starts(folder))
    batches = _shared(settings, [data.batch(turn.number) for turn in taken])
    found = []
    for turn, batch in zip(taken, batches, strict=True):
        origins = origins_of(data, turn.number)
        _show(turn, batch, origins)
        found.append((turn, batch, origins))
    _open_dumps(folder, step, {turn.number: batch for turn, batch, _ in found})
    if out is not None:
        with atomic_folder(out) as temporary:
            for turn, batch, origins in found:
                name = f"batch_{turn.number:08d}"
                save_tensors(temporary / f"{name}.safetensors", _tensors(batch))
                about = {"number": turn.number, "rank": turn.rank, "micro": turn.micro}
                more = {"share": getattr(batch, "share", 1.0), "rows": origins}
                write_json(temporary / f"{name}.json", {**about, "step": step, **more})
        print(f"written to {out}")


def turns(
    settings: dict[str, Any], step: int, ranks: int | None = None, starts: Sequence[Start] = ()
) -> list[Turn]:
    """The batches of a step in the data's order.

    Args:
        settings: of the run.
        step: the optimizer step.
        ranks: how many took it (None: as ``starts`` say, else as the settings do).
        starts: of the run, in the order of their steps.
    """
    trainer, repeat = settings["trainer"], settings["run"].get("repeat_batches")
    accumulate = int(trainer["accumulate_grad_batches"])
    told = [start for start in starts if start.step <= step]
    if ranks is None and told:
        ranks, accumulate = told[-1].ranks, told[-1].accumulate
    found = []
    for micro in range(accumulate):
        for rank in range(size := ranks or _ranks(trainer)):
            number = (step * accumulate + micro) * size + rank
            found.append(Turn(number % repeat if repeat else number, rank, micro))
    return found


def _ranks(trainer: dict[str, Any]) -> int:
    try:
        return int(trainer["devices"]) * int(trainer["num_nodes"])
    except (TypeError, ValueError):
        raise UsageError(
            f"devices={trainer['devices']} does not tell how many ranks took the step: say ranks=N"
        ) from None


def _check_step(run: Path, settings: dict[str, Any], step: int) -> None:
    """Refuse a step that the run has not taken and never will; say where that is not known."""
    record = read_lineage(run)
    steps = record.steps if record else settings["run"].get("steps")
    if not isinstance(steps, int):
        raise UsageError(f"{run / 'config.yaml'} does not hold the settings of a training")
    if step >= steps:
        took = "took" if record else "takes"
        raise UsageError(f"step={step} is none of {run}, which {took} steps 0 to {steps - 1}")
    kept = [step_of(state) for state in saved_states(run / STATES)[:1]]
    if record is None and step >= max(kept, default=0):
        print(f"{run} was cut: it is known to have taken {max(kept, default=0)} steps")


def settings_of(run: Path) -> dict[str, Any]:
    """The resolved settings of a run, as plain values: they are read, never instantiated."""
    path = run / "config.yaml"
    if not path.is_file():
        raise UsageError(f"{run} is not a run folder: it holds no config.yaml")
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is damaged: {' '.join(str(error).split())[:120]}") from None
    if not isinstance(settings, dict) or not _NEEDED <= set(settings):
        raise UsageError(f"{path} does not hold the settings of a training")
    return settings


def check_parents(run: Path) -> None:
    """Refuse parents that are no longer what the finished run was made from."""
    record = read_lineage(run)
    for name, was in record.parents.items() if record else ():
        if parent(was.path).hash != was.hash:
            raise UsageError(
                f"{was.path}, the {name} of {run}, has changed since: its batches are gone"
            )


def source_of(run: Path, settings: dict[str, Any]) -> Any:
    """The run's source of batches, with the ids of the backbone it began from."""
    told = dict(settings["data"])
    target = told.pop("_target_", None)
    if target not in _SOURCES:
        raise UsageError(f"{run} trains from {target}: replay knows pretrain, sft and dpo")
    try:
        source = _SOURCES[target](**told)
        model = settings["stage"]["model"]
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"{run / 'config.yaml'} does not hold the settings of this version: {error}"
        ) from None
    source.bind(Ids.load(model))
    return source


def _shared(settings: dict[str, Any], batches: list[Any]) -> list[Any]:
    """The batches of a whole step, each with its share; all pairs count alike and have none."""
    if not isinstance(batches[0], TokenBatch):
        return batches
    stage = settings["stage"]
    told = stage.get("slot_weights", SLOT_WEIGHTS), stage.get("normalise", "slot")
    weights = [weight_of_slots(batch.slots, weights_by_slot(*told)) for batch in batches]
    found = shares(weights, sum(weights), len(batches))
    return [batch._replace(share=share) for batch, share in zip(batches, found, strict=True)]


def origins_of(source: Any, number: int) -> list[list[dict[str, Any]]]:
    """For every row of a batch its documents: task, id of the row it comes from, sound files."""
    if isinstance(source, DialogueBatches):
        rows = source.drawn(number)
        return [[{"task": task, **source.origin(row)} for task, row in row_] for row_ in rows]
    pairs = source.batch(number).pairs
    return [
        [{"task": side, "id": source.rows[pair]["id"], "sound": []}]
        for side in ("chosen", "rejected")
        for pair in pairs
    ]


def _show(turn: Turn, batch: Any, origins: list[list[dict[str, Any]]]) -> None:
    """Print what a batch holds."""
    rows, width = batch.input_ids.shape
    learnt = int((batch.slots > 0).sum())
    documents = [document for row in origins for document in row]
    counts = f", counts {batch.share:.3f}" if hasattr(batch, "share") else ""
    print(
        f"batch {turn.number} (rank {turn.rank}, {turn.micro} of the step{counts}): "
        f"{rows} x {width} ids, {learnt} to learn, {len(documents)} documents"
    )
    for document in documents[:_SHOWN]:
        sound = "; ".join(document["sound"]) or "no sound"
        print(f"  {document['task']} {document['id']}: {sound}")
    if len(documents) > _SHOWN:
        print(f"  and {len(documents) - _SHOWN} more")


def _tensors(batch: Any) -> dict[str, Tensor]:
    """The tensors of a batch by field."""
    return {k: v for k, v in batch._asdict().items() if isinstance(v, Tensor)}


def _open_dumps(run: Path, step: int, batches: dict[int, Any]) -> None:
    """Say what a dump of this step tells, and whether its batches are the ones made again."""
    folder = step_folder(run / DUMPS, step)
    for path in sorted(folder.glob("rank_*.json")):
        trouble, kept = read_dump(folder, int(path.stem.removeprefix("rank_")))
        print(f"{path}: {trouble.why}; batches {', '.join(map(str, trouble.batches))}")
        for number, batch in zip(trouble.batches, kept, strict=False):
            if number not in batches:
                print(f"  batch {number} is not one of this step: say ranks={trouble.ranks}")
                continue
            again = _tensors(batches[number])
            other = [n for n, t in again.items() if not t.equal(batch[n].cpu())]
            share = getattr(batches[number], "share", 1.0)
            if not math.isclose(batch.get("share", 1.0), share, rel_tol=1e-9):
                other.append("share")
            same = f"differs in {', '.join(other)}" if other else "equals the one made again"
            print(f"  batch {number} {same}")
