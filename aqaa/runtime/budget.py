"""How long a training is, counted in ids or in passes over its data.

In a config ``${steps_of_budget:}`` is the number of steps that read ``budget.share`` of
``budget.tokens`` ids, and ``${share_of_steps:0.04}`` that part of ``run.steps``: a preset keeps its
proportions at any budget.
"""

import math
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import InterpolationResolutionError

from aqaa.errors import UsageError


def step_tokens(cfg: Any) -> int:
    """Ids an optimizer step reads over all ranks; padding at the ends of packed rows counts."""
    trainer, data = cfg.trainer, cfg.data
    if not data.get("row_tokens"):
        raise UsageError(
            "budget.tokens needs packed rows, or a step has no fixed number of ids: set "
            "data.row_tokens, or run.steps instead of a budget"
        )
    counts = (trainer.devices, trainer.num_nodes, trainer.accumulate_grad_batches)
    if not all(isinstance(n, int) and n > 0 for n in counts):
        raise UsageError(
            f"budget.tokens needs numbers of trainer.devices={counts[0]}, num_nodes={counts[1]} "
            f"and accumulate_grad_batches={counts[2]}, or run.steps instead of a budget"
        )
    return int(counts[0] * counts[1] * counts[2] * data.rows * data.row_tokens)


def steps_of_budget(*, _root_: Any) -> int:
    """Optimizer steps that read a stage's share of the ids."""
    tokens, share = _root_.budget.tokens, _root_.budget.share
    if tokens is None or tokens < 1 or not 0 < share <= 1:
        raise UsageError(
            f"budget.tokens={tokens} and budget.share={share}: one id or more, of which this stage "
            f"has a share above 0, of 1 at most"
        )
    return max(1, round(tokens * share / step_tokens(_root_)))


def steps_of_epochs(cfg: Any, source: Any) -> int:
    """Optimizer steps that read ``epochs.of`` ``epochs.count`` times; ``source`` of the batches.

    It lays out all the data, for the ids of the parent.
    """
    from aqaa.backbone.loading import Ids

    count, trainer = cfg.epochs.count, cfg.trainer
    ranks = (trainer.devices, trainer.num_nodes)
    if count <= 0 or not all(isinstance(n, int) and n > 0 for n in ranks):
        raise UsageError(
            f"epochs.count={count} on trainer.devices={ranks[0]}, num_nodes={ranks[1]} ranks: each "
            f"must be a number above 0"
        )
    source.bind(Ids.load(cfg.parents.model))
    batches = count * source.epoch_batches(cfg.epochs.of)
    return math.ceil(batches / (ranks[0] * ranks[1] * trainer.accumulate_grad_batches))


def share_of_steps(share: float, *, _root_: Any) -> int:
    """A part of the steps, one at least."""
    return max(1, round(float(share) * _root_.run.steps))


def share_of_batches(share: float, *, _root_: Any) -> int:
    """A part of a rank's batches, one at least."""
    return max(1, round(float(share) * _root_.run.steps * _root_.trainer.accumulate_grad_batches))


def check(cfg: Any) -> None:
    """Refuse a budget that cannot be counted, in its own words rather than OmegaConf's."""
    try:
        OmegaConf.select(cfg, "run.steps")
    except InterpolationResolutionError as error:
        inner: BaseException | None = error
        while inner is not None and not isinstance(inner, UsageError):
            inner = inner.__cause__ or inner.__context__
        raise inner or error from None


def register() -> None:
    """Make the three known to OmegaConf."""
    for resolver in (steps_of_budget, share_of_steps, share_of_batches):
        OmegaConf.register_new_resolver(resolver.__name__, resolver, replace=True)
