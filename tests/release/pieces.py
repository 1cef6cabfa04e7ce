"""A SentencePiece model written by hand, field by field."""

import struct
from pathlib import Path

from tests.release.onnx_files import number, sized, varint

UNKNOWN, CONTROL, OWN, BYTE = 2, 3, 4, 6
WORDS = ["a", "b", "c", "h", "m", "n", "s", "t", "u", "i", "\n", "ab", "abc", "bc", "\u2581ab",
         "\u2581", "hu", "man", "an", "human", "\u2581human", "as", "st", "ant", "assist",
         "assistant", "\u2581assistant", "is", "ist", "ass"]  # fmt: skip


def pieces() -> list[tuple[str, int]]:
    """Text and kind of every piece, in the order of the ids; Step-1's first five come first."""
    first = [("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL), ("<|EOT|>", OWN),
             ("<|BOT|>", OWN)]  # fmt: skip
    return [*first, *((f"<0x{b:02X}>", BYTE) for b in range(256)), *((w, 1) for w in WORDS)]


def write_pieces(path: Path, *, bpe: bool = True, audio: int = 0) -> int:
    """Write ``tokenizer.model``; longer words score higher. Returns the number of text ids."""
    listed = pieces()
    data = b""
    for text, kind in [*listed, *((f"<audio_{i}>", OWN) for i in range(audio))]:
        score = float(len(text)) - 20.0 if kind == 1 else 0.0
        packed = varint(2 << 3 | 5) + struct.pack("<f", score)
        data += sized(1, sized(1, text) + packed + (number(3, kind) if kind != 1 else b""))
    data += sized(2, number(3, 2 if bpe else 1)) + sized(3, sized(1, "identity") + number(4, 0))
    path.write_bytes(data)
    return len(listed)
