"""The verbs of the command line: a sentence and an example each."""

from dataclasses import dataclass

from aqaa.errors import UsageError
from aqaa.runtime.catalogue import nearest


@dataclass(frozen=True)
class Verb:
    """One verb; ``positional`` is the key that a bare first argument stands for.

    A verb that ``forwards`` passes every setting it does not know on to the verb it is about.
    """

    name: str
    summary: str
    example: str
    positional: str | None = None
    alias: str | None = None
    configured: bool = True
    forwards: bool = False


_TABLE = (
    Verb(
        "data synthesize",
        "make a corpus of spoken questions and answers with the bundled speech synthesiser",
        "aqaa data synthesize runs/corpus questions=600 seed=1",
        positional="out",
    ),
    Verb(
        "data validate",
        "list everything that is wrong with a manifest, before a run finds out",
        "aqaa data validate runs/corpus/train.jsonl deep=true",
        positional="manifest",
    ),
    Verb(
        "data convert",
        "convert speech data of other tools into aqaa-jsonl, and back",
        "aqaa data convert LibriSpeech/dev-clean reads=librispeech out=runs/speech",
        positional="source",
    ),
    Verb(
        "data tokenize",
        "turn a corpus into stored audio tokens with a trained pair of tokenizers",
        "aqaa data tokenize runs/corpus out=runs/tokens",
        positional="corpus",
    ),
    Verb(
        "data pairs",
        "sample answers from a model, score them and choose preference pairs",
        "aqaa data pairs model=runs/sft_1/model out=runs/pairs",
    ),
    Verb(
        "init",
        "write a backbone with seeded weights and a grown vocabulary, the start of any training",
        "aqaa init out=runs/init",
        positional="out",
    ),
    Verb(
        "import",
        "bring a released backbone, tokenizer or vocoder into a run folder to start from",
        "aqaa import from=Step-Audio-Tokenizer out=runs/released_tokenizer",
        positional="folder",
        alias="from",
    ),
    Verb(
        "import-config",
        "write a training of LLaMA-Factory or ms-swift as commands of ours, and say what has none",
        "aqaa import-config train.yaml out=train.sh",
        positional="file",
    ),
    Verb(
        "tokenizer",
        "train one of the two speech tokenizers",
        "aqaa tokenizer preset=walkthrough/tokenizer_linguistic",
    ),
    Verb(
        "report",
        "measure what two tokenizers' codes know: language in one column, voice in the other",
        "aqaa report linguistic=runs/linguistic_base/model semantic=runs/semantic_base/model",
        positional="out",
    ),
    Verb(
        "pretrain",
        "pre-train the backbone on speech and text, continued, transcribed, spoken, interleaved",
        "aqaa pretrain preset=walkthrough/pretrain",
    ),
    Verb(
        "sft",
        "fine-tune on spoken dialogues, first or second round",
        "aqaa sft preset=walkthrough/sft_1",
    ),
    Verb(
        "dpo",
        "optimise preferences with the audio ids masked out of the term",
        "aqaa dpo preset=walkthrough/dpo",
    ),
    Verb(
        "merge",
        "average models, each with its weight",
        "aqaa merge 'models=[runs/sft_1/model,runs/sft_2/model]' 'weights=[5,5]'",
    ),
    Verb(
        "export",
        "write the backbone of a run's saved state, sharded or not, as a Hugging Face folder",
        "aqaa export run=runs/sft_1 out=runs/sft_1_hf",
        positional="source",
        alias="run",
    ),
    Verb(
        "vocoder",
        "train the flow from audio ids to a mel, or the head from a mel to a waveform",
        "aqaa vocoder preset=walkthrough/vocoder_flow",
    ),
    Verb(
        "bundle",
        "put tokenizers, backbone and vocoder that belong together into one model folder",
        "aqaa bundle out=runs/model organs.backbone=runs/merge/model",
        positional="out",
    ),
    Verb(
        "answer",
        "answer a spoken question with speech",
        "aqaa answer question.wav out=answer.wav",
        positional="question",
    ),
    Verb(
        "listen",
        "decode a training's targets, or stored audio tokens, back to text and sound, mask shown",
        "aqaa listen data=sft preset=walkthrough/sft_1 flow=runs/vocoder_flow/model",
        positional="source",
        alias="data",
        forwards=True,
    ),
    Verb(
        "evaluate",
        "let a recogniser judge the spoken answers to held-out questions",
        "aqaa evaluate model=runs/walkthrough/model corpus=runs/walkthrough/corpus",
    ),
    Verb(
        "plan",
        "predict memory, speed and wall time of a training before it is queued",
        "aqaa plan sft preset=paper/sft_1 backbone=step1_130b nodes=16 gpu=h200",
        positional="verb",
        forwards=True,
    ),
    Verb(
        "walkthrough",
        "run the whole chain, tiny, from a synthetic corpus to a judged spoken answer",
        "aqaa walkthrough",
    ),
    Verb(
        "ablations",
        "train the paper's ablations with several seeds and set them beside its tables",
        "aqaa ablations base=runs/walkthrough",
    ),
    Verb(
        "replay",
        "make any step's batches again from a run folder, and open its dumps",
        "aqaa replay run=runs/sft_1 step=120 out=runs/replay",
        positional="source",
        alias="run",
    ),
    Verb(
        "doctor",
        "check versions, known breakages, disk and devices, each with a cure",
        "aqaa doctor",
        configured=False,
    ),
    Verb("env", "print versions and platform, for a report", "aqaa env", configured=False),
)
VERBS = {verb.name: verb for verb in _TABLE}


def family(word: str) -> list[Verb]:
    """The two-word verbs that begin with ``word``."""
    return [verb for name, verb in VERBS.items() if name.startswith(f"{word} ")]


def find_verb(words: list[str]) -> tuple[Verb, list[str]]:
    """The verb that ``words`` begin with, and the words after it.

    Raises:
        UsageError: no such verb; names the nearest.
    """
    for length in (2, 1):
        if (verb := VERBS.get(" ".join(words[:length]))) is not None:
            return verb, words[length:]
    tried = words[0]
    if members := family(tried):
        second = " or ".join(verb.name.split()[1] for verb in members)
        if len(words) == 1 or "=" in words[1] or words[1].startswith("-"):
            raise UsageError(f"{tried} needs a second word: {tried} {second}")
        tried = " ".join(words[:2])
    near = _nearest(tried, " ".join(words[:2]))
    hint = f"the nearest is `{near}`" if near else "aqaa --help lists all"
    raise UsageError(f"there is no verb {tried}: {hint}")


def _nearest(*tries: str) -> str | None:
    for tried in reversed(tries):
        if near := nearest(tried, list(VERBS)):
            return near
    return None
