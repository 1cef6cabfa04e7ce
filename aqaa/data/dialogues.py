"""Batches for the backbone: dialogues of a corpus in the layouts of the training tasks.

Letters: B sequences, T ids.
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from aqaa.backbone.loading import Ids
from aqaa.data.corpus import Corpus, answer_text, question_part
from aqaa.data.domain import STYLES
from aqaa.data.sampler import BucketSampler, draws
from aqaa.data.token_store import TokenStore
from aqaa.errors import UsageError
from aqaa.signals import Dialogue, Turn
from aqaa.stream import Slot
from aqaa.tokenizer.speech_tokenizer import SpeechTokenizer

_LENGTH_JITTER_TOKENS = 6.0
_NEIGHBOURS = 8
_STYLE_WORDS = {style.name: style.words for style in STYLES}


class TokenBatch(NamedTuple):
    """``input_ids`` (B, T) right-padded, ``targets`` and ``slots`` (B, T) of the next id.

    ``sources`` (B, T) is the place of each position's task in ``TASKS``. ``position_ids`` (B, T)
    restart at 0 with every document of a packed row; None where a row is one document.
    """

    task: str
    input_ids: Tensor
    targets: Tensor
    slots: Tensor
    sources: Tensor
    position_ids: Tensor | None = None


@dataclass(frozen=True)
class Task:
    """One kind of sequence in a mixture.

    Args:
        share: of the steps, relative to the other tasks.
        batch: sequences a step.
    """

    share: float
    batch: int = 8


@dataclass(frozen=True)
class Material:
    """What tasks are built from: a chat row and the codes of its question and answer."""

    row: dict[str, Any]
    question: Turn
    answer: Turn

    @property
    def style_words(self) -> str:
        """Words that ask for the answer's style, '' for a plain one."""
        return _STYLE_WORDS[self.row["meta"]["style"]]


def _system(text: str) -> Turn:
    return Turn("system", text)


def _continuation(m: Material) -> Dialogue:
    return [_system("continue"), Turn("assistant", speech=m.answer.speech, loss=True)]


def _asr(m: Material) -> Dialogue:
    words = question_part(m.row)["text"]
    return [_system("transcribe"), m.question, Turn("assistant", words, loss=True)]


def _tts(m: Material) -> Dialogue:
    words = f"{m.answer.text} {m.style_words}".strip()
    spoken = Turn("assistant", speech=m.answer.speech, loss=True)
    return [_system("speak"), Turn("human", words), spoken]


def _interleaved(m: Material) -> Dialogue:
    # The style is named, or the same text would have five different sounds.
    return [_system(f"read {m.style_words}".strip()), m.answer]


def _tqta(m: Material) -> Dialogue:
    words = question_part(m.row)["text"]
    return [_system("write"), Turn("human", words), Turn("assistant", m.answer.text, loss=True)]


def _aqta(m: Material) -> Dialogue:
    return [_system("write"), m.question, Turn("assistant", m.answer.text, loss=True)]


def _aqtaa(m: Material) -> Dialogue:
    return [m.question, m.answer]


def _aqaa(m: Material) -> Dialogue:
    return [_system("sound"), m.question, Turn("assistant", speech=m.answer.speech, loss=True)]


# Formats as the paper names them: T text, A audio, Q query, A answer.
TASKS: dict[str, Callable[[Material], Dialogue]] = {
    "continuation": _continuation,
    "asr": _asr,
    "tts": _tts,
    "interleaved": _interleaved,
    "tqta": _tqta,
    "aqta": _aqta,
    "aqtaa": _aqtaa,
    "aqaa": _aqaa,
}


