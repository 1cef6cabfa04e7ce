"""A step of the codebook beside vector-quantize-pytorch: nearest codes, moving averages, look-up.

    python tools/bench/codebook.py peer=/path/to/python vectors=4000 codes=4096 width=512 repeats=5

Both start from the same book, drawn as the vectors are (the peer's own start lies so near zero that
its distances tie), and are given the same vectors in turns, in one process on one thread; the time
is the processor's, which is what the work costs on a shared machine. ``peer`` is the python of an
environment that holds torch and vector-quantize-pytorch (what else ``aqaa`` needs may be absent);
without it, the running one is used. ``equal``: every code is the same, and the moving averages of
counts and sums are the peer's within 1e-6 after a training step; their quotient, the book, differs
by the peer's smoothing of counts (a part in 1e5), shown aside. The last line is JSON.
"""

import json
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from turns import ROOT, elsewhere, machine, median_in_turns, told  # noqa: E402

DECAY = 0.99
TOLERANCE = 1e-6


def bench(vectors: int, codes: int, width: int, repeats: int) -> dict[str, Any]:
    """Compare, then time in turns; returns the record."""
    import torch
    from vector_quantize_pytorch import VectorQuantize

    from aqaa.tokenizer.codebook import Codebook

    torch.set_num_threads(1)
    torch.manual_seed(0)
    z, mask = torch.randn(8, vectors // 8, width), torch.ones(8, vectors // 8)
    book = Codebook(codes=codes, width=width, decay=DECAY)
    peer = VectorQuantize(dim=width, codebook_size=codes, decay=DECAY)
    book.hold(torch.randn(codes, width))
    theirs = peer._codebook
    theirs.embed.copy_(book.vectors[None])
    theirs.cluster_size.copy_(book.counts[None])
    theirs.embed_avg.copy_(book.sums[None])

    book.train(), peer.train()
    same = torch.equal(book(z, mask).codes, peer(z)[1])
    gaps = {
        "counts": float((book.counts - theirs.cluster_size[0]).abs().max()),
        "sums": float((book.sums - theirs.embed_avg[0]).abs().max()),
    }
    smoothed = float((book.vectors - theirs.embed[0]).abs().max())
    print(f"codes the same: {same}; moving averages apart by {gaps}, the books by {smoothed:.1e}")
    training = median_in_turns({"ours": lambda: book(z, mask), "peer": lambda: peer(z)}, repeats)

    book.eval(), peer.eval()
    book.hold(peer.codebook.detach())
    with torch.inference_mode():
        same = same and torch.equal(book.search(z), peer(z)[1])
        lookup = median_in_turns({"ours": lambda: book.search(z), "peer": lambda: peer(z)}, repeats)
        left, right = z.reshape(-1, width), book.vectors.T.contiguous()
        product = median_in_turns({"mm": lambda: left @ right}, repeats)["mm"]
    for name, found in (("training", training), ("look-up", lookup)):
        ours, other = (f"{vectors / found[who]:,.0f} vectors/s" for who in ("ours", "peer"))
        share = product / found["ours"]
        print(f"{name}: ours {ours}, peer {other}; ours is {share:.0%} of a bare product's speed")
    ratios = {"training": training["peer"] / training["ours"],
              "look_up": lookup["peer"] / lookup["ours"]}  # fmt: skip
    return {
        "bench": "codebook",
        "ours": round(vectors / training["ours"]),
        "peer": round(vectors / training["peer"]),
        "unit": f"vectors/s trained, {codes} x {width}, one thread",
        "ratio": round(ratios["training"], 2),
        "ratios": {name: round(value, 2) for name, value in ratios.items()},
        "equal": same and max(gaps.values()) <= TOLERANCE,
        "machine": machine(),
        "versions": {n: version(n) for n in ("torch", "vector-quantize-pytorch")},
    }


def main(argv: Sequence[str]) -> int:
    """The command line; returns 0 if both gave the same."""
    asked = {"peer": "here", "vectors": "4000", "codes": "4096", "width": "512", "repeats": "5"}
    given = told("codebook", argv, asked)
    if (peer := given.pop("peer")) != "here":
        return elsewhere(peer, __file__, argv)
    sys.path.insert(0, str(ROOT))
    numbers = {key: int(value) for key, value in given.items()}
    found = bench(**numbers)
    print(json.dumps(found))
    return int(not found["equal"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
