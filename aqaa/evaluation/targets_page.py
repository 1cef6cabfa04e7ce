"""What a training is asked to say, to read and to hear: one HTML page, one text, the sounds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from aqaa.audio.file import write_audio
from aqaa.backbone.loading import Ids
from aqaa.data.targets import Fault, Heard, Target, faults, heard, kind
from aqaa.evaluation.report import TEMPLATE
from aqaa.evaluation.report_cards import SHORT, sound_figure
from aqaa.grammar import Slot
from aqaa.storage import write_text
from aqaa.vocabulary import MARKERS
from aqaa.vocoder.voice import Voice

PAGE, TEXT = "targets.html", "targets.txt"
_STYLE = """
.strip.mask i { opacity: .25; border-bottom: 4px solid transparent; height: 24px; }
.strip.mask i.on { opacity: 1; border-bottom-color: var(--good); }
.strip.mask i.bad { opacity: 1; outline: 2px solid var(--bad); }
.strip.mask i.x { background: var(--bad); width: 8px; }
"""
_KEY = "t text, l linguistic, s semantic, m marker, ? no id; capitals are learnt"


@dataclass(frozen=True)
class Shown:
    """A document with what was found in it; ``sounds`` are files by (turn, stretch of speech)."""

    target: Target
    turns: list[Heard]
    faults: list[Fault]
    sounds: dict[tuple[int, int], str]


def write_targets(
    folder: Path, title: str, documents: Sequence[Target], ids: Ids, voice: Voice | None
) -> str:
    """Write ``targets.html``, ``targets.txt`` and the sounds below ``folder``.

    Args:
        folder: is there.
        title: of the page, what the documents are of.
        documents: as :func:`aqaa.data.targets.targets` reads them.
        ids: what their ids mean.
        voice: speaks their codes (None: nothing is heard).

    Returns:
        The text.
    """
    shown = [_shown(folder, number, target, ids, voice) for number, target in enumerate(documents)]
    wrong = sum(bool(document.faults) for document in shown)
    verdict = f"{wrong} of {len(shown)} documents are wrong" if wrong else "nothing is wrong"
    said = [f"{title}: {len(shown)} documents, {verdict}", f"({_KEY})", ""]
    said += [line for document in shown for line in _lines(document, ids)]
    text = "\n".join(said) + "\n"
    write_text(folder / TEXT, text)
    cards = "".join(_card(document, ids, folder) for document in shown)
    write_text(folder / PAGE, _page(title, verdict, cards))
    return text


def _shown(folder: Path, number: int, target: Target, ids: Ids, voice: Voice | None) -> Shown:
    turns = heard(target, ids)
    sounds = {}
    for place, turn in enumerate(turns):
        for piece, pair in enumerate(turn.speech):
            if voice is not None and pair.groups:
                name = f"audio/{number:02d}-{turn.role}-{place}-{piece}.wav"
                sound = voice.speak(pair)
                (folder / "audio").mkdir(exist_ok=True)
                write_audio(folder / name, sound.samples, sound.rate_hz)
                sounds[place, piece] = name
    return Shown(target, turns, faults(target, ids), sounds)


# ---- text


def _lines(document: Shown, ids: Ids) -> list[str]:
    target = document.target
    learnt = sum(w > 0 for w in target.weight)
    lines = [f"{target.name}: {len(target.learn)} ids, {learnt} learnt", f"  {_mask(target, ids)}"]
    for place, turn in enumerate(document.turns):
        said = f'"{turn.text}"' if turn.text else "no text"
        sounds = [name for (of, _), name in document.sounds.items() if of == place]
        heard_in = f"; {', '.join(sounds)}" if sounds else ""
        lines.append(f"  {turn.role}: learnt {_counts(turn.learnt)}; {said}{heard_in}")
    return [*lines, *(f"  WRONG: {fault}" for fault in document.faults), ""]


def _mask(target: Target, ids: Ids) -> str:
    """A letter an id; capitals are learnt."""
    letters = (SHORT.get(kind(token, ids.vocabulary), "?") for token in target.learn)
    pairs = zip(letters, target.weight, strict=True)
    return "".join(letter.upper() if weight else letter for letter, weight in pairs)


def _counts(learnt: Mapping[str, tuple[int, int]]) -> str:
    return ", ".join(f"{name} {some} of {every}" for name, (some, every) in learnt.items())


# ---- page


def _page(title: str, verdict: str, cards: str) -> str:
    style = TEMPLATE.read_text("utf-8").partition("<style>")[2].partition("</style>")[0] + _STYLE
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; "
        "style-src 'unsafe-inline'; img-src data:; media-src data:\">"
        f"<title>{escape(title)}</title><style>{style}</style></head><body>"
        f'<header class="top wrap"><h1>What is asked to be learnt</h1><p class="lead">'
        f"{escape(title)}: {escape(verdict)}. Every cell is an id that is asked for; those that "
        "carry loss are bright and underlined, the others only read. Its title says what is read "
        'before it, where it is decided and what it weighs.</p></header><main class="wrap"><ul '
        'class="legend"><li><i class="t">text</i></li><li><i class="l">&nbsp;</i> linguistic</li>'
        '<li><i class="s">&nbsp;</i> semantic</li><li><i class="m">marker</i></li></ul>'
        f'<div class="cards">{cards}</div></main></body></html>\n'
    )


def _card(document: Shown, ids: Ids, folder: Path) -> str:
    target = document.target
    good = not document.faults
    badge = "✓ as the layout says" if good else f"✗ {len(document.faults)} wrong"
    wrong = "".join(f"<li>{escape(str(fault))}</li>" for fault in document.faults)
    bad = {at for fault in document.faults for at in fault.places}
    cells = "".join(_cell(target, at, ids, at in bad) for at in range(len(target.learn)))
    sounds = "".join(
        sound_figure(f"{document.turns[place].role} {piece + 1}", folder / name, "")
        for (place, piece), name in document.sounds.items()
    )
    turns = "".join(
        f"<dt>{escape(turn.role)}</dt><dd>{escape(turn.text) or '<em>no text</em>'} "
        f"<small>learnt {_counts(turn.learnt)}</small></dd>"
        for turn in document.turns
    )
    return (
        f'<article class="card {"right" if good else "wrong"}"><header>'
        f'<span class="badge {"right" if good else "wrong"}">{badge}</span></header>'
        f'<h3>{escape(target.name)}</h3><ul class="notes no">{wrong}</ul>'
        f'<div class="strip mask" role="img" aria-label="{_mask(target, ids)}">{cells}</div>'
        f'<dl>{turns}</dl><div class="pair">{sounds}</div></article>'
    )


def _cell(target: Target, at: int, ids: Ids, bad: bool) -> str:
    token, weight = target.learn[at], target.weight[at]
    name = kind(token, ids.vocabulary)
    label = _label(token, name, ids)
    slot = Slot(target.slots[at]).name if target.slots[at] else "no loss"
    title = f"{at}: after {target.read[at]}, {name} {token} {label}; {slot}, weight {weight:g}"
    classes = [SHORT.get(name, "x"), *(["on"] if weight else []), *(["bad"] if bad else [])]
    inside = escape(label) if name in ("text", "marker") else ""
    return f'<i class="{" ".join(classes)}" title="{escape(title)}">{inside}</i>'


def _label(token: int, name: str, ids: Ids) -> str:
    v = ids.vocabulary
    specials = {v.bos: "s", v.eot: "EOT", v.bot: "BOT", v.pad: "pad"}
    if token in specials:
        return specials[token]
    if name == "text":
        return ids.text.decode([token]).strip()
    if name == "marker":
        place = token - v.marker_start
        return MARKERS[place].strip("<>") if place < len(MARKERS) else str(token)
    return str(v.code(token)) if name in ("linguistic", "semantic") else ""
