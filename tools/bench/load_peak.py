"""Memory of a rank while a backbone is loaded into two ZeRO-3 shares, beside share plus one shard.

    python tools/bench/load_peak.py mib=1200 shards=6 folder=/tmp/bench

A Step-1 backbone of about ``mib`` MiB of float32 is written in ``shards`` files; two gloo ranks
load it as a sharded training does. What counts is the anonymous memory that a rank rises to over
what it held with everything imported and its peer joined, read from outside every few
milliseconds; pages of the weights' files are the system's to drop. ``ours`` is the larger rank's
peak, ``peer`` the bound: half of the weights plus one file. ``equal``: ours is below it, and every
rank holds its share of the right numbers. The last line is JSON.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from turns import ROOT, machine, told  # noqa: E402

RANKS, ROWS = 2, 8192
EVERY_S = 0.002


def write_model(folder: Path, mib: int, shards: int) -> None:
    """A from-scratch backbone of layers enough, in files of one size."""
    from aqaa.backbone.initial import write_initial
    from aqaa.backbone.loading import Ids
    from aqaa.backbone.shards import tensor_files, write_tensors
    from aqaa.backbone.step1 import Step1Config
    from aqaa.storage import load_tensors
    from aqaa.stream import StreamLayout
    from aqaa.text import TextTokenizer
    from aqaa.vocabulary import Vocabulary

    text = TextTokenizer.train_words(["word"])
    ids = Ids(text, Vocabulary(text.size, table_rows=ROWS), StreamLayout(), "")
    width = 1024 if mib >= 600 else 256  # or the table alone would be a small model
    inner = 11 * width // 4
    layer_mib = (2.5 * width + 3 * inner) * width * 4 / 2**20
    config = Step1Config(
        vocab_size=ROWS,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=max(2, round((mib - ROWS * width * 8 / 2**20) / layer_mib)),
        num_attention_heads=8,
        num_attention_groups=2,
    )
    write_initial(folder, config=config, ids=ids)
    (file,) = tensor_files(folder)
    tensors = load_tensors(file)
    file.unlink()
    size = sum(t.nbytes for t in tensors.values())
    write_tensors(folder, tensors.items(), shard_bytes=-(-size // shards))
    (folder / "MANIFEST.sha256").unlink(missing_ok=True)


def watch(folder: Path, launched: subprocess.Popen[str]) -> list[float]:
    """Megabytes of each rank's peak over its bare process, while the launch runs."""
    peaks = [0.0] * RANKS
    while launched.poll() is None:
        for rank in range(RANKS):
            if (folder / f"{rank}.done").exists() or not (folder / f"{rank}.bare").exists():
                continue
            pid, bare = (folder / f"{rank}.bare").read_text().split()
            peaks[rank] = max(peaks[rank], anonymous_mb(pid) - float(bare))
        time.sleep(EVERY_S)
    return peaks


def anonymous_mb(pid: str) -> float:
    """Anonymous memory of a process now; none once it has gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(x.split()[1]) * 1024 / 1e6 for x in lines if x.startswith("RssAnon"))


def rank_loads(folder: Path) -> None:
    """One rank: join, say what is held, load, check the share."""
    from torch import distributed

    from aqaa.backbone.loading import load_backbone
    from aqaa.runtime.compose import compose

    rank, config = int(os.environ["RANK"]), sharded_config(compose)
    load_backbone(folder / "small", deepspeed=config)  # what loading itself imports
    distributed.barrier()
    held = f"{os.getpid()} {anonymous_mb(str(os.getpid()))}"
    part = folder / f"{rank}.part"
    part.write_text(held)
    part.rename(folder / f"{rank}.bare")
    distributed.barrier()
    time.sleep(10 * EVERY_S)
    model = load_backbone(folder / "model", deepspeed=config).model
    (folder / f"{rank}.done").touch()
    state = {n: p.ds_tensor.clone() for n, p in model.named_parameters()}
    shares = sum(t.numel() for t in state.values())
    (folder / f"{rank}.json").write_text(json.dumps({"shares": shares, "right": right(
        folder, {n: p.ds_shape for n, p in model.named_parameters()}, state, rank)}))  # fmt: skip
    distributed.barrier()
    distributed.destroy_process_group()


def sharded_config(compose: Any) -> dict[str, Any]:
    """The settings of ``trainer=gloo`` at stage 3, the process group joined."""
    import deepspeed
    from hydra.utils import instantiate

    from aqaa.runtime.strategy import _skip_shared_memory_op

    words = ["run.name=load", "run.steps=1", "parents.model=none", "trainer=gloo"]
    cfg = compose("sft", [*words, "trainer.strategy.stage=3"])
    settings: dict[str, Any] = instantiate(cfg.trainer.strategy).config
    _skip_shared_memory_op()
    deepspeed.init_distributed("gloo")
    return settings


def right(folder: Path, shapes: dict[str, Any], shares: dict[str, Any], rank: int) -> bool:
    """Whether a share is this rank's part of every stored tensor."""
    from aqaa.backbone.shards import read_tensors

    for name, tensor in read_tensors(folder / "model"):
        flat, share = tensor.flatten(), shares[name]
        mine = flat[rank * len(share) :][: len(share)]
        if tuple(tensor.shape) != tuple(shapes[name]) or not mine.equal(share[: len(mine)]):
            return False
    return True


def bench(mib: int, shards: int, folder: Path) -> dict[str, Any]:
    """Write, load, watch; returns the record."""
    from aqaa.backbone.shards import tensor_files

    write_model(folder / "model", mib, shards)
    write_model(folder / "small", 2, 1)
    env = {
        **os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore",
        # Freed memory goes back at once, or it would be counted as held.
        "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536",
    }  # fmt: skip
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone",
               f"--nproc-per-node={RANKS}", __file__, "--rank", str(folder)]  # fmt: skip
    with (folder / "log").open("w") as log:
        launched = subprocess.Popen(command, env=env, stdout=log, stderr=log, text=True)
        peaks = watch(folder, launched)
    if launched.returncode:
        raise SystemExit(f"the ranks did not load:\n{(folder / 'log').read_text()[:4000]}")
    files = [file.stat().st_size / 1e6 for file in tensor_files(folder / "model")]
    said = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(RANKS)]
    bound = sum(files) / RANKS + max(files)
    print(f"{sum(files):.0f} MB in {len(files)} files of {max(files):.0f} MB at most; "
          f"ranks rose by {', '.join(f'{p:.0f} MB' for p in peaks)}")  # fmt: skip
    return {
        "bench": "load_peak",
        "ours": round(max(peaks), 1),
        "peer": round(bound, 1),
        "unit": f"MB of a rank at most, {sum(files):.0f} MB in {len(files)} files",
        "ratio": round(bound / max(peaks), 2),
        "ranks_mb": [round(p, 1) for p in peaks],
        "equal": 0 < max(peaks) < bound and all(s["right"] for s in said),
        "machine": machine(),
        "versions": {n: version(n) for n in ("torch", "deepspeed", "transformers")},
    }


def main(argv: Sequence[str]) -> int:
    """The command line; returns 0 if the ranks stayed below the bound."""
    if argv[:1] == ["--rank"]:
        rank_loads(Path(argv[1]))
        return 0
    asked = told("load_peak", argv, {"mib": "1200", "shards": "6", "folder": ""})
    folder = Path(tempfile.mkdtemp(dir=asked["folder"] or None))
    try:
        found = bench(int(asked["mib"]), int(asked["shards"]), folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(found))
    return int(not found["equal"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
