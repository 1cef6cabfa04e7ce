"""The whole chain, tiny, by one command: corpus, every stage, answers, judgement, report."""

import re
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
_ANSWERS = "answers_"
_YARDSTICKS = f"{_ANSWERS}sft_1_0"  # where a worker waits anyway


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
    sizes = [f"questions={questions}", f"test={test}", f"workers={workers}"]
    words = ["data", "synthesize", *chain.at(out="corpus"), *sizes]
    chain.add("corpus", [*words, f"families={_list(families)}"])
    for stage in ("tokenizer_linguistic", "tokenizer_semantic", "vocoder_waveform"):
        chain.train(stage, steps, extra, {"corpus": "corpus"})
    chain.add_language_model(steps, extra, prompts)
    chain.add_answers(test, compared)
    Schedule(chain.steps, folder=folder, workers=workers).run()
    settings = {
        "questions": questions,
        "test questions": test,
        "prompts for pairs": prompts,
        "families": "all" if families is None else ", ".join(families),
        "overrides": " ".join(extra) or "none",
        "workers": workers,
    }
    report = finish(folder, chain.steps, seed=seed, shown=shown, settings=settings)
    print_table(read_json(folder / "results.json"))
    return report


def _list(names: Iterable[str] | None) -> str:
    return "null" if names is None else f"[{','.join(names)}]"


def _quoted(path: str) -> str:
    """A path as Hydra's grammar reads it back unchanged; a plain one stays as it is."""
    if re.fullmatch(r"[\w./-]+", path, re.ASCII):
        return path
    escaped = path.replace("\\'", "\\\\'").replace("'", "\\'")
    return f"'{escaped}'"


class _Chain:
    """The steps, in an order a single worker could run them in."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder = folder
        self._seed = seed
        self.steps: list[Step] = []

    def at(self, prefix: str = "", **paths: str) -> list[str]:
        """Overrides below ``prefix`` whose values are paths below the folder."""
        return [f"{prefix}{key}={self._path(path)}" for key, path in paths.items()]

    def _path(self, path: str) -> str:
        return _quoted(str(self._folder / path))

    def add(
        self,
        name: str,
        words: list[str],
        needs: tuple[str, ...] = (),
        *,
        makes: str = "",
        seeded: bool = True,
    ) -> None:
        """A plain command that makes ``folder/name``, or ``makes`` below the folder."""
        words = [*words, f"seed={self._seed}"] if seeded else words
        self.steps.append(Step(name, tuple(words), needs, self._folder / (makes or name)))

    def train(
        self, stage: str, steps: dict[str, int], extra: list[str], parents: dict[str, str]
    ) -> None:
        """A training stage under its walkthrough preset; ``parents`` are folders by key."""
        words = [stage.split("_")[0], f"preset=walkthrough/{stage}", *self.at("run.", root="")]
        words += [f"run.name={stage}", f"run.seed={self._seed}", f"run.steps={steps[stage]}"]
        words += ["run.overwrite=true", *extra, *self.at("parents.", **parents)]
        needs = tuple(dict.fromkeys(path.split("/")[0] for path in parents.values()))
        self.steps.append(Step(stage, tuple(words), needs, self._folder / stage / lineage.RECORD))

    def add_language_model(self, steps: dict[str, int], extra: list[str], prompts: int) -> None:
        """Tokens, the backbone's stages, the flow."""
        books = self.at(
            linguistic="tokenizer_linguistic/model", semantic="tokenizer_semantic/model"
        )
        words = ["data", "tokenize", *self.at(corpus="corpus", out="tokens"), *books]
        needs = ("corpus", "tokenizer_linguistic", "tokenizer_semantic")
        self.add("tokens", [*words, "question_books=linguistic"], needs, seeded=False)
        paths = self.at(out="init", codes="tokens/tokenizer", texts="corpus/domain.json")
        self.add("init", ["init", *paths, "layout.question_books=linguistic"], ("tokens",))
        source = {"corpus": "corpus", "tokens": "tokens"}
        self.train("pretrain", steps, extra, {**source, "model": "init"})
        self.train("vocoder_flow", steps, extra, source)
        self.train("sft_1", steps, extra, {**source, "model": "pretrain/model"})
        self.train("sft_2", steps, extra, {**source, "model": "sft_1/model"})
        paths = self.at(model="sft_1/model", corpus="corpus", tokens="tokens", out="pairs")
        self.add("pairs", ["data", "pairs", *paths, f"prompts={prompts}"], ("tokens", "sft_1"))
        self.train("dpo", steps, extra, {"pairs": "pairs", "model": "sft_1/model"})
        models = ",".join(self._path(f"{part}/model") for part in PARTS)
        words = ["merge", f"models=[{models}]", "weights=[5,5,1]", *self.at(out="merge")]
        self.add("merge", words, PARTS, makes=f"merge/{lineage.RECORD}", seeded=False)

    def add_answers(self, test: int, compared: int) -> None:
        """Yardsticks and answers; those of the parts come first, where a worker waits."""
        voice = ("vocoder_flow", "vocoder_waveform", "tokens", "corpus")
        organs = self.at(
            "organs.",
            tokenizer="tokens/tokenizer",
            flow="vocoder_flow/model",
            waveform="vocoder_waveform/model",
        )
        backbone = self.at("organs.", backbone="merge/model")
        words = ["bundle", *self.at(out="model"), *backbone, *organs]
        self.add("model", words, ("merge", *voice), seeded=False)
        jobs = [(part, 0, 1, compared) for part in PARTS]
        jobs += [("merge", shard, MERGE_SHARDS, test) for shard in range(MERGE_SHARDS)]
        for model, shard, shards, rows in jobs:
            name = f"{_ANSWERS}{model}_{shard}"
            words = ["evaluate", *self.at(out=name, corpus="corpus"), *organs]
            words += [f"name={model}", f"rows={rows}"]
            words += self.at("organs.", backbone=f"{model}/model")
            words += [f"shard={shard}/{shards}"]
            words += [f"yardsticks={'true' if name == _YARDSTICKS else 'false'}"]
            self.add(name, words, (model, *voice), seeded=False)


