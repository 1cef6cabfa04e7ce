"""One configured verb, from its overrides to its result.

The command line and the walkthrough's workers both come through here.
"""

from collections.abc import Sequence
from pathlib import Path

from aqaa.errors import UsageError
from aqaa.runtime.verbs import Verb


def perform(verb: Verb, overrides: Sequence[str], *, show: bool = False) -> None:
    """Compose the config of ``verb``, check it, and run what it names (or only show it)."""
    from aqaa.runtime.compose import bind_targets, check_targets, compose

    if verb.forwards:
        overrides = forwarded(verb, overrides)
    cfg = compose(verb.name, overrides, allow_missing=show)
    check_targets(cfg)
    if show:
        from omegaconf import OmegaConf

        print(OmegaConf.to_yaml(cfg), end="")
        return
    if "_target_" not in cfg:
        from aqaa.runtime.run import train

        train(verb.name, cfg)
        return
    bind_targets(cfg)
    from hydra.utils import instantiate

    result = instantiate(cfg, _convert_="all")  # plain values: no cfg below runtime
    if isinstance(result, Path):
        print(result)


def forwarded(verb: Verb, overrides: Sequence[str]) -> list[str]:
    """Overrides with those the verb does not know gathered into its list ``overrides``."""
    import json

    from aqaa.runtime.catalogue import groups, keys

    own = {*groups(verb.name), *(name.split(".")[0] for name in keys(verb.name))}
    kept: list[str] = []
    others: list[str] = []
    for word in overrides:
        name = word.split("=")[0].split(".")[0]
        (kept if name in own else others).append(word)
    # A JSON string is a quoted string of Hydra's grammar too, once its quotes are escaped alike.
    listed = ",".join(json.dumps(word, ensure_ascii=False) for word in others)
    return [*kept, f"overrides=[{listed}]"] if others else kept


def error_of_use(error: BaseException) -> UsageError | None:
    """The error of use behind an exception; Hydra wraps what a target raises."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, UsageError):
            return seen
        seen = seen.__cause__
    return None
