"""A held-out question as a card: both sounds, both pictures, the token strip and the verdict.

Letters: T samples, F mel frames.
"""

import base64
import io
import wave
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aqaa.audio.file import read_audio
from aqaa.audio.mel import LOG_MEL_FLOOR, log_mel
from aqaa.errors import UsageError
from aqaa.evaluation.measure import own_words, spoken_right, text_right
from aqaa.signals import QUESTION_RATE_HZ

Row = Mapping[str, Any]
SHORT = {"text": "t", "linguistic": "l", "semantic": "s", "marker": "m"}


def choose(rows: Sequence[Row], shown: int) -> list[Row]:
    """Mistakes first, then successes, each taken in turn from every family and style.

    Mistakes fill at most half of the places while there are successes to show: a page of nothing
    but errors tells as little as a page without any.
    """
    wrong = _spread([row for row in rows if not _right(row)])
    right = _spread([row for row in rows if _right(row)])
    room = max(shown // 2, shown - len(right))
    picked = wrong[:room]
    return picked + right[: shown - len(picked)]


def _right(row: Row) -> bool:
    return row.get("heard") is not None and spoken_right(row)


def _spread(rows: Sequence[Row]) -> list[Row]:
    """Reordered so that families, and styles within them, alternate."""
    taken: dict[Any, int] = {}
    keyed = []
    for place, row in enumerate(rows):
        kind = (row["family"], row["style"])
        taken[kind] = taken.get(kind, 0) + 1
        keyed.append((taken[kind], place, row))
    styles_seen: dict[Any, int] = {}
    ordered = []
    for turn, place, row in sorted(keyed, key=lambda item: item[:2]):
        seen = styles_seen.setdefault(row["family"], 0)
        styles_seen[row["family"]] += 1
        ordered.append(((seen, turn, place), row))
    return [row for _, row in sorted(ordered, key=lambda item: item[0])]


# ---- sound and picture


def wav_uri(samples: np.ndarray) -> str:
    """(T,) at 16 kHz as a 16-bit mono WAV inside a data address."""
    pcm = (np.clip(samples, -1, 1) * 32767).astype("<i2")
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(QUESTION_RATE_HZ)
        out.writeframes(pcm.tobytes())
    return "data:audio/wav;base64," + base64.b64encode(buffer.getvalue()).decode()


def mel_uri(samples: np.ndarray) -> str:
    """The picture of (T,) at 16 kHz as a PNG inside a data address."""
    buffer = io.BytesIO()
    mel_image(samples).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def mel_image(samples: np.ndarray) -> Any:
    """Log-mel picture of (T,) at 16 kHz, low pitch at the bottom, in 64 colours."""
    from matplotlib import colormaps
    from PIL import Image

    mel = log_mel(torch.as_tensor(samples, dtype=torch.float32)[None])[0].numpy()  # (80, F)
    shade = (mel - LOG_MEL_FLOOR) / max(1.0, float(mel.max()) - LOG_MEL_FLOOR)
    image = Image.fromarray((shade[::-1] * 63).round().astype(np.uint8))
    colours = colormaps["magma"](np.linspace(0, 1, 64))[:, :3]
    image.putpalette((colours * 255).round().astype(np.uint8).tobytes())
    return image


def sound_figure(title: str, path: Path | None, about: str) -> str:
    """One figure: picture, player and length, or why there is none."""
    try:
        if path is None:
            raise UsageError("no sound was made")
        samples = read_audio(path).samples
        if len(samples) < QUESTION_RATE_HZ // 20:
            raise UsageError(f"only {len(samples)} samples long")
        picture, sound = mel_uri(samples), wav_uri(samples)
    except UsageError as error:
        reason = str(error).replace(f"{path}", path.name if path else "")
        said = f"<p class=none>{escape(reason)}</p>"
        return f"<figure><figcaption><b>{title}</b></figcaption>{said}</figure>"
    length = f"{len(samples) / QUESTION_RATE_HZ:.2f} s"
    return (
        f"<figure><figcaption><b>{title}</b> <span>{length}{escape(about)}</span></figcaption>"
        f'<img src="{picture}" alt="Mel picture of the {title.lower()}, {length}" '
        f'width="{len(samples) // 160}" height="80">'
        f'<audio controls preload="metadata" aria-label="{title}" src="{sound}"></audio></figure>'
    )


# ---- tokens


def strip(tokens: Sequence[Sequence[Any]]) -> str:
    """The answer's ids in stream order as coloured cells; each cell's title names its token."""
    if not tokens:
        return '<p class="none">No token was kept.</p>'
    counts = {kind: sum(token[0] == kind for token in tokens) for kind in SHORT}
    summary = ", ".join(f"{n} {kind}" for kind, n in counts.items() if n)
    cells = "".join(_cell(str(kind), value) for kind, value in tokens)
    written = " ".join(
        f"<b>{escape(str(value))}</b>"
        if kind in ("text", "marker")
        else f"{escape(SHORT.get(str(kind), '?'))}{escape(str(value))}"
        for kind, value in tokens
    )
    return (
        f'<div class="strip" role="img" aria-label="Token strip: {summary}">{cells}</div>'
        f"<details><summary>{len(tokens)} tokens: {summary}</summary>"
        f'<p class="codes">{written}</p></details>'
    )


def _cell(kind: str, value: Any) -> str:
    title = escape(f"{kind} {value}")
    if kind in ("linguistic", "semantic"):
        share = int(value) / (1024 if kind == "linguistic" else 4096)
        return f'<i class="{SHORT[kind]}" style="--v:{share:.2f}" title="{title}"></i>'
    label = str(value).strip("<|>").replace("_", " ") if kind == "marker" else str(value)
    return f'<i class="{SHORT.get(kind, "m")}" title="{title}">{escape(label)}</i>'


# ---- the card


def card(row: Row, folder: Path) -> str:
    """One answer row as an ``<article>``."""
    verdict, kind = _verdict(row)
    chips = [row["family"], "" if row["style"] == "plain" else f"style: {row['style']}"]
    chips.append("held-out combination" if row["held_out"] else "")
    labels = "".join(f'<span class="chip">{escape(str(c))}</span>' for c in chips if c)
    heard = row.get("heard")
    return (
        f'<article class="card {kind}" id="{escape(str(row["id"]))}"><header>'
        f'<span class="badge {kind}">{verdict}</span>{labels}</header>'
        f"<h3>{escape(row['question_text'])}</h3>"
        f"{_pair(row, folder)}<dl><dt>expected</dt><dd>{escape(row['expected'])}</dd>"
        f"<dt>wrote</dt>{_compared(row['text'], text_right(row), 'wrote nothing')}"
        f"<dt>heard</dt>{_heard(heard, row)}</dl>"
        f"{strip(row.get('tokens') or [])}</article>"
    )


def hear(rows: Sequence[Row], folder: Path) -> str:
    """The first right answer with its sound, large, to open the page with; '' without one."""
    for row in rows:
        if _right(row) and row["answer"] and (folder / row["answer"]).is_file():
            return (
                f'<aside class="hear" aria-label="Hear one"><p class="kicker">Hear one</p>'
                f"{_pair(row, folder)}<blockquote>“{escape(row['question_text'])}”<br>"
                f"“{escape(row['expected'])}”</blockquote></aside>"
            )
    return ""


def _pair(row: Row, folder: Path) -> str:
    question = folder / row["question"] if row.get("question") else None
    answer = folder / row["answer"] if row.get("answer") else None
    took = f", made in {row['seconds']:.2f} s" if row.get("seconds") is not None else ""
    asked = sound_figure("Question", question, f", {row['voice']}")
    return f'<div class="pair">{asked}{sound_figure("Answer", answer, took)}</div>'


def _verdict(row: Row) -> tuple[str, str]:
    if row.get("heard") is None:
        return "not judged", "open"
    if spoken_right(row):
        return (
            ("✓ right", "right") if text_right(row) else ("✓ right, though written wrong", "right")
        )
    if text_right(row):
        return "✗ wrote it right, spoke it wrong", "wrong"
    return ("✗ wrong" if own_words(row) else "✗ wrong, and text and speech differ"), "wrong"


def _heard(heard: str | None, row: Row) -> str:
    if heard is None:
        return '<dd class="none">not judged</dd>'
    return _compared(heard, spoken_right(row), "nothing recognised")


def _compared(said: str, right: bool, empty: str) -> str:
    mark = '<span class="yes">✓</span>' if right else '<span class="no">✗</span>'
    return f"<dd>{mark} {escape(said) if said else f'<em>{empty}</em>'}</dd>"
