"""Preference pairs from models' own answers: sample, score, choose (`aqaa data pairs`)."""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from aqaa import lineage
from aqaa.backbone.decoding import Decoder, Sampling
from aqaa.backbone.loading import Backbone, load_backbone
from aqaa.data.corpus import Corpus, answer_text
from aqaa.data.dialogues import nearest_codes
from aqaa.data.domain import EXTRA_PRONUNCIATIONS
from aqaa.data.manifest import write_manifest
from aqaa.data.preferences import message
from aqaa.data.token_store import TokenStore
from aqaa.errors import UsageError
from aqaa.evaluation import scores
from aqaa.evaluation.asking import Asking
from aqaa.evaluation.judge import Ear
from aqaa.evaluation.recognise import Recogniser
from aqaa.progress import track
from aqaa.signals import GROUP_S, CodePair, Turn
from aqaa.storage import atomic_folder, check_replaceable, write_json
from aqaa.vocoder.voice import load_voice

DEAF = "deaf hacking: the question was clear"


def pairs(
    *,
    model: str,
    corpus: str,
    tokens: str,
    out: str,
    others: Sequence[str] = (),
    voice: Mapping[str, str | None] | None = None,
    score: Mapping[str, float] | None = None,
    margin: float = 1.0,
    deaf_share: float = 0.0,
    deaf_replies: Sequence[str] = (),
    prompts: int = 400,
    samples: int = 4,
    temperature: float = 1.0,
    code_noise: float = 0.35,
    seed: int = 0,
    judge: scores.Judge | None = None,
) -> None:
    """Sample answers to noisy training questions and keep the best and the worst of each.

    Where no sample has the expected text, the corpus' own answer is chosen. An answer without text
    is never rejected: as a sequence it would be an answer in sound alone, and the preference would
    say nothing of the text. Killed, the same call goes on with the question it was at.

    Args:
        model: backbone folder to sample from; it becomes the reference of the optimisation.
        corpus: its training questions are asked.
        tokens: their codes.
        out: folder of pairs.jsonl, written as a whole.
        others: further backbones, say earlier checkpoints, that answer the same questions.
        voice: folders ``flow`` and ``waveform``, to hear the answers; without them only words
            count.
        score: weight of each score of :mod:`aqaa.evaluation.scores` (None: ``text`` alone, 0 or 1).
        margin: the chosen answer's total is so much above the rejected one's, at least.
        deaf_share: share of the questions that are also asked clearly, and have one of
            ``deaf_replies`` rejected for the right answer.
        deaf_replies: replies that claim not to have heard.
        prompts: questions asked.
        samples: answers a question and model.
        temperature: of the text ids; the audio is the most likely one.
        code_noise: share of the question's codes replaced, so that a good model errs at all.
        seed: of questions, noise and samples.
        judge: the expected text and the one written to 0..1, for ``score.judge``.
    """
    check_replaceable(out)
    folders = [model, *others]
    hashes = _hashes(model=model, corpus=corpus, tokens=tokens)
    hashes |= _hashes(**{f"other_{number}": other for number, other in enumerate(others)})
    sounds = {k: v for k, v in (voice or {}).items() if v}
    weights = dict(score or {"text": 1.0})
    scores.check_names(weights, sound=len(sounds) == 2, judge=judge is not None)
    backbones, store, source = _opened(folders, tokens, corpus)
    _check_replies(deaf_share, deaf_replies, backbones)
    rng, rows = random.Random(seed), source.rows("train")
    rows = rng.sample(rows, min(prompts, len(rows)))
    plan = {
        "parents": hashes, "voice": _hashes(**sounds),
        "score": weights, "margin": margin, "deaf": [deaf_share, *deaf_replies],
        "questions": [row["id"] for row in rows], "samples": samples, "seed": seed,
        "temperature": temperature, "code_noise": code_noise,
    }  # fmt: skip
    generator = torch.Generator().manual_seed(rng.getrandbits(48))
    maker = _PairMaker(
        writers=[_Writer(folder, b) for folder, b in zip(folders, backbones, strict=True)],
        store=store, samples=samples, code_noise=code_noise,
        sampling=Sampling(text_temperature=temperature),
        chooser=_Chooser(
            weights=weights, margin=margin, hearing=_hearing(sounds, source), judge=judge
        ),
        deaf=_Deaf(deaf_share, list(deaf_replies), seed),
        chance=(rng, generator),
    )  # fmt: skip
    work = Path(out).with_name(f".{Path(out).name}.asking")
    asking = Asking(folder=work, plan=plan, rng=rng, generator=generator)
    outcomes = list(track(asking.ask(rows, maker.outcome), "pairs", len(rows), unit="questions"))
    try:
        _write(out, outcomes, {"seed": seed, "parents": hashes, "score": weights}, margin)
    finally:
        asking.finish()


