"""The weighted mean of three sharded models: `aqaa merge` beside mergekit's linear merge.

    python tools/bench/merge.py dim=1536 layers=16 rounds=2 folder=/tmp/bench

Both merge the same bfloat16 folders of several shards, 5 : 5 : 1, in turns and each in a process of
its own, with the page cache dropped before; loading the libraries is not timed, bringing the result
to the disk is. Ours does all that the command does: it hashes what it reads, writes and syncs the
result with its manifest. ``equal``: every value of ours is the float64 mean rounded once, by an
independent rounding of the bits, and none of the peer's is further off than its last place.
The last line is JSON.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from turns import ROOT, machine, told  # noqa: E402

WEIGHTS = (5.0, 5.0, 1.0)
SHARD_BYTES = 256 << 20
TEXT_TOKENS, ROWS = 27000, 32768


def shapes(dim: int, layers: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a Llama."""
    inner, narrow = dim * 8 // 3 // 64 * 64, dim // 4
    yield "model.embed_tokens.weight", (ROWS, dim)
    for layer in range(layers):
        head = f"model.layers.{layer}"
        for name, rows in {"q": dim, "k": narrow, "v": narrow, "o": dim}.items():
            yield f"{head}.self_attn.{name}_proj.weight", (rows, dim)
        for name, rows in {"gate": inner, "up": inner}.items():
            yield f"{head}.mlp.{name}_proj.weight", (rows, dim)
        yield f"{head}.mlp.down_proj.weight", (dim, inner)
        yield f"{head}.input_layernorm.weight", (dim,)
        yield f"{head}.post_attention_layernorm.weight", (dim,)
    yield "model.norm.weight", (dim,)
    yield "lm_head.weight", (ROWS, dim)


