"""Ask a model one question: `aqaa answer question.wav`."""

from pathlib import Path

from aqaa.audio.file import prepare, read_audio, write_audio
from aqaa.errors import UsageError
from aqaa.lineage import IDS, ORGANS
from aqaa.storage import read_json

DEMO = Path(__file__).parent / "assets" / "demo"


def answer(
    *,
    question: str,
    out: str = "answer.wav",
    model: str | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    solver: str | None = None,
) -> None:
    """Answer a spoken question: the text on the terminal, the speech in a file.

    Args:
        question: a sound file, any rate and channel count.
        out: WAV of the answer.
        model: a model folder; None is the demo checkpoint of this package.
        steps: calls of the vocoder's flow (None, here and below: as its kind is made to be).
        guidance: of the flow.
        solver: of the flow.
    """
    if Path(out).exists() and Path(question).exists() and Path(out).samefile(question):
        raise UsageError(f"the answer would replace the question {question}: give another out=FILE")
    folder, name = locate(model)
    asked = read_audio(question)
    prepare(asked)  # refuses what is no question, before anything heavy is imported
    from aqaa.pipeline import Pipeline
    from aqaa.vocoder.voice import tune

    pipeline = Pipeline.load(folder)
    tune(pipeline.vocoder, steps=steps, guidance=guidance, solver=solver)
    reply = pipeline.answer(asked)
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
    if not Path(model).is_dir():
        found = "is a file" if Path(model).exists() else "does not exist"
        raise UsageError(f"{model} {found}: give the folder of a model")
    if any((folder / IDS).is_file() for folder in (Path(model), Path(model) / "model")):
        raise UsageError(
            f"{model} holds a backbone alone: put a model together with `aqaa bundle "
            f"organs.backbone={model}` and the folders of its tokenizer, flow and waveform"
        )
    missing = [organ for organ in ORGANS if not (Path(model) / organ).is_dir()]
    raise UsageError(f"{model} is not a whole model: it lacks {', '.join(missing)}")


def bundle(*, organs: dict[str, str], out: str, half: bool = False) -> Path:
    """Put four organs that belong together into one model folder.

    Args:
        organs: folders of the ``tokenizer`` (both speech tokenizers), the ``backbone``, and the
            vocoder's ``flow`` and ``waveform``.
        out: the model folder, written as a whole.
        half: store in 16-bit floats.
    """
    import torch

    from aqaa.pipeline import Pipeline

    Pipeline.from_folders(**organs).save(out, dtype=torch.float16 if half else None)
    return Path(out)