class Materials:
    """Rows of one split with their codes, as turns: one question and its answer a row.

    A row's system message, ``loss`` and ``weight`` are not read: the task decides what is learned.
    """

    def __init__(self, corpus: Corpus, store: TokenStore, split: str) -> None:
        self._items = [self._build(row, store, split) for row in corpus.rows(split)]

    @staticmethod
    def _build(row: dict[str, Any], store: TokenStore, split: str) -> Material:
        asked = sum(message["role"] in ("user", "human") for message in row["messages"])
        if asked != 1:
            raise UsageError(
                f"row {row['id']} of {split}.jsonl has {asked} user messages: only dialogues of "
                f"one question and one answer can be trained on"
            )
        question = Turn("human", speech=[store[f"{split}/{row['id']}"]])
        spoken = store[f"answers/{row['meta']['answer_id']}"]
        return Material(row, question, Turn("assistant", answer_text(row), [spoken], loss=True))

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, place: int) -> Material:
        return self._items[place]


class DialogueBatches:
    """A mixture of tasks; a batch holds one task and is a pure function of (seed, step).

    Args:
        corpus: folder of the corpus.
        tokens: folder of its token store.
        tasks: by task name, ``share`` of the steps and ``batch``, the sequences a step.
        steps: how many steps the mixture is laid out for.
        code_noise: share of question codes replaced in training, most of them by a near code.
        validation_rows: validation questions in the periodic check.
        seed: decides everything.
    """

    def __init__(
        self,
        *,
        corpus: str,
        tokens: str,
        tasks: Mapping[str, Mapping[str, float]],
        steps: int,
        code_noise: float = 0.1,
        validation_rows: int = 96,
        seed: int = 0,
    ) -> None:
        unknown = sorted(set(tasks) - set(TASKS))
        if unknown:
            raise UsageError(f"unknown tasks {unknown}; known: {', '.join(TASKS)}")
        self._corpus = Corpus(corpus)
        self.store = TokenStore(tokens)
        self._tasks = {
            name: Task(float(task["share"]), int(task.get("batch", 8)))
            for name, task in tasks.items()
        }
        self._code_noise = code_noise
        self._validation_rows = validation_rows
        self._seed = seed
        self._plan = draws({n: t.share for n, t in self._tasks.items()}, steps, seed)
        self._ids: Ids | None = None
        self._cache: dict[tuple[str, int], tuple[np.ndarray, np.ndarray]] = {}

    def bind(self, ids: Ids) -> None:
        """Use the ids of the backbone that is trained; its audio ids must be this store's codes."""
        self.store.check_corpus(self._corpus)
        if ids.tokenizer_hash != self.store.tokenizer_hash:
            raise UsageError(
                f"the backbone was made with tokenizers {ids.tokenizer_hash}, {self.store.folder} "
                f"with {self.store.tokenizer_hash}: codes of two tokenizers are not interchangeable"
            )
        if ids.layout.question_books == "both" and self.store.meta["question_books"] != "both":
            raise UsageError(
                f"{self.store.folder} keeps questions in the linguistic book alone, the backbone's "
                f"layout wants both: tokenize again with question_books=both, or init with "
                f"layout.question_books=linguistic"
            )
        self._ids = ids
        self._train = Materials(self._corpus, self.store, "train")
        self._samplers = {
            name: BucketSampler(
                self._lengths(name),
                batch=task.batch,
                seed=named_seed(self._seed, name),
                jitter=_LENGTH_JITTER_TOKENS,
            )
            for name, task in self._tasks.items()
            if task.share > 0
        }
        self._near = nearest_codes(self.store) if self._code_noise else None

    def _lengths(self, task: str) -> list[int]:
        """About how many ids each row has in a task: its codes and its words."""
        build = TASKS[task]
        return [
            sum(_size(turn) for turn in build(self._train[i])) for i in range(len(self._train))
        ]

    def batch(self, step: int) -> TokenBatch:
        """Training batch number ``step``."""
        task, drawn = self._drawn(step)
        rng = np.random.default_rng([self._seed, step])
        rows = self._samplers[task].rows(drawn)
        return self._collate(task, [self._noisy(*self._sequence(task, row), rng) for row in rows])

    def _drawn(self, step: int) -> tuple[str, int]:
        """Task of a step and how often it came before; the plan grows where a run goes past it.

        It does with several batches an optimizer step, and when a loader fetches ahead. A longer
        plan begins like a shorter one.
        """
        if step >= len(self._plan):
            shares = {name: task.share for name, task in self._tasks.items()}
            self._plan = draws(shares, 2 * (step + 1), self._seed)
        return self._plan[step]

    def validation(self) -> list[TokenBatch]:
        """The first validation questions in every task of the mixture, without noise."""
        rows = Materials(self._corpus, self.store, "validation")
        count = min(self._validation_rows, len(rows))
        batches = []
        for task in self._samplers:
            built = [self._encode(TASKS[task](rows[i])) for i in range(count)]
            built.sort(key=lambda pair: len(pair[0]))
            batches += [self._collate(task, built[i : i + 16]) for i in range(0, count, 16)]
        return batches

    def _sequence(self, task: str, row: int) -> tuple[np.ndarray, np.ndarray]:
        key = (task, row)
        if key not in self._cache:
            self._cache[key] = self._encode(TASKS[task](self._train[row]))
        return self._cache[key]

    def _encode(self, dialogue: Dialogue) -> tuple[np.ndarray, np.ndarray]:
        assert self._ids is not None, "bind() comes before the first batch"
        stream = self._ids.layout.encode(dialogue, self._ids.text, self._ids.vocabulary)
        return np.array(stream.ids, np.int32), np.array(stream.slots, np.int8)

    def _noisy(
        self, ids: np.ndarray, slots: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Replace some linguistic codes without loss: what a new voice does to a tokenizer."""
        if self._near is None or self._ids is None:
            return ids, slots
        start, end = self._ids.vocabulary.linguistic_start, self._ids.vocabulary.semantic_start
        heard = (ids >= start) & (ids < end) & (slots == Slot.NONE)
        changed = (heard & (rng.random(len(ids)) < self._code_noise)).nonzero()[0]
        if not len(changed):
            return ids, slots
        near = self._near[ids[changed] - start, rng.integers(_NEIGHBOURS, size=len(changed))]
        any_code = rng.integers(end - start, size=len(changed))
        ids = ids.copy()
        ids[changed] = start + np.where(rng.random(len(changed)) < 0.7, near, any_code)
        return ids, slots

    def _collate(self, task: str, pairs: list[tuple[np.ndarray, np.ndarray]]) -> TokenBatch:
        assert self._ids is not None, "bind() comes before the first batch"
        longest = max(len(ids) for ids, _ in pairs) - 1
        inputs = np.full((len(pairs), longest), self._ids.vocabulary.pad, np.int64)
        targets, slots = inputs.copy(), np.zeros_like(inputs)
        for i, (ids, slot) in enumerate(pairs):
            inputs[i, : len(ids) - 1] = ids[:-1]
            targets[i, : len(ids) - 1] = ids[1:]
            slots[i, : len(ids) - 1] = slot[1:]
        sources = np.full_like(inputs, list(TASKS).index(task))
        return TokenBatch(task, *map(torch.from_numpy, (inputs, targets, slots, sources)))


def _size(turn: Turn) -> int:
    codes = sum(len(pair.linguistic) + len(pair.semantic) for pair in turn.speech)
    return codes + len(turn.text.split())


def named_seed(seed: int, name: str) -> int:
    """A seed of its own for every name."""
    return random.Random(f"{seed}:{name}").getrandbits(32)


def nearest_codes(store: TokenStore) -> np.ndarray:
    """The nearest other codes of every linguistic code, (1024, 8)."""
    vectors = SpeechTokenizer.load(store.tokenizer / "linguistic").codebook.vectors
    order = torch.cdist(vectors, vectors).topk(_NEIGHBOURS + 1, largest=False).indices
    return order[:, 1:].numpy()
