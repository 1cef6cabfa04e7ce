"""The whole chain, tiny, by one command: corpus, every stage, answers, judgement, report."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from aqaa import lineage
from aqaa.data.manifest import read_manifest
from aqaa.errors import UsageError
from aqaa.evaluation.measure import control, summarise
from aqaa.evaluation.prosody import Prosody
from aqaa.evaluation.report import write_report
from aqaa.runtime.schedule import Schedule, Step
from aqaa.storage import read_json, write_json

STAGES = (
    "tokenizer_linguistic", "tokenizer_semantic", "pretrain", "sft_1", "sft_2", "dpo", "merge",
    "vocoder_flow", "vocoder_waveform",
)  # fmt: skip
PARTS = ("sft_1", "sft_2", "dpo")
MERGE_SHARDS = 2


def walkthrough(
    *,
    out: str,
    questions: int,
    test: int,
    compared: int,
    steps: dict[str, int],
    prompts: int,
    extra: list[str],
    families: list[str] | None = None,
    seed: int = 0,
    workers: int = 2,
    shown: int = 24,
) -> Path:
    """Run every stage and judge the result; finished steps are kept.

    Args:
        out: the folder, with one run folder a stage.
        questions: training questions.
        test: test questions the merged model answers.
        compared: test questions each of its three parts answers.
        steps: optimizer steps by stage.
        prompts: questions asked for preference pairs.
        extra: overrides for every training stage.
        families: families of facts (None: all).
        seed: of everything.
        workers: processes at a time.
        shown: questions with a card in the report.

    Returns:
        The report.
    """
    folder = Path(out)
    chain = _Chain(folder, seed)
    chain.add(
        "corpus",
        [
            "data",
            "synthesize",
            f"out={folder}/corpus",
            f"questions={questions}",
            f"test={test}",
            f"workers={workers}",
            f"families={_list(families)}",
        ],
    )
    for stage in ("tokenizer_linguistic", "tokenizer_semantic", "vocoder_waveform"):
        chain.train(stage, steps, extra, {"corpus": "corpus"})
    chain.add_language_model(steps, extra, prompts)
    chain.add_answers(test, compared)
    Schedule(chain.steps, folder=folder, workers=workers).run()
    report = finish(folder, chain.steps, seed=seed, shown=shown)
    print_table(read_json(folder / "results.json"))
    return report


def _list(names: Iterable[str] | None) -> str:
    return "null" if names is None else f"[{','.join(names)}]"


class _Chain:
    """The steps, in an order a single worker could run them in."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder = folder
        self._seed = seed
        self.steps: list[Step] = []

    def add(
        self, name: str, words: list[str], needs: tuple[str, ...] = (), makes: str = ""
    ) -> None:
        """A plain command that makes ``folder/name``, or ``makes`` below the folder."""
        seeded = [*words, f"seed={self._seed}"] if words[-1] != "unseeded" else words[:-1]
        self.steps.append(Step(name, tuple(seeded), needs, self._folder / (makes or name)))

    def train(
        self, stage: str, steps: dict[str, int], extra: list[str], parents: dict[str, str]
    ) -> None:
        """A training stage under its walkthrough preset; ``parents`` are folders by key."""
        verb = stage.split("_")[0]
        words = [
            verb,
            f"preset=walkthrough/{stage}",
            f"run.root={self._folder}",
            f"run.name={stage}",
        ]
        words += [
            f"run.seed={self._seed}",
            f"run.steps={steps[stage]}",
            "run.overwrite=true",
            *extra,
        ]
        words += [f"parents.{key}={self._folder}/{path}" for key, path in parents.items()]
        needs = tuple(dict.fromkeys(path.split("/")[0] for path in parents.values()))
        self.steps.append(Step(stage, tuple(words), needs, self._folder / stage / lineage.RECORD))

    def add_language_model(self, steps: dict[str, int], extra: list[str], prompts: int) -> None:
        """Tokens, the backbone's stages, the flow."""
        out = self._folder
        tokenizers = [
            f"linguistic={out}/tokenizer_linguistic/model",
            f"semantic={out}/tokenizer_semantic/model",
        ]
        self.add(
            "tokens",
            [
                "data",
                "tokenize",
                f"corpus={out}/corpus",
                f"out={out}/tokens",
                *tokenizers,
                "question_books=linguistic",
                "unseeded",
            ],
            ("corpus", "tokenizer_linguistic", "tokenizer_semantic"),
        )
        self.add(
            "init",
            [
                "init",
                f"out={out}/init",
                f"codes={out}/tokens/tokenizer",
                f"texts={out}/corpus/domain.json",
                "layout.question_books=linguistic",
            ],
            ("tokens",),
        )
        source = {"corpus": "corpus", "tokens": "tokens"}
        self.train("pretrain", steps, extra, {**source, "model": "init"})
        self.train("vocoder_flow", steps, extra, source)
        self.train("sft_1", steps, extra, {**source, "model": "pretrain/model"})
        self.train("sft_2", steps, extra, {**source, "model": "sft_1/model"})
        self.add(
            "pairs",
            [
                "data",
                "pairs",
                f"model={out}/sft_1/model",
                f"corpus={out}/corpus",
                f"tokens={out}/tokens",
                f"out={out}/pairs",
                f"prompts={prompts}",
            ],
            ("tokens", "sft_1"),
        )
        self.train("dpo", steps, extra, {"pairs": "pairs", "model": "sft_1/model"})
        models = ",".join(f"{out}/{part}/model" for part in PARTS)
        self.add(
            "merge",
            ["merge", f"models=[{models}]", "weights=[5,5,1]", f"out={out}/merge", "unseeded"],
            PARTS,
            f"merge/{lineage.RECORD}",
        )

    def add_answers(self, test: int, compared: int) -> None:
        """Yardsticks and answers; those of the parts come first, where a worker waits."""
        voice = ("vocoder_flow", "vocoder_waveform", "tokens", "corpus")
        organs = [
            f"corpus={self._folder}/corpus",
            f"organs.tokenizer={self._folder}/tokens/tokenizer",
            f"organs.flow={self._folder}/vocoder_flow/model",
            f"organs.waveform={self._folder}/vocoder_waveform/model",
        ]
        self.add(
            "model",
            [
                "bundle",
                f"out={self._folder}/model",
                f"organs.backbone={self._folder}/merge/model",
                *organs[1:],
                "unseeded",
            ],
            ("merge", *voice),
        )
        jobs = [(part, 0, 1, compared) for part in PARTS]
        jobs += [("merge", shard, MERGE_SHARDS, test) for shard in range(MERGE_SHARDS)]
        for model, shard, shards, rows in jobs:
            name = f"answers_{model}_{shard}"
            words = [
                "evaluate",
                f"out={self._folder}/{name}",
                *organs,
                f"name={model}",
                f"rows={rows}",
                f"organs.backbone={self._folder}/{model}/model",
                f"shard={shard}/{shards}",
                f"yardsticks={'true' if model == 'sft_1' else 'false'}",
                "unseeded",
            ]
            self.add(name, words, (model, *voice))


