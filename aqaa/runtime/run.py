"""Compose, build, fit, seal: how every training verb runs."""

import logging
import os
import shutil
import signal
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from aqaa import lineage
from aqaa.errors import RunAgain, UsageError
from aqaa.runtime import launch
from aqaa.runtime.budget import steps_of_epochs
from aqaa.runtime.targets import bind_targets
from aqaa.states import STATES, saved_states, sweep
from aqaa.storage import MANIFEST, read_json, verify_manifest, write_json, write_text

FINGERPRINT = "fingerprint.json"
# Settings that say where and how often, not what: they may differ between a run and its resume.
_PLACE = (
    *("root", "name", "out", "loader_workers", "save_every_s", "keep_states", "hang_after_s"),
    *("hang_outside_s", "overwrite"),
)
# Of the trainer: how many processes and of what kind, and what each of them counts for itself.
_RANKS = ("accelerator", "devices", "num_nodes", "strategy")
_PER_RANK = ("accumulate_grad_batches", "val_check_interval")
# Lightning lets most of these be 0, or a half, and divides by them later.
_COUNTS = (*_PER_RANK, "log_every_n_steps", "num_nodes")
# Strategies by name: all train whole copies. Lightning's sharded ones divide the gradients of
# several batches twice, build other weights than one process has, and save in files of their own.
_NAMED_STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_true")


def train(verb: str, cfg: DictConfig) -> Path:
    """Run one training stage into its run folder; a finished run with the same settings is kept.

    Args:
        verb: the stage's name.
        cfg: the composed config.

    Returns:
        The run folder.

    Raises:
        UsageError: a config, parent or run folder that does not fit; nothing was trained.
        KeyboardInterrupt: a stop was asked for, :class:`RunAgain` if by SIGUSR1 or SIGTERM; the
            same call goes on from there.
    """
    _check_parents(cfg)
    bind_targets(cfg)
    check_trainer(cfg.trainer)
    if (cfg.get("epochs") or {}).get("count") is not None:
        from hydra.utils import instantiate

        cfg.run.steps = steps_of_epochs(cfg, instantiate(cfg.data, _convert_="all"))
        if launch.is_first():
            print(f"epochs.count={cfg.epochs.count}: {cfg.run.steps} steps", flush=True)
    out = Path(cfg.run.out)
    parents: dict[str, lineage.Parent] = {}  # looked up by rank 0 alone
    if launch.decided(lambda: _begin(cfg, out, parents)):
        return out
    fitted = _fit(cfg, out)
    if launch.is_first():
        record = lineage.Lineage(
            stage=verb,
            run=out.name,
            parents=parents,
            fingerprint=read_json(out / FINGERPRINT),  # cfg has changed: building resolves it
            steps=fitted.steps,
            seconds=fitted.seconds,
            parameters=fitted.parameters,
            versions=lineage.versions(),
        )
        lineage.finish(out, record)
    if fitted.asked:  # in the last step: this run is whole, the rest waits
        from aqaa.runtime.agreement import largest

        largest(0)  # srun kills those that are later than one that ends with 75; the first writes
        raise _stop(fitted.asked)
    return out