def _hashes(**folders: str) -> dict[str, str]:
    return {name: lineage.parent(folder).hash for name, folder in folders.items()}


def _write(
    out: str, outcomes: list[dict[str, Any]], about: dict[str, Any], margin: float
) -> None:
    """Write the folder of pairs, and what became of all answers."""
    found = [pair for outcome in outcomes for pair in outcome["pairs"]]
    counts: Counter[str] = Counter()
    for outcome in outcomes:
        counts.update(outcome["counts"])
    if not found:
        raise UsageError(
            f"{len(outcomes)} questions brought no wrong answer with a text that is worse by "
            f"margin={margin:g}: raise code_noise"
        )
    with atomic_folder(out) as folder:
        write_manifest(folder / "pairs.jsonl", found)
        meta = {"prompts": len(outcomes), "pairs": len(found), **about, "counts": dict(counts)}
        write_json(folder / "meta.json", meta)


def _opened(
    folders: Sequence[str], tokens: str, corpus: str
) -> tuple[list[Backbone], TokenStore, Corpus]:
    """The models and what they are asked, which must belong together."""
    backbones, store = [load_backbone(folder) for folder in folders], TokenStore(tokens)
    for folder, backbone in zip(folders, backbones, strict=True):
        if backbone.ids.tokenizer_hash != store.tokenizer_hash:
            raise UsageError(f"{folder} and {tokens} were made with different tokenizers")
    source = Corpus(corpus)
    store.check_corpus(source)
    return backbones, store, source


def _check_replies(share: float, replies: Sequence[str], backbones: Sequence[Backbone]) -> None:
    if not 0 <= share <= 1 or (share and not replies):
        raise UsageError(f"deaf_share={share} must be 0 to 1, with deaf_replies where it is not 0")
    text = backbones[0].ids.text
    for reply in replies if share else ():
        if (written := text.decode(text.encode(reply))) != reply:
            raise UsageError(
                f"the model's text tokenizer writes the reply {reply!r} as {written!r}: give "
                f"deaf_replies of words it knows"
            )


def _hearing(sounds: Mapping[str, str], corpus: Corpus) -> tuple[scores.Speak, Ear] | None:
    if len(sounds) != 2:
        return None
    ear = Recogniser(corpus.domain["answers"], EXTRA_PRONUNCIATIONS)
    return load_voice(sounds["flow"], sounds["waveform"]).speak, ear


@dataclass(frozen=True)
class _Answer:
    """An answer as a message, its text, its scores, their total, and who gave it."""

    message: dict[str, Any]
    text: str
    scores: dict[str, float]
    total: float
    origin: str


