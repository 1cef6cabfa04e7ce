"""Compose, build, fit, seal: how every training verb runs."""

import shutil
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from aqaa import lineage
from aqaa.errors import UsageError
from aqaa.runtime.targets import check_targets
from aqaa.storage import read_json, write_json, write_text

FINGERPRINT = "fingerprint.json"
# Settings that say where and how often, not what: they may differ between a run and its resume.
_PLACE = ("root", "name", "out", "save_every_s", "overwrite")


def train(verb: str, cfg: DictConfig) -> Path:
    """Run one training stage into its run folder; a finished run with the same settings is kept.

    Args:
        verb: the stage's name.
        cfg: the composed config.

    Returns:
        The run folder.
    """
    check_targets(cfg)
    out = Path(cfg.run.out)
    parents = {
        name: lineage.parent(path) for name, path in cfg.parents.items() if path is not None
    }
    made_of = lineage.fingerprint(_settings(cfg), parents)
    done = lineage.read_lineage(out)
    if done is not None and done.fingerprint == made_of:
        print(f"{out} is finished: nothing to do")
        return out
    _claim(out, made_of, overwrite=cfg.run.overwrite)
    write_text(out / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
    seconds, steps, parameters = _fit(cfg, out)
    record = lineage.Lineage(
        stage=verb,
        run=out.name,
        parents=parents,
        fingerprint=made_of,
        steps=steps,
        seconds=seconds,
        parameters=parameters,
        versions=lineage.versions(),
    )
    lineage.finish(out, record)
    return out


def _settings(cfg: DictConfig) -> dict[str, Any]:
    """What decides the result; parents count by content, so their paths are left as references."""
    settings: dict[str, Any] = OmegaConf.to_container(cfg, resolve=False)  # type: ignore[assignment]
    settings.pop("log", None)
    settings.pop("parents", None)
    settings["run"] = {k: v for k, v in settings["run"].items() if k not in _PLACE}
    return settings


def _claim(out: Path, made_of: str, *, overwrite: bool) -> None:
    """Take the folder for this run, or for its resume; never mix two runs in one."""
    mark = out / FINGERPRINT
    if mark.is_file() and read_json(mark) != made_of:
        if not overwrite:
            raise UsageError(
                f"{out} holds a run with other settings or parents: choose another run.name, "
                f"or run.overwrite=true to lose it"
            )
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    write_json(mark, made_of)


def _fit(cfg: DictConfig, out: Path) -> tuple[float, int, int]:
    """Train and export; returns seconds, steps, trained parameters."""
    import lightning.pytorch as pl
    import torch
    from hydra.utils import instantiate

    from aqaa.data.module import DataModule
    from aqaa.runtime.callbacks import LAST, SaveState, ShowProgress, StopOnNonFinite
    from aqaa.runtime.log import MetricsFile

    if cfg.run.threads:
        torch.set_num_threads(cfg.run.threads)
    pl.seed_everything(cfg.run.seed, verbose=False)
    source = instantiate(cfg.data, _convert_="all")
    stage = instantiate(cfg.stage, _convert_="all")
    data = DataModule(source, accumulate=cfg.trainer.accumulate_grad_batches)
    saver = SaveState(folder=out / "checkpoints", every_s=cfg.run.save_every_s)
    metrics = MetricsFile(folder=out)
    more = [instantiate(cfg.log.logger)] if cfg.log.get("logger") else []
    trainer = instantiate(cfg.trainer)(
        logger=[metrics, *more],
        callbacks=[saver, ShowProgress(name=cfg.run.name), StopOnNonFinite()],
    )
    (out / "checkpoints").mkdir(exist_ok=True)
    last = out / "checkpoints" / LAST
    if last.is_file():
        metrics.resume(torch.load(last, map_location="meta", weights_only=True)["global_step"])
    trainer.fit(stage, data, ckpt_path=last if last.is_file() else None, weights_only=True)
    if trainer.global_step < trainer.max_steps:
        raise KeyboardInterrupt
    stage.export(out / lineage.MODEL)
    # What the optimizer trained: a running average is a copy, not a parameter.
    groups = trainer.optimizers[0].param_groups
    parameters = sum(p.numel() for group in groups for p in group["params"])
    return saver.seconds, trainer.global_step, parameters
