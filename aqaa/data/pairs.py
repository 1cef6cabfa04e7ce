"""Preference pairs from a model's own answers: sample, score, choose (`aqaa data pairs`)."""

import random
from typing import Any

import torch

from aqaa import lineage
from aqaa.backbone.decoding import Decoder, Sampling
from aqaa.backbone.loading import Backbone, load_backbone
from aqaa.data.corpus import Corpus, answer_text
from aqaa.data.dialogues import nearest_codes
from aqaa.data.manifest import write_manifest
from aqaa.data.preferences import message
from aqaa.data.token_store import TokenStore
from aqaa.errors import UsageError
from aqaa.progress import track
from aqaa.signals import CodePair, Turn
from aqaa.storage import atomic_folder, check_replaceable, write_json


def pairs(
    *,
    model: str,
    corpus: str,
    tokens: str,
    out: str,
    prompts: int = 400,
    samples: int = 4,
    temperature: float = 1.0,
    code_noise: float = 0.35,
    seed: int = 0,
) -> None:
    """Sample answers to noisy training questions and keep the best and the worst of each.

    An answer scores 1 if its text is the expected one, else 0 (the objective 0/1 judgement of
    Step-Audio's RLHF). Where no sample is right, the corpus' own answer is chosen; where all are,
    there is no pair. A wrong sample without any text is left out: as a sequence it would be an
    answer in sound alone, and the preference would say nothing of the text.

    Args:
        model: backbone folder to sample from; it becomes the reference of the optimisation.
        corpus: its training questions are asked.
        tokens: their codes.
        out: folder of pairs.jsonl, written as a whole.
        prompts: questions asked.
        samples: answers a question.
        temperature: of the text ids; the audio is the most likely one.
        code_noise: share of the question's codes replaced, so that a good model errs at all.
        seed: of questions, noise and samples.
    """
    check_replaceable(out)
    parents = {"model": model, "corpus": corpus, "tokens": tokens}
    hashes = {name: lineage.parent(path).hash for name, path in parents.items()}
    backbone = load_backbone(model)
    store = TokenStore(tokens)
    if backbone.ids.tokenizer_hash != store.tokenizer_hash:
        raise UsageError(f"{model} and {tokens} were made with different tokenizers")
    source = Corpus(corpus)
    store.check_corpus(source)
    rows = source.rows("train")
    rng = random.Random(seed)
    rows = rng.sample(rows, min(prompts, len(rows)))
    maker = _PairMaker(
        backbone=backbone,
        store=store,
        samples=samples,
        temperature=temperature,
        code_noise=code_noise,
        rng=rng,
    )
    asked = track(rows, "pairs", len(rows), unit="questions")
    found = [pair for row in asked if (pair := maker.pair(row)) is not None]
    if not found:
        raise UsageError(
            f"{len(rows)} questions brought no wrong answer with a text: raise code_noise"
        )
    with atomic_folder(out) as folder:
        write_manifest(folder / "pairs.jsonl", found)
        meta = {"prompts": len(rows), "pairs": len(found), "seed": seed, "parents": hashes}
        write_json(folder / "meta.json", meta)


class _PairMaker:
    """Asks one question after another; ``rng`` decides noise and samples."""

    def __init__(
        self,
        *,
        backbone: Backbone,
        store: TokenStore,
        samples: int,
        temperature: float,
        code_noise: float,
        rng: random.Random,
    ) -> None:
        self._backbone = backbone
        self._decoder = Decoder(backbone)
        self._store = store
        self._samples = samples
        self._sampling = Sampling(text_temperature=temperature)
        self._noise = code_noise
        self._near = nearest_codes(store)
        self._rng = rng
        self._generator = torch.Generator().manual_seed(rng.getrandbits(48))

    def pair(self, row: dict[str, Any]) -> dict[str, Any] | None:
        """The preference row of one question, None where no sample with a text was wrong."""
        question = self._noisy(self._store[f"train/{row['id']}"])
        expected = answer_text(row)
        ids = self._backbone.ids
        turns = [Turn("human", speech=[question])]
        prompt = ids.layout.prompt(turns, ids.text, ids.vocabulary)
        answers = [self._write(prompt) for _ in range(self._samples)]
        wrong = [a for a in answers if self._text(a) not in ("", expected)]
        right = [a for a in answers if self._text(a) == expected]
        if not wrong:
            return None
        if right:
            chosen = self._speak(prompt, right[0])
        else:
            spoken = self._store[f"answers/{row['meta']['answer_id']}"]
            chosen = message("assistant", expected, [spoken])
        return {
            "id": f"pair-{row['id']}",
            "kind": "preference",
            "prompt": [message("user", "", [question])],
            "chosen": [chosen],
            "rejected": [self._speak(prompt, wrong[0])],
            "margin": 1.0,
            "reason": f"expected {expected!r}, {len(right)} of {len(answers)} samples were right",
            "meta": {"tokenizer_hash": ids.tokenizer_hash},
        }

    def _write(self, prompt: list[int]) -> list[int]:
        """An answer as far as the end of its text."""
        return self._decoder.answer(
            prompt,
            sampling=self._sampling,
            generator=self._generator,
            stop_at=self._backbone.ids.vocabulary.text_end,
        )

    def _speak(self, prompt: list[int], begun: list[int]) -> dict[str, Any]:
        """The whole answer as a message."""
        ids = self._backbone.ids
        whole = self._decoder.answer(prompt, sampling=self._sampling, begun=begun)
        answer = ids.layout.parse(whole, ids.text, ids.vocabulary)
        return message("assistant", answer.text, answer.speech)

    def _text(self, answer: list[int]) -> str:
        ids = self._backbone.ids
        return ids.layout.parse(answer, ids.text, ids.vocabulary).text

    def _noisy(self, question: CodePair) -> CodePair:
        codes = [
            int(self._near[code, self._rng.randrange(self._near.shape[1])])
            if self._rng.random() < self._noise
            else code
            for code in question.linguistic
        ]
        return CodePair(codes, question.semantic)
