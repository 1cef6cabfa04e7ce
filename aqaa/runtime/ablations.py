"""The paper's ablations with several seeds: every variant trained, asked, judged, and compared.

A resumable list of commands over a finished walkthrough, whose corpus, codes and vocoder all
variants share. Each seed of each layout has its own backbone from its first weights on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from aqaa.data.manifest import read_manifest
from aqaa.errors import UsageError
from aqaa.evaluation.ablations import summary, write
from aqaa.lineage import RECORD
from aqaa.runtime.schedule import Schedule, Step

# What a layout is told at its beginning, where it leaves 10 : 15 of two books.
LAYOUTS: dict[str, tuple[str, ...]] = {
    "ratio_10_15": (),
    "text_cot": ("layout.text_block=null", "layout.audio_block=null"),
    "ratio_6_50": ("layout.text_block=6", "layout.audio_block=50"),
    "ratio_3_5": ("layout.text_block=3", "layout.audio_block=5"),
    "audio_only": (),
    "one_book": ("layout.books=linguistic", "layout.audio_block=6"),
}
# SFT of speech alone: the answers without their text, asked for as the task asks.
_SPEECH = ("data.tasks.aqtaa.share=0", "+data.tasks.aqaa={share: 0.62, batch: 8}")
# What is trained on from SFT 1 of the paper's layout, and the mask of a preference.
AFTER = ("sft_2", "dpo", "dpo_all_ids", "merge")
_DONE = "answers.jsonl"


@dataclass(frozen=True)
class Sizes:
    """How long everything is: steps by stage, questions for pairs, questions for a judgement."""

    steps: Mapping[str, int]
    prompts: int
    rows: int
    extra: Sequence[str]


def ablations(
    *,
    out: str,
    base: str,
    seeds: list[int],
    rows: int,
    steps: dict[str, int],
    prompts: int,
    extra: list[str],
    only: list[str] | None = None,
    workers: int = 2,
) -> Path:
    """Train and judge all variants; finished steps are kept.

    Args:
        out: the folder, with one folder a seed and variant.
        base: a finished walkthrough.
        seeds: of weights, mixtures, pairs.
        rows: test questions every model answers.
        steps: optimizer steps by stage.
        prompts: questions asked for preference pairs.
        extra: overrides for every training.
        only: these models alone (None: all); 10 : 15 comes with what is trained on from it.
        workers: processes at a time.

    Returns:
        The report.
    """
    models = [*LAYOUTS, *AFTER]
    if unknown := sorted(set(only or ()) - set(models)):
        raise UsageError(f"only={unknown}: there are {', '.join(models)}")
    if not seeds:
        raise UsageError("seeds=[]: at least one is needed")
    folder, source = Path(out), Path(base)
    for part in ("corpus", "tokens", "vocoder_flow/model", "vocoder_waveform/model"):
        if not (source / part).is_dir():
            raise UsageError(f"{source} lacks {part}: run `aqaa walkthrough out={source}` first")
    chosen = [model for model in models if only is None or model in only]
    sizes = Sizes(steps, prompts, rows, extra)
    steps_of = _Plan(folder, source, sizes)
    for seed in seeds:
        steps_of.add_seed(seed, chosen)
    Schedule(steps_of.steps, folder=folder, workers=workers).run()
    answers = {
        model: [read_manifest(folder / f"seed_{seed}" / f"answers_{model}" / _DONE)
                for seed in seeds]
        for model in chosen
    }  # fmt: skip
    told = {"seeds": len(seeds), "questions": rows, "steps": dict(steps)}
    return write(folder, summary(answers), told)


class _Plan:
    """The commands, in an order a single worker could run them in."""

    def __init__(self, folder: Path, base: Path, sizes: Sizes) -> None:
        self._folder = folder
        self._base = base
        self._sizes = sizes
        self.steps: list[Step] = []

    def add_seed(self, seed: int, models: Sequence[str]) -> None:
        """Everything of one seed; what a model is trained on from comes with it."""
        place = self._folder / f"seed_{seed}"
        layouts = [m for m in models if m in LAYOUTS]
        if "ratio_10_15" not in layouts and any(m in AFTER for m in models):
            layouts = ["ratio_10_15", *layouts]
        for layout in layouts:
            self._layout(place / layout, seed, layout)
        first = place / "ratio_10_15"
        if {"dpo", "dpo_all_ids", "merge"} & set(models):
            self._pairs(first, seed)
        wanted = {*models, *(("sft_2", "dpo") if "merge" in models else ())}
        for stage, verb, more in (
            ("sft_2", "sft", ()),
            ("dpo", "dpo", ()),
            ("dpo_all_ids", "dpo", ("data.mask=none",)),
        ):
            if stage in wanted:
                self._after(first, seed, stage, verb, more)
        if "merge" in models:
            self._merge(first)
        for model in models:
            run = f"ratio_10_15/{model}" if model in AFTER else f"{model}/sft_1"
            self._judge(place, run, model)

    def _add(self, path: Path, words: Sequence[str], needs: Sequence[Path], makes: str) -> None:
        wants = tuple(self._name(need) for need in needs)
        self.steps.append(Step(self._name(path), tuple(words), wants, path / makes))

    def _name(self, path: Path) -> str:
        """A step is called after its folder."""
        return "_".join(path.relative_to(self._folder).parts)

    def _layout(self, place: Path, seed: int, layout: str) -> None:
        """First weights, pre-training and SFT 1 of one layout."""
        words = ["init", f"out={place}/init", f"codes={self._base}/tokens/tokenizer"]
        words += [f"texts={self._base}/corpus/domain.json", "layout.question_books=linguistic"]
        self._add(place / "init", [*words, *LAYOUTS[layout], f"seed={seed}"], (), "")
        self._train(place, seed, "pretrain", "init", ())
        speech = _SPEECH if layout == "audio_only" else ()
        self._train(place, seed, "sft_1", "pretrain/model", speech)

    def _train(
        self, place: Path, seed: int, stage: str, model: str, more: Sequence[str]
    ) -> None:
        words = [stage.split("_")[0], f"preset=walkthrough/{stage}"]
        words += [*self._run(place, seed, stage, stage), *more]
        words += [f"parents.{part}={self._base}/{part}" for part in ("corpus", "tokens")]
        needs = [place / model.split("/")[0]]
        self._add(place / stage, [*words, f"parents.model={place}/{model}"], needs, RECORD)

    def _run(self, place: Path, seed: int, name: str, stage: str) -> list[str]:
        words = [f"run.root={place}", f"run.name={name}", f"run.seed={seed}"]
        words += [f"run.steps={self._sizes.steps[stage]}", "run.overwrite=true"]
        return [*words, *self._sizes.extra]

    def _pairs(self, place: Path, seed: int) -> None:
        words = ["data", "pairs", f"model={place}/sft_1/model", f"out={place}/pairs"]
        words += [f"corpus={self._base}/corpus", f"tokens={self._base}/tokens"]
        words += [f"prompts={self._sizes.prompts}", f"seed={seed}"]
        self._add(place / "pairs", words, [place / "sft_1"], "")

    def _after(
        self, place: Path, seed: int, stage: str, verb: str, more: Sequence[str]
    ) -> None:
        """SFT 2 or a preference, from SFT 1."""
        preset = "sft_2" if verb == "sft" else "dpo"
        if verb == "sft":
            self._train(place, seed, stage, "sft_1/model", more)
            return
        words = [verb, f"preset=walkthrough/{preset}", *self._run(place, seed, stage, preset)]
        words += [*more, f"parents.pairs={place}/pairs", f"parents.model={place}/sft_1/model"]
        self._add(place / stage, words, [place / "pairs", place / "sft_1"], RECORD)

    def _merge(self, place: Path) -> None:
        parts = ("sft_1", "sft_2", "dpo")
        models = ",".join(f"{place}/{part}/model" for part in parts)
        words = ["merge", f"models=[{models}]", "weights=[5,5,1]", f"out={place}/merge"]
        self._add(place / "merge", words, [place / part for part in parts], RECORD)

    def _judge(self, place: Path, run: str, model: str) -> None:
        organs = {
            "tokenizer": self._base / "tokens/tokenizer",
            "backbone": place / run / "model",
            "flow": self._base / "vocoder_flow/model",
            "waveform": self._base / "vocoder_waveform/model",
        }
        path = place / f"answers_{model}"
        words = ["evaluate", f"out={path}", f"corpus={self._base}/corpus", f"name={model}"]
        words += [f"organs.{organ}={folder}" for organ, folder in organs.items()]
        words += [f"rows={self._sizes.rows}", f"mode={_mode(model)}"]
        self._add(path, words, [place / run], "")


def _mode(model: str) -> str:
    return "speech" if model == "audio_only" else "both"
