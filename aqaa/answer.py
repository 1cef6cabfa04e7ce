"""Ask a model one question: `aqaa answer question.wav`."""

from pathlib import Path

from aqaa.audio.file import write_audio
from aqaa.errors import UsageError
from aqaa.pipeline import ORGANS, Pipeline
from aqaa.storage import read_json

DEMO = Path(__file__).parent / "assets" / "demo"


def answer(
    *, question: str, out: str = "answer.wav", model: str | None = None, seed: int = 0
) -> None:
    """Answer a spoken question: the text on the terminal, the speech in a file.

    Args:
        question: a sound file, any rate and channel count.
        out: WAV of the answer.
        model: a model folder; None is the demo checkpoint of this package.
        seed: of the sampling, where the model samples.
    """
    if Path(out).exists() and Path(question).exists() and Path(out).samefile(question):
        raise UsageError(f"the answer would replace the question {question}: give another out=FILE")
    folder, name = locate(model)
    reply = Pipeline.load(folder).answer(question, seed=seed)
    print(f"model: {name}")
    print(f"text:  {reply.text}")
    if reply.sound is None:
        raise UsageError(f"the model said nothing to {question}; {out} was not written")
    write_audio(out, reply.sound.samples, reply.sound.rate_hz)
    print(f"sound: {out}, {reply.sound.duration_s:.2f} s")


def locate(model: str | None) -> tuple[Path, str]:
    """The folder of a model and what to call it: a model folder, a run that holds one, the demo."""
    if model is None:
        if not (DEMO / "backbone").is_dir():
            raise UsageError("this package holds no demo checkpoint: give model=FOLDER")
        card = read_json(DEMO / "card.json")
        return DEMO, f"{card['name']} (bundled; {card['summary']})"
    for folder in (Path(model), Path(model) / "model"):
        if all((folder / organ).is_dir() for organ in ORGANS):
            return folder, str(folder)
    return Path(model), model  # loading it will say what is missing


def bundle(*, organs: dict[str, str], out: str, half: bool = False) -> Path:
    """Put four organs that belong together into one model folder.

    Args:
        organs: folders of the ``tokenizer`` (both speech tokenizers), the ``backbone``, and the
            vocoder's ``flow`` and ``waveform``.
        out: the model folder, written as a whole.
        half: store in 16-bit floats.
    """
    import torch

    Pipeline.from_folders(**organs).save(out, dtype=torch.float16 if half else None)
    return Path(out)