def finish(folder: Path, steps: list[Step], *, seed: int, shown: int) -> Path:
    """Collect rows and records into results.json, model/ and report.html."""
    answered = sorted(folder.glob("answers_*_*"))
    rows = [
        {**row, **{k: f"{part.name}/{row[k]}" for k in ("question", "answer") if row[k]}}
        for part in answered
        for row in read_manifest(part / "answers.jsonl")
    ]
    flat, details = summarise(rows)
    yardsticks = read_json(folder / "answers_sft_1_0" / "yardsticks.json")
    plain = {k: Prosody(**v) for k, v in yardsticks.pop("plain").items()}
    details |= yardsticks
    results: dict[str, Any] = {
        **flat,
        **{name: figure["value"] for name, figure in yardsticks.items()},
        "details": details,
        "control": control(rows, folder=folder, plain=plain),
        "stages": stage_records(folder, steps),
        "seed": seed,
        "versions": lineage.versions(),
    }
    write_json(folder / "results.json", results)
    usage = read_json(folder / "tokens" / "meta.json")["usage"]
    runs = {stage: folder / stage for stage in STAGES if stage != "merge"}
    extra = {"codebooks": usage, "sounds": folder}
    return write_report(
        folder=folder, results=results, answers=rows, runs=runs, extra=extra, shown=shown
    )


def stage_records(folder: Path, steps: list[Step]) -> list[dict[str, Any]]:
    """One record a stage; parents are the stages it was made from, through corpora and stores."""
    needs = {step.name: step.needs for step in steps}

    def stages_above(name: str) -> list[str]:
        found = [[n] if n in STAGES else stages_above(n) for n in needs[name]]
        return list(dict.fromkeys(stage for part in found for stage in part))

    records = []
    for stage in STAGES:
        done = lineage.read_lineage(folder / stage)
        if done is None:
            raise UsageError(f"{folder / stage} is not a finished run: run the walkthrough again")
        records.append(
            {
                "stage": stage,
                "run": str(folder / stage),
                "parents": stages_above(stage),
                "steps": done.steps,
                "seconds": round(done.seconds, 1),
                "parameters": done.parameters,
            }
        )
    return records


def print_table(results: dict[str, Any]) -> None:
    """The headline figures and the control ratios, on the terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for name in ("figure", "value", "n", "95 % interval"):
        table.add_column(name, no_wrap=True)
    table.add_column("measured on")
    for name, figure in results["details"].items():
        if name.count(".") <= 1 and "family" not in name and "style" not in name:
            interval = "" if figure["ci95"] is None else "{:.3f} .. {:.3f}".format(*figure["ci95"])
            value = "-" if figure["value"] is None else f"{figure['value']:.3f}"
            table.add_row(name, value, str(figure["n"]), interval, figure["split"])
    for style, figure in results["control"].items():
        ratios = ", ".join(f"{k} {v:.2f}" for k, v in figure.items() if k.endswith("ratio") and v)
        table.add_row(f"control {style}", ratios, str(figure["n"]), "", "against the plain answer")
    Console().print(table)
