"""Mel from a flow in four calls beside ten Euler steps: what it costs, and how near it comes.

    python tools/bench/sampling.py peer=/path/to/python solver=fitted steps=4 test=24 answers=24

Cost: the same solver on networks of CosyVoice 1's depth with random weights, beside ten
Euler steps on matcha-tts's class; real-time factor on one thread, without guidance on either side,
in turns in one process. Nearness: on the walkthrough's trained flow (aqaa/assets/demo)
the log-mel of each utterance is compared with that of 200 Euler steps from the same noise: mean
absolute difference, ours and of ten Euler steps. The utterances are the demo's question, and,
made here by espeak, ``test`` spoken questions in voices that no stage has heard and ``answers``
answers in the voice that the flow has learnt.
``equal``: ours is no further off than ten Euler steps, on average over all, without guidance and
with it (0.7); both ways and the start from zero, as the walkthrough does, stand under
``elsewhere``, as the distance over that of ten Euler steps. ``peer`` is a python with matcha-tts,
as for unet. The last line is JSON.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import peers  # noqa: E402
import unet_peer  # noqa: E402
from turns import ROOT, machine, median_in_turns, told  # noqa: E402

DEMO = ROOT / "aqaa/assets/demo"
EULER_STEPS, EXACT_STEPS = 10, 200
MEL_RATE_HZ = 22_050 / 256
ASKED = {"peer": "", "solver": "fitted", "steps": "4", "test": "24", "answers": "24",
         "frames": "344", "repeats": "3", "blocks": "4", "middle": "12"}  # fmt: skip
NUMBERS = ("steps", "frames", "repeats", "blocks", "middle")
STARTS = {"noise": (True, 0.0), "zero": (False, 0.0), "guided": (True, 0.7)}


def speed(solver: str, steps: int, frames: int, repeats: int, blocks: int, middle: int) -> Any:
    """Real-time factors of both samplers."""
    import torch

    from aqaa.vocoder.solver import follow, named

    torch.set_num_threads(1)
    nets = unet_peer.pair(blocks, middle)
    start, rest = torch.randn(1, unet_peer.CHANNELS, frames).split(
        [unet_peer.MEL_BINS, unet_peer.CHANNELS - unet_peer.MEL_BINS], 1
    )
    ones, way = torch.ones(1, 1, frames), named(solver, steps)

    def ours() -> Any:
        return follow(lambda x, t: nets.ours(torch.cat([x, rest], 1), t), start, way)

    def peer() -> Any:
        x = start
        for time in torch.arange(EULER_STEPS) / EULER_STEPS:
            x = x + nets.peer(x, ones, rest, time) / EULER_STEPS
        return x

    calls = {"ours": ours, "peer": peer}
    with torch.inference_mode():
        taken = median_in_turns(calls, repeats)
    factors = {who: seconds / (frames / MEL_RATE_HZ) for who, seconds in taken.items()}
    return {**factors, "versions": {n: version(n) for n in ("torch", "matcha-tts", "diffusers")}}


def utterances(folder: Path, test: int, answers: int) -> dict[str, list[Any]]:
    """Codes (linguistic, semantic) of everything that is said, by where it comes from."""
    import torch

    from aqaa.audio.file import pad_to_groups, prepare, read_audio
    from aqaa.data.corpus import Corpus, question_part
    from aqaa.data.synthesize import synthesize
    from aqaa.tokenizer.dual import DualTokenizer

    tokenizer = DualTokenizer.load(DEMO / "tokenizer")
    synthesize(out=folder, questions=1, validation=1, test=test, workers=1)
    corpus = Corpus(folder)
    rows = list(corpus.answers.values())
    parts = {
        "test": [question_part(row) for row in corpus.rows("test")],
        "answers": [row["audio"] for row in rows[:: max(1, len(rows) // answers)][:answers]],
    }
    found = {name: tokenizer.encode_mels(corpus.mels(some)) for name, some in parts.items()}
    asked = prepare(read_audio(DEMO / "question.wav"), peak=tokenizer.peak).samples
    found["demo"] = [tokenizer.encode(torch.from_numpy(pad_to_groups(asked)))]

    def whole(codes: Any) -> tuple[Any, Any]:
        linguistic, semantic = codes.linguistic, codes.semantic
        pair = linguistic[: 2 * codes.groups], semantic[: 3 * codes.groups]
        return torch.tensor([pair[0]]), torch.tensor([pair[1]])

    return {name: [whole(codes) for codes in some] for name, some in found.items()}


def nearness(solver: str, steps: int, said: dict[str, list[Any]]) -> dict[str, Any]:
    """Mean log-mel distances to many Euler steps, ours and of ten, by start and source."""
    import torch

    from aqaa.vocoder.flow import FlowVocoder

    flow, found = FlowVocoder.load(DEMO / "vocoder" / "flow"), {}
    for start, (noisy, guidance) in STARTS.items():
        generator, off = torch.Generator().manual_seed(0), {}
        for source, codes in said.items():
            pairs = []
            for linguistic, semantic in codes:
                size = (1, 160, 3 * linguistic.shape[1])
                noise = torch.randn(size, generator=generator) if noisy else torch.zeros(size)
                ways = (("euler", EXACT_STEPS), (solver, steps), ("euler", EULER_STEPS))
                exact, ours, euler = (
                    flow.sample(linguistic, semantic, noise=noise, guidance=guidance,
                                solver=name, steps=calls)
                    for name, calls in ways
                )  # fmt: skip
                pairs.append([float((mel - exact).abs().mean()) for mel in (ours, euler)])
            off[source] = torch.tensor(pairs)
            print(f"{start}, {source}: {len(pairs)} utterances, off by "
                  f"{off[source].mean(0).tolist()}", file=sys.stderr)  # fmt: skip
        ours, euler = torch.cat(list(off.values())).mean(0).tolist()
        found[start] = {"ours": round(ours, 4), "euler_10": round(euler, 4),
                        "utterances": sum(map(len, off.values()))}  # fmt: skip
    return found


def bench(peer: str, given: dict[str, Any]) -> dict[str, Any]:
    """Both halves; returns the record."""
    import torch

    torch.set_num_threads(1)
    solver, steps = given["solver"], int(given["steps"])
    words = [f"{key}={given[key]}" for key in ("solver", *NUMBERS)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([peer, __file__, "--speed", *words], env=env, stdout=subprocess.PIPE,
                          text=True, check=True)  # fmt: skip
    factors = json.loads(done.stdout.splitlines()[-1])
    with tempfile.TemporaryDirectory() as folder:
        said = utterances(Path(folder) / "corpus", int(given["test"]), int(given["answers"]))
    off = nearness(solver, steps, said)
    return {
        "bench": "sampling",
        "ours": round(factors["ours"], 3),
        "peer": round(factors["peer"], 3),
        "unit": f"CPU s per s of sound, {steps} calls ({solver}) and {EULER_STEPS}, one thread",
        "ratio": round(factors["peer"] / factors["ours"], 2),
        "log_mel_distance": off["noise"],
        "elsewhere": {k: round(v["ours"] / v["euler_10"], 2) for k, v in off.items()},
        "equal": all(off[way]["ours"] <= off[way]["euler_10"] for way in ("noise", "guided")),
        "machine": machine(),
        "versions": factors["versions"],
    }


def main(argv: Sequence[str]) -> int:
    """The command line; returns 0 if ours came as near as ten Euler steps."""
    alone = argv[:1] == ["--speed"]
    given = told("sampling", argv[1:] if alone else argv, ASKED)
    if alone:
        numbers = {key: int(given[key]) for key in NUMBERS}
        print(json.dumps(speed(given["solver"], **numbers)))
        return 0
    python = given["peer"] or peers.python_of("unet", unet_peer.PEERS, alone=unet_peer.ALONE)
    sys.path.insert(0, str(ROOT))
    found = bench(str(python), given)
    print(json.dumps(found))
    return int(not found["equal"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