class _Writer:
    """Writes answers of one model, named by its folder."""

    def __init__(self, name: str, backbone: Backbone) -> None:
        self.name, self.ids = name, backbone.ids
        self._decoder = Decoder(backbone)

    def prompt(self, question: CodePair) -> list[int]:
        """Ids up to the answer."""
        turns = [Turn("human", speech=[question])]
        return self.ids.layout.prompt(turns, self.ids.text, self.ids.vocabulary)

    def begin(
        self, prompt: list[int], sampling: Sampling, generator: torch.Generator
    ) -> tuple[list[int], str]:
        """An answer as far as the end of its text, and the text."""
        stop = self.ids.vocabulary.text_end
        begun = self._decoder.answer(
            prompt, sampling=sampling, generator=generator, stop_at=stop
        )
        return begun, self.ids.layout.parse(begun, self.ids.text, self.ids.vocabulary).text

    def speak(
        self, prompt: list[int], begun: list[int], sampling: Sampling
    ) -> tuple[dict[str, Any], list[CodePair], bool]:
        """The whole answer as a message, its codes, and whether it ended by itself."""
        whole = self._decoder.answer(prompt, sampling=sampling, begun=begun)
        answer = self.ids.layout.parse(whole, self.ids.text, self.ids.vocabulary)
        return message("assistant", answer.text, answer.speech), answer.speech, answer.complete


class _Chooser:
    """Scores answers, and says which of two is better by enough."""

    def __init__(
        self, *, weights: dict[str, float], margin: float,
        hearing: tuple[scores.Speak, Ear] | None, judge: scores.Judge | None,
    ) -> None:  # fmt: skip
        self._weights, self._margin, self._judge = weights, margin, judge
        self._hearing = hearing
        self.only_words = hearing is None and judge is None

    def score(
        self, text: str, speech: list[CodePair], expected: str, usual_s: float
    ) -> tuple[dict[str, float], float]:
        """All scores of an answer, and their total."""
        found = scores.of_text(text, expected)
        if self._judge is not None:
            found["judge"] = self._judge(expected, text)
        if self._hearing is not None:
            speak, ear = self._hearing
            whole = CodePair(
                [c for pair in speech for c in pair.linguistic],
                [c for pair in speech for c in pair.semantic],
            )
            sound = speak(whole) if whole.groups else None
            found |= scores.of_sound(sound, text, expected, usual_s, ear)
        return found, scores.total(found, self._weights)

    def apart(self, chosen: float, rejected: float) -> bool:
        """Whether two totals are far enough apart."""
        return chosen - rejected >= self._margin - 1e-9


@dataclass(frozen=True)
class _Deaf:
    """Which questions also get a reply that claims not to have heard; chance of its own."""

    share: float
    replies: list[str]
    seed: int

    def reply(self, question: str) -> str | None:
        """The reply to be rejected, None for most."""
        rng = random.Random(f"{self.seed}:{question}")
        return rng.choice(self.replies) if rng.random() < self.share else None