def finish(
    folder: Path, steps: list[Step], *, seed: int, shown: int, settings: dict[str, Any]
) -> Path:
    """Collect rows and records into results.json and report.html, with the settings named there."""
    answered = sorted(step.makes for step in steps if step.name.startswith(_ANSWERS))
    rows = [
        {**row, **{k: f"{part.name}/{row[k]}" for k in ("question", "answer") if row[k]}}
        for part in answered
        for row in read_manifest(part / "answers.jsonl")
    ]
    flat, details = summarise(rows)
    yardsticks = read_json(folder / _YARDSTICKS / "yardsticks.json")
    plain = {k: Prosody(**v) for k, v in yardsticks.pop("plain").items()}
    details |= yardsticks
    results: dict[str, Any] = {
        **flat,
        **{name: figure["value"] for name, figure in yardsticks.items()},
        "details": details,
        "control": control(rows, folder=folder, plain=plain),
        "stages": stage_records(folder, steps),
        "seed": seed,
        "versions": stage_versions(folder),
    }
    write_json(folder / "results.json", results)
    tokens = read_json(folder / "tokens" / "meta.json")
    runs = {stage: folder / stage for stage in STAGES if stage != "merge"}
    counted = "all clips" if tokens["question_books"] == "both" else "answer clips"
    books = {
        "linguistic, all clips": tokens["usage"]["linguistic"],
        f"semantic, {counted}": tokens["usage"]["semantic"],
    }
    extra = {"codebooks": books, "sounds": folder, "settings": settings}
    return write_report(
        folder=folder, results=results, answers=rows, runs=runs, extra=extra, shown=shown
    )


def stage_versions(folder: Path) -> dict[str, str]:
    """Versions the stages were made with; several where kept runs are older than new ones."""
    found: dict[str, list[str]] = {}
    for stage in STAGES:
        if (done := lineage.read_lineage(folder / stage)) is not None:
            for name, version in done.versions.items():
                found.setdefault(name, []).append(version)
    return {name: " and ".join(dict.fromkeys(several)) for name, several in found.items()}


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

    rows = [
        (name, _number(figure["value"]), str(figure["n"]), _interval(figure), figure["split"])
        for name, figure in results["details"].items()
        if name.count(".") <= 1 and "family" not in name and "style" not in name
    ]
    for style, figure in results["control"].items():
        for ratio in ("duration_ratio", "f0_ratio"):
            value, n = _number(figure[ratio]), str(figure["n"])
            rows.append((f"{style} {ratio}", value, n, "", "over the plain answer"))
    table = Table()
    for place, name in enumerate(("figure", "value", "n", "95 % interval")):
        # Names and numbers stay whole where the terminal is narrow; the last column gives way.
        width = max(len(name), *(len(row[place]) for row in rows))
        table.add_column(name, no_wrap=True, min_width=width)
    table.add_column("measured on")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _interval(figure: dict[str, Any]) -> str:
    return "" if figure["ci95"] is None else "{:.3f} .. {:.3f}".format(*figure["ci95"])