def _begin(cfg: DictConfig, out: Path, parents: dict[str, lineage.Parent]) -> bool:
    """Fill ``parents`` and take the run folder; True if the run in it is finished already."""
    parents |= {name: lineage.parent(path) for name, path in cfg.parents.items() if path}
    made_of = lineage.fingerprint(_settings(cfg), parents)
    if _finished(out, made_of):
        print(f"{out} is finished: nothing to do")
        return True
    _claim(out, made_of, overwrite=cfg.run.overwrite)
    (out / STATES).mkdir(exist_ok=True)
    sweep(out / STATES)
    write_json(out / lineage.PARENTS, {name: asdict(found) for name, found in parents.items()})
    write_text(out / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
    return False


def _check_parents(cfg: DictConfig) -> None:
    """Refuse to train from anything but the parents, which are what is checked and recorded.

    Imports nothing heavy: a mistyped path is answered at once.
    """
    for name, path in cfg.parents.items():
        if path is not None and not Path(path).exists():
            raise UsageError(
                f"parents.{name}={path} does not exist: run the stage that makes it first"
            )
    if cfg.parents.get("start_from") and "start_from" not in cfg.stage:
        raise UsageError(
            f"parents.start_from={cfg.parents.start_from}: this preset's stage begins from chance"
        )
    for key in ("stage.model", "stage.start_from", "data.corpus", "data.tokens", "data.pairs"):
        section, name = key.split(".")
        if name in cfg[section] and cfg[section][name] != cfg.parents.get(name):
            raise UsageError(
                f"{key}={cfg[section][name]} is not parents.{name}={cfg.parents.get(name)}: "
                f"set parents.{name} and leave {key} alone"
            )


def check_trainer(trainer: Any) -> None:
    """Refuse what Lightning would take and then do wrongly, or end in the middle of."""
    named = trainer.strategy
    if isinstance(named, str) and named not in _NAMED_STRATEGIES:
        raise UsageError(
            f"trainer.strategy={named} is none of {', '.join(_NAMED_STRATEGIES)}: for shards say "
            f"trainer=zero3_nodes or trainer=gloo, with trainer.strategy.stage=1, 2 or 3"
        )
    for name in _COUNTS:
        value = trainer.get(name)
        if isinstance(value, int | float) and (value < 1 or value != int(value)):
            raise UsageError(f"trainer.{name}={value} must be a whole number, 1 or more")


def _finished(out: Path, made_of: str) -> bool:
    """Whether ``out`` is this very run, whole; what is left of a damaged one is made again."""
    done = lineage.read_lineage(out)
    if done is None or done.fingerprint != made_of:
        return False
    try:
        verify_manifest(out / lineage.MODEL)
    except UsageError as error:
        print(f"{error}; making it again", flush=True)
        (out / lineage.RECORD).unlink()
        # Without its manifest the model would pass for somebody else's and not be replaced.
        shutil.rmtree(out / lineage.MODEL, ignore_errors=True)
        return False
    return True


def _settings(cfg: DictConfig) -> dict[str, Any]:
    """What decides the result; parents count by content, so their paths are left as references."""
    settings: dict[str, Any] = OmegaConf.to_container(cfg, resolve=False)  # type: ignore[assignment]
    settings.pop("log", None)
    settings.pop("answers", None)
    settings.pop("parents", None)
    settings["run"] = {k: v for k, v in settings["run"].items() if k not in _PLACE}
    ranks = _ranks(cfg)
    if ranks is not None:  # where it runs may change as long as a step takes the same batches
        trainer = {k: v for k, v in settings["trainer"].items() if k not in _RANKS}
        for name in _PER_RANK:
            if isinstance(cfg.trainer[name], int):
                trainer[name] = cfg.trainer[name] * ranks
        settings["trainer"] = trainer
    return settings


def _ranks(cfg: DictConfig) -> int | None:
    """Processes of a run, None where only the trainer will know."""
    numbers = (cfg.trainer.devices, cfg.trainer.num_nodes)
    if not all(isinstance(number, int) and number > 0 for number in numbers):
        return None
    return int(numbers[0] * numbers[1])


def _claim(out: Path, made_of: str, *, overwrite: bool) -> None:
    """Take the folder for this run, or for its resume; never mix two runs in one."""
    mark = out / FINGERPRINT
    if not mark.is_file() and any((out / name).exists() for name in (MANIFEST, lineage.RECORD)):
        raise UsageError(f"{out} holds something else than a training run: choose another run.name")
    if mark.is_file() and read_json(mark) != made_of:
        # What was refused before its first step left nothing to lose.
        begun = saved_states(out / STATES) or any(
            (out / name).exists() for name in (lineage.METRICS, lineage.MODEL)
        )
        if begun and not overwrite:
            raise UsageError(
                f"{out} holds a run with other settings or parents: choose another run.name, "
                f"or run.overwrite=true to lose it (on other ranks it goes on where "
                f"trainer.accumulate_grad_batches and trainer.val_check_interval, times the ranks, "
                f"stay what they were)"
            )
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    write_json(mark, made_of)


@dataclass(frozen=True)
class _Fitted:
    """What a finished training says; ``asked`` is the signal that came in its last step, or 0."""

    seconds: float
    steps: int
    parameters: int
    asked: int


def _fit(cfg: DictConfig, out: Path) -> _Fitted:
    """Train and export."""
    import lightning.pytorch as pl
    import torch
    from hydra.utils import instantiate
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    from aqaa.backbone.loading import shape_of
    from aqaa.data.module import DataModule
    from aqaa.runtime.callbacks import ShowProgress
    from aqaa.runtime.checkpoint import StateFiles
    from aqaa.runtime.guard import StopOnNonFinite, Watchdog
    from aqaa.runtime.log import MetricsFile
    from aqaa.runtime.saving import SaveState, StopRequested
    from aqaa.runtime.starts import NoteStarts
    from aqaa.runtime.strategy import end_others, gather_of

    quiet_lightning()
    if cfg.run.threads:
        torch.set_num_threads(cfg.run.threads)
    pl.seed_everything(cfg.run.seed, verbose=False)
    source = instantiate(cfg.data, _convert_="all")
    stage = instantiate(cfg.stage, _convert_="all")
    data = DataModule(
        source,
        accumulate=cfg.trainer.accumulate_grad_batches,
        repeat=cfg.run.repeat_batches,
        workers=cfg.run.loader_workers,
    )
    states = out / STATES
    files = StateFiles(keep=cfg.run.keep_states)
    saver = SaveState(files=files, folder=states, every_s=cfg.run.save_every_s)
    more = [instantiate(cfg.log.logger)] if cfg.log.get("logger") else []
    limits_s = {"after_s": cfg.run.hang_after_s, "outside_s": cfg.run.hang_outside_s}
    watchdog = Watchdog(run=out, **limits_s)
    guards = [StopOnNonFinite(run=out), watchdog]
    heard = [instantiate(cfg.answers)] if cfg.get("answers") else []
    callbacks = [saver, ShowProgress(name=cfg.run.name), *guards, NoteStarts(run=out), *heard]
    try:
        trainer = instantiate(cfg.trainer)(
            logger=[MetricsFile(folder=out), *more], callbacks=callbacks, plugins=[files]
        )
    except (ImportError, MisconfigurationException, TypeError, ValueError) as error:
        # No GPU here, an unknown precision, an accelerator that needs another package.
        reason = " ".join(str(error).split())[:200]
        raise UsageError(
            f"this machine or Lightning has no trainer of accelerator={cfg.trainer.accelerator} "
            f"devices={cfg.trainer.devices} precision={cfg.trainer.precision}: {reason}"
        ) from error
    begun = launch.decided(lambda: bool(saved_states(states)), looks=True)
    several = trainer.num_devices * trainer.num_nodes > 1
    try:
        with watchdog.outside("loading", several=several):
            trainer.fit(stage, data, ckpt_path=states if begun else None)
    except StopRequested as stop:
        raise _stop(stop.number) from None
    except MisconfigurationException as error:
        raise UsageError(f"this trainer cannot run this stage: {error}") from None
    except SystemExit:  # Lightning turns Ctrl-C into an exit
        raise KeyboardInterrupt from None
    except Exception:
        end_others(trainer.strategy)  # they wait for this rank in vain
        raise
    with watchdog.outside("exporting", several=several):
        stage.export(out / lineage.MODEL, gather_of(trainer.strategy))
    # What the optimizer trained: a running average is a copy, not a parameter.
    parameters = sum(shape_of(p).numel() for p in stage.parameters() if p.requires_grad)
    return _Fitted(saver.seconds, trainer.global_step, parameters, saver.asked)


def _stop(number: int) -> KeyboardInterrupt:
    """How a run ends that a signal has stopped."""
    return KeyboardInterrupt() if number == signal.SIGINT else RunAgain()


def quiet_lightning() -> None:
    """Keep Lightning's advice and notes from our users, unless AQAA_DEBUG=1.

    Its loggers get their levels when it is imported, so this comes after.
    """
    if os.environ.get("AQAA_DEBUG") != "1":
        for name in ("lightning.pytorch", "lightning.fabric"):
            logging.getLogger(name).setLevel(logging.ERROR)
        # Its report is what debug=profiler is for.
        logging.getLogger("lightning.pytorch.profilers").setLevel(logging.INFO)