class _PairMaker:
    """Asks one question after another; ``chance`` decides noise and samples."""

    def __init__(
        self, *, writers: list[_Writer], store: TokenStore, sampling: Sampling, samples: int,
        code_noise: float, chooser: _Chooser, deaf: _Deaf,
        chance: tuple[random.Random, torch.Generator],
    ) -> None:  # fmt: skip
        self._writers, self._store, self._sampling = writers, store, sampling
        self._samples, self._noise, self._chooser, self._deaf = samples, code_noise, chooser, deaf
        self._near = nearest_codes(store)
        self._rng, self._generator = chance

    def outcome(self, row: dict[str, Any]) -> dict[str, Any]:
        """The preference rows of one question, none to two, and what became of its answers."""
        counts: Counter[str] = Counter()
        clear, expected = self._store[f"train/{row['id']}"], answer_text(row)
        spoken = self._store[f"answers/{row['meta']['answer_id']}"]
        own = message("assistant", expected, [spoken])
        found = [self._preference(row["id"], self._noisy(clear), expected, spoken, counts)]
        if (reply := self._deaf.reply(row["id"])) is not None:
            rejected = message("assistant", reply, [spoken])  # audio is masked: only words differ
            found.append(self._row(f"deaf-{row['id']}", clear, own, rejected, 1.0, DEAF))
            counts["deaf"] += 1
        return {"pairs": [pair for pair in found if pair is not None], "counts": counts}

    def _preference(
        self, name: str, question: CodePair, expected: str, spoken: CodePair, counts: Counter[str]
    ) -> dict[str, Any] | None:
        """The pair of a question, None where no answer is bad enough."""
        begun = []
        for writer in self._writers:
            prompt = writer.prompt(question)
            for _ in range(self._samples):
                begun.append((writer, prompt, *writer.begin(prompt, self._sampling,
                                                            self._generator)))  # fmt: skip
        right = sum(text == expected for *_, text in begun)
        counts["answers"] += len(begun)
        counts["answers without text"] += sum(text == "" for *_, text in begun)
        counts["answers with another text"] += sum(text not in ("", expected) for *_, text in begun)
        if self._chooser.only_words:  # what is not kept need not be spoken
            firsts = {text: entry for entry in reversed(begun) if (text := entry[3])}
            wrong = next((text for *_, text in begun if text not in ("", expected)), None)
            begun = [firsts[text] for text in (expected, wrong) if text in firsts]
        usual_s = spoken.groups * float(GROUP_S)
        answers = [self._answer(*entry, expected, usual_s, counts) for entry in begun]
        best = [answer for answer in answers if answer.text == expected]
        chosen = max(best, key=lambda a: a.total) if best else self._own(expected, spoken)
        worse = [a for a in answers if a.text not in ("", chosen.text)]
        rejected = min(worse, key=lambda a: a.total, default=None)
        if rejected is None or not self._chooser.apart(chosen.total, rejected.total):
            counts["questions without a pair"] += 1
            return None
        many = len(self._writers) * self._samples
        reason = f"expected {expected!r}, {right} of {many} samples were right"
        pair = self._row(f"pair-{name}", question, chosen.message, rejected.message,
                         chosen.total - rejected.total, reason)  # fmt: skip
        if not self._chooser.only_words or len(self._writers) > 1:
            for side, answer in (("chosen", chosen), ("rejected", rejected)):
                pair["meta"][side] = {"origin": answer.origin, **answer.scores}
        return pair

    def _answer(
        self, writer: _Writer, prompt: list[int], begun: list[int], text: str, expected: str,
        usual_s: float, counts: Counter[str],
    ) -> _Answer:  # fmt: skip
        told, speech, complete = writer.speak(prompt, begun, self._sampling)
        counts["spoken answers that were cut"] += not complete
        counts["spoken answers without sound"] += not any(pair.groups for pair in speech)
        found, total = self._chooser.score(text, speech, expected, usual_s)
        return _Answer(told, text, found, total, writer.name)

    def _own(self, expected: str, spoken: CodePair) -> _Answer:
        """The corpus' own answer."""
        usual_s = spoken.groups * float(GROUP_S)
        found, total = self._chooser.score(expected, [spoken], expected, usual_s)
        told = message("assistant", expected, [spoken])
        return _Answer(told, expected, found, total, "corpus")

    def _row(
        self, name: str, question: CodePair, chosen: dict[str, Any], rejected: dict[str, Any],
        margin: float, reason: str,
    ) -> dict[str, Any]:  # fmt: skip
        return {
            "id": name,
            "kind": "preference",
            "prompt": [message("user", "", [question])],
            "chosen": [chosen],
            "rejected": [rejected],
            "margin": margin,
            "reason": reason,
            "meta": {"tokenizer_hash": self._writers[0].ids.tokenizer_hash},
        }

    def _noisy(self, question: CodePair) -> CodePair:
        codes = [
            int(self._near[code, self._rng.randrange(self._near.shape[1])])
            if self._rng.random() < self._noise
            else code
            for code in question.linguistic
        ]
        return CodePair(codes, question.semantic)
