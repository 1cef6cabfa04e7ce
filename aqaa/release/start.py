"""Where a training of the full-size vocoder may begin: at weights of ours, or at released ones.

Letters: none of its own.
"""

from pathlib import Path
from typing import Any

from torch import nn

from aqaa.errors import UsageError
from aqaa.release.vocoder import load_vocoder
from aqaa.vocoder.token_flow import TokenFlow

CONFIG, RELEASED = "config.json", "cosyvoice.yaml"


def start_from(network: nn.Module, folder: str | Path) -> None:
    """Give a network the weights of a folder.

    Args:
        network: a part of the vocoder, of the sizes that training goes on with.
        folder: of the same part, as a run exports it, or of a whole released vocoder.

    Raises:
        UsageError: the folder holds something else, or a part of other sizes.
    """
    found: Any = _read(type(network), Path(folder))
    wanted, has = _sizes(network), _sizes(found)
    for name in sorted(wanted.keys() | has.keys()):
        if wanted.get(name) != has.get(name):
            raise UsageError(
                f"{folder} cannot be the start of this network: {name} is {has.get(name)} there, "
                f"{wanted.get(name)} here; choose the vocoder=… it was made with"
            )
    network.load_state_dict(found.state_dict(), strict=True)


def _read(kind: Any, folder: Path) -> nn.Module:
    if (folder / CONFIG).is_file():
        found: nn.Module = kind.load(folder)
        return found
    if (folder / RELEASED).is_file():
        voice = load_vocoder(folder)
        for part in (voice.flow, voice.head):
            if isinstance(part, kind):
                return part
        raise UsageError(f"{folder} is a released vocoder, which has no {kind.__name__}")
    raise UsageError(
        f"{folder} is no folder to start from: it holds neither {CONFIG} nor {RELEASED}"
    )


def _sizes(network: Any) -> dict[str, Any]:
    """Shape of every tensor, and the numbers of heads, which no shape tells."""
    found: dict[str, Any] = {k: tuple(v.shape) for k, v in network.state_dict().items()}
    if isinstance(network, TokenFlow):
        unet = network.settings["estimator"]
        found["heads of the U-Net"] = unet.get("heads", 8)
        found["tokens a second"] = round(network.token_rate_hz, 1)
    return found