def write_model(folder: Path, seed: int, dim: int, layers: int) -> None:
    """A folder that both read: weights of seeded noise, a config, our ids."""
    import torch

    from aqaa.backbone.loading import Ids
    from aqaa.backbone.shards import write_tensors
    from aqaa.storage import write_json, write_manifest
    from aqaa.stream import StreamLayout
    from aqaa.text import TextTokenizer
    from aqaa.vocabulary import Vocabulary

    noise = torch.randn(1 << 22, generator=torch.Generator().manual_seed(seed)).bfloat16()

    def tensors() -> Iterator[tuple[str, Any]]:
        for name, shape in shapes(dim, layers):
            count = torch.Size(shape).numel()
            yield name, noise.repeat(count // len(noise) + 1)[:count].reshape(shape)

    folder.mkdir(parents=True)
    write_tensors(folder, tensors(), shard_bytes=SHARD_BYTES)
    text = TextTokenizer.train_words([f"word{i}" for i in range(TEXT_TOKENS)])
    Ids(text, Vocabulary(text.size, table_rows=ROWS), StreamLayout(), "").save(folder)
    write_json(folder / "config.json", {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": dim,
        "num_hidden_layers": layers, "num_attention_heads": dim // 64, "vocab_size": ROWS,
        "num_key_value_heads": dim // 256, "intermediate_size": dim * 8 // 3 // 64 * 64,
        "torch_dtype": "bfloat16", "tie_word_embeddings": False, "rms_norm_eps": 1e-5,
    })  # fmt: skip
    write_manifest(folder)


def ours(sources: list[str], out: Path) -> Callable[[], Any]:
    """Everything loaded; the call merges."""
    from aqaa.stages.merge import merge

    return lambda: merge(models=sources, weights=WEIGHTS, out=str(out), shard_bytes=SHARD_BYTES)


def peer(sources: list[str], out: Path) -> Callable[[], Any]:
    """The same of mergekit."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    models = [{"model": model, "parameters": {"weight": weight}}
              for model, weight in zip(sources, WEIGHTS, strict=True)]  # fmt: skip
    config = {"merge_method": "linear", "dtype": "bfloat16", "models": models}
    options = MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True,
                           out_shard_size=SHARD_BYTES // 2)  # fmt: skip
    return lambda: run_merge(MergeConfiguration.model_validate(config), str(out), options)


class Peak(threading.Thread):
    """The most anonymous memory this process holds, looked at every few milliseconds."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.bare = self.most = anonymous()

    def run(self) -> None:
        """Look until the process ends."""
        while True:
            self.most = max(self.most, anonymous())
            time.sleep(0.005)


def anonymous() -> int:
    """Bytes of this process that no file stands for."""
    text = Path("/proc/self/status").read_text()
    return int(text.split("RssAnon:")[1].split()[0]) * 1024


def one(side: str, out: Path, sources: list[str]) -> None:
    """One merge in this process; prints what it took."""
    import torch

    torch.randn(1 << 16).double().mul_(2).bfloat16()  # what torch loads late is no merge's
    call, peak = {"ours": ours, "peer": peer}[side](sources, out), Peak()
    peak.start()
    begun, cpu = time.perf_counter(), time.process_time()
    call()
    sync(out)
    wall, cpu = time.perf_counter() - begun, time.process_time() - cpu
    print(json.dumps({"wall_s": wall, "cpu_s": cpu, "anonymous_mb": (peak.most - peak.bare) / 1e6}))


def sync(folder: Path, *, forget: bool = False) -> None:
    """Bring every file to the disk, and out of the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            number = os.open(path, os.O_RDONLY)
            os.fsync(number)
            if forget:
                os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(number)


def checked(sources: Sequence[Path], mine: Path, other: Path) -> tuple[int, int, int]:
    """Values of ours off the exact mean, of the peer's off it, of the peer's further off than 1."""
    import numpy as np
    from safetensors import safe_open

    from aqaa.backbone.shards import tensor_files

    def opened(folder: Path) -> dict[str, Any]:
        files = tensor_files(folder).items()
        return {n: safe_open(str(f), framework="pt") for f, names in files for n in names}

    models, found = [opened(s) for s in sources], [opened(mine), opened(other)]
    wrong, off, far = 0, 0, 0
    for name in models[0]:
        total = sum(w * m[name].get_tensor(name).double().numpy()
                    for w, m in zip(WEIGHTS, models, strict=True)) / sum(WEIGHTS)  # fmt: skip
        bits = total.view(np.uint64)
        even = (bits >> np.uint64(45)) & np.uint64(1)
        exact = (bits + np.uint64((1 << 44) - 1) + even) >> np.uint64(45)
        one, two = (f[name].get_tensor(name).double().numpy().view(np.uint64) >> np.uint64(45)
                    for f in found)  # fmt: skip
        wrong += int((one != exact).sum())
        apart = np.abs(two.astype(np.int64) - exact.astype(np.int64))
        off, far = off + int((apart > 0).sum()), far + int((apart > 1).sum())
    return wrong, off, far


def bench(dim: int, layers: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Merge in turns; returns the record."""
    sys.path.insert(0, str(ROOT / "tools" / "bench"))
    from peers import python_of

    pythons = {"peer": str(python_of("merge", ("mergekit",))), "ours": sys.executable}
    sources = [folder / name for name in "xyz"]
    for seed, source in enumerate(sources):
        write_model(source, seed, dim, layers)
    gib = sum(p.stat().st_size for s in sources for p in s.glob("*.safetensors")) / 2**30
    said: dict[str, list[dict[str, float]]] = {"ours": [], "peer": []}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    for number in range(rounds):
        for side, python in pythons.items():
            shutil.rmtree(folder / side, ignore_errors=True)
            sync(folder, forget=True)
            words = [python, __file__, "--one", side, str(folder / side), *map(str, sources)]
            done = subprocess.run(words, capture_output=True, text=True, env=environment)
            if done.returncode:
                raise SystemExit(f"{side} did not run:\n{done.stderr[-4000:]}")
            said[side].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"round {number}, {side}: {said[side][-1]}", flush=True)
    wrong, off, far = checked(sources, folder / "ours" / "model", folder / "peer")
    middle = {side: {key: statistics.median(t[key] for t in turns) for key in turns[0]}
              for side, turns in said.items()}  # fmt: skip
    ratios = {key: round(middle["peer"][key] / middle["ours"][key], 2) for key in middle["ours"]}
    return {
        "bench": "merge",
        "ours": round(middle["ours"]["wall_s"], 3),
        "peer": round(middle["peer"]["wall_s"], 3),
        "unit": f"s, three models of {gib / 3:.2f} GiB",
        "ratio": ratios["wall_s"],
        "ratios": ratios,
        "equal": wrong == 0 and far == 0,
        "values_off": {"ours": wrong, "peer": off},
        "anonymous_mb": {side: round(found["anonymous_mb"], 1) for side, found in middle.items()},
        "machine": machine(),
        "versions": {"torch": version("torch"), "mergekit": _version(pythons["peer"])},
    }


def _version(python: str) -> str:
    ask = "from importlib.metadata import version; print(version('mergekit'))"
    said = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True).stdout
    return said.splitlines()[-1]


def main(argv: Sequence[str]) -> int:
    """The command line; returns 0 if ours is exact and the peer near it."""
    asked = told("merge", argv, {"dim": "1536", "layers": "16", "rounds": "2", "folder": ""})
    folder = Path(tempfile.mkdtemp(dir=asked["folder"] or None))
    try:
        found = bench(int(asked["dim"]), int(asked["layers"]), int(asked["rounds"]), folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(found))
    return int(not found["equal"])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(sys.argv[2], Path(sys.argv[3]), sys.argv[4:])
    else:
        sys.exit(main(sys.argv[1:]))
