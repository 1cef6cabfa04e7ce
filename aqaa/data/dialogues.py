"""Batches for the backbone: dialogues of a corpus in the layouts of the training tasks."""

import random
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from aqaa.backbone.loading import Ids
from aqaa.data.collate import Document, TokenBatch, packed, padded
from aqaa.data.corpus import Corpus
from aqaa.data.kept import kept
from aqaa.data.lengths import about_lengths, document_lengths, encoding
from aqaa.data.mixture import ShareOf, read_sources
from aqaa.data.packing import Documents, Packing, best_fit, mixture, pack
from aqaa.data.sampler import BucketSampler, draws
from aqaa.data.selection import selected
from aqaa.data.tasks import TASKS, Material, Materials
from aqaa.data.token_store import TokenStore
from aqaa.errors import UsageError
from aqaa.stream import Slot
from aqaa.tokenizer.dual import load_book

_LENGTH_JITTER_TOKENS = 6.0
_NEIGHBOURS = 8
# Documents are kept after their first use, 5 bytes an id, up to this many: a small corpus is then
# encoded once, and a large one does not fill the memory.
_CACHE_TOKENS = 2**24


class DialogueBatches:
    """A mixture of tasks; a batch is a pure function of (seed, step).

    A batch holds sequences of one task and of like length, padded; or, with ``row_tokens``, packed
    rows in which documents of all tasks stand one after another.

    Args:
        corpus: folder of the corpus.
        tokens: folder of its token store.
        tasks: sources by name: ``share``, ``batch`` (sequences a step), ``format`` (a task, if the
            name is none) and ``where`` (which rows), see :mod:`aqaa.data.mixture`.
        steps: how many steps the mixture is laid out for.
        code_noise: share of question codes replaced in training, most of them by a near code.
        validation_rows: validation questions in the periodic check.
        row_tokens: ids of a packed row (None: batches of one task).
        rows: packed rows a batch.
        share_of: what shares are of in batches of one task, ``steps`` or ``ids``; in packed rows
            they are always of the ids, as the paper's are.
        seed: decides everything.
    """

    def __init__(
        self,
        *,
        corpus: str,
        tokens: str,
        tasks: Mapping[str, Mapping[str, Any]],
        steps: int,
        code_noise: float = 0.1,
        validation_rows: int = 96,
        row_tokens: int | None = None,
        rows: int = 1,
        share_of: ShareOf = "steps",
        seed: int = 0,
    ) -> None:
        if share_of not in get_args(ShareOf):
            raise UsageError(f"share_of={share_of} is neither {' nor '.join(get_args(ShareOf))}")
        if rows < 1 or (row_tokens is not None and row_tokens < 1):
            raise UsageError(f"rows={rows} of row_tokens={row_tokens} ids: each must be 1 or more")
        self._corpus = Corpus(corpus)
        self.store = TokenStore(tokens)
        self._sources = read_sources(tasks)
        self._shares = {name: source.share for name, source in self._sources.items()}
        self._share_of = share_of
        self._steps = steps
        self._code_noise = code_noise
        self._validation_rows = validation_rows
        self._row_tokens = row_tokens
        self._rows = rows
        self._seed = seed
        self._ids: Ids | None = None
        self._cache: OrderedDict[tuple[str, int], Document] = OrderedDict()
        self._cached_tokens = 0

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
        self._near = nearest_codes(self.store) if self._code_noise else None
        self._places = self._chosen("train")
        if self._row_tokens is None:
            self._bucket()
        else:
            self._pack(self._row_tokens)

    @property
    def names(self) -> tuple[str, ...]:
        """The sources, in the order that ``sources`` of a batch counts them in."""
        return tuple(self._sources)

    def _chosen(self, split: str) -> dict[str, np.ndarray]:
        """By source that has a filter, the rows of a split that pass it."""
        rows = self._corpus.lazy_rows(split)

        def choose(where: Mapping[str, Any]) -> np.ndarray:
            key = {"of": "where", "where": where, "split": split}
            made = kept(self.store, key, lambda: {"rows": selected(where, rows)}, rows=len(rows))
            return made["rows"]

        return {name: choose(s.where) for name, s in self._sources.items() if s.where}

    def _bucket(self) -> None:
        """Lay out batches of one source each."""
        formats = self._formats()
        sizes = about_lengths(
            self._train, formats, ids=self.ids, store=self.store, split="train"
        )
        self._samplers = {
            name: BucketSampler(
                self._of(name, sizes[source.format]),
                batch=source.batch,
                seed=named_seed(self._seed, name),
                jitter=_LENGTH_JITTER_TOKENS,
            )
            for name, source in self._sources.items()
        }
        self._step_shares = self._shares
        if self._share_of == "ids":
            lengths = self._lengths()
            self._step_shares = {
                name: self._shares[name] / (source.batch * float(np.mean(lengths[name])))
                for name, source in self._sources.items()
            }
        self._plan = draws(self._step_shares, self._steps, self._seed)

    def _formats(self) -> list[str]:
        return sorted({source.format for source in self._sources.values()})

    def _of(self, name: str, rows: Any) -> Any:
        """What a source takes of something there is for every row."""
        if name not in self._places:
            return rows
        if not len(self._places[name]):
            raise UsageError(
                f"data.tasks.{name}.where={self._sources[name].where} takes no row of "
                f"{self._corpus.folder / 'train.jsonl'}"
            )
        return np.asarray(rows)[self._places[name]]

    def _lengths(self) -> dict[str, np.ndarray]:
        """Ids of every document of each source."""
        measured = document_lengths(
            self._train, self._formats(), ids=self.ids, store=self.store, split="train"
        )
        return {name: self._of(name, measured[s.format]) for name, s in self._sources.items()}

    def _pack(self, row_tokens: int) -> None:
        """Lay out rows of all sources; a document that no row can hold is refused, not cut."""

        def make() -> dict[str, np.ndarray]:
            lengths = self._lengths()
            self._check_fit(lengths, self._train, self._places)
            documents = mixture(self._shares, lengths, self._seed)
            made = pack(documents.sizes(lengths), row_tokens=row_tokens, seed=self._seed)
            return {"sources": documents.sources, "places": documents.places,
                    "packed": made.packed, "ends": made.ends}  # fmt: skip

        sources = [(n, s.format, s.share, s.where) for n, s in self._sources.items()]
        key = {"of": "packing", **encoding(self.ids), "sources": sources,
               "row_tokens": row_tokens, "seed": self._seed}  # fmt: skip
        found = kept(self.store, key, make, rows=len(self._train))
        self._documents = Documents(self.names, found["sources"], found["places"])
        self.packing = Packing(found["packed"], found["ends"], self._seed)

    def _check_fit(
        self,
        lengths: Mapping[str, np.ndarray],
        materials: Materials,
        places: Mapping[str, np.ndarray],
    ) -> None:
        """Refuse documents that no packed row can hold.

        Args:
            lengths: by source, of its first rows.
            materials: all rows.
            places: which of them a source takes, where it does not take all.
        """
        assert self._row_tokens is not None
        long = {name: int((row > self._row_tokens).sum()) for name, row in lengths.items()}
        if any(long.values()):
            task = max(lengths, key=lambda name: lengths[name].max(initial=0))
            place = int(lengths[task].argmax())
            row = materials[int(places[task][place]) if task in places else place].row
            raise UsageError(
                f"{sum(long.values())} of {sum(map(len, lengths.values()))} documents are longer "
                f"than data.row_tokens={self._row_tokens}, the longest is row "
                f"{row['id']} as {task} with {lengths[task][place]} ids: raise "
                f"data.row_tokens or leave these rows out"
            )

    def epoch_batches(self, of: str | None = None) -> float:
        """Batches until a source has been drawn from as often as it has rows.

        Args:
            of: name of the source (None: the one that lasts longest, so that every row of every
                source comes once at least).
        """
        if of is not None and of not in self._sources:
            raise UsageError(f"epochs.of={of} is no source: there are {', '.join(self.names)}")
        if self._row_tokens is None:
            chance = {n: s / sum(self._step_shares.values()) for n, s in self._step_shares.items()}
            every = {n: self._samplers[n].steps_per_epoch / chance[n] for n in self.names}
        else:
            lengths = self._lengths()
            once = {n: float(np.sum(lengths[n])) / self._shares[n] for n in self.names}
            whole = self.packing.rows / self._rows / max(once.values())
            every = {n: whole * once[n] for n in self.names}
        return max(every.values()) if of is None else every[of]

    @property
    def ids(self) -> Ids:
        """The ids that :meth:`bind` gave."""
        assert self._ids is not None, "bind() comes before the first batch"
        return self._ids

    def batch(self, step: int) -> TokenBatch:
        """Training batch number ``step``."""
        rng = np.random.default_rng([self._seed, step])
        rows = [
            [self._noisy(self._document(*which), rng) for which in row] for row in self.drawn(step)
        ]
        pad = self.ids.vocabulary.pad
        if self._row_tokens is not None:
            return packed(rows, self._row_tokens, pad=pad)
        return padded(self._task(step)[0], [row[0] for row in rows], pad=pad)

    def drawn(self, step: int) -> list[list[tuple[str, int]]]:
        """For every row of a batch its documents: the source, and the row of the corpus."""
        if self._row_tokens is None:
            name, times = self._task(step)
            return [[(name, self._row(name, i))] for i in self._samplers[name].rows(times)]
        numbers = range(step * self._rows, (step + 1) * self._rows)
        found = [[self._documents.at(i) for i in self.packing.documents(n)] for n in numbers]
        return [[(name, self._row(name, i)) for name, i in row] for row in found]

    def _row(self, name: str, place: int) -> int:
        """Row of the corpus at a place of a source."""
        return int(self._places[name][place]) if name in self._places else place

    def origin(self, row: int) -> dict[str, Any]:
        """Where a row of the training corpus comes from: its id, and its sound files."""
        found = self._train[row].row
        parts = [p for m in found["messages"] for p in m["content"] if p["type"] == "audio"]
        return {"id": found["id"], "sound": [_place(part, self._corpus.folder) for part in parts]}

    def _task(self, step: int) -> tuple[str, int]:
        """Source of a step and how often it came before; the plan grows where a run goes past it.

        It does with several batches an optimizer step, and when a loader fetches ahead. A longer
        plan begins like a shorter one.
        """
        if step >= len(self._plan):
            self._plan = draws(self._step_shares, 2 * (step + 1), self._seed)
        return self._plan[step]

    def validation(self) -> list[TokenBatch]:
        """The first validation questions of every source of the mixture, without noise."""
        rows = Materials(self._corpus, self.store, "validation")
        chosen = self._chosen("validation")
        pad = self.ids.vocabulary.pad
        built = {
            name: [
                self._encode(name, rows[int(i)])
                for i in chosen.get(name, range(len(rows)))[: self._validation_rows]
            ]
            for name in self._sources
        }
        if self._row_tokens is None:
            for documents in built.values():
                documents.sort(key=lambda document: len(document.ids))
            return [
                padded(task, documents[i : i + 16], pad=pad)
                for task, documents in built.items()
                for i in range(0, len(documents), 16)
            ]
        lengths = {t: np.array([len(d.ids) - 1 for d in ds]) for t, ds in built.items()}
        self._check_fit(lengths, rows, chosen)
        sizes = [(int(n), task, i) for task, ns in lengths.items() for i, n in enumerate(ns)]
        sizes.sort(key=lambda size: -size[0])
        every = [built[task][i] for _, task, i in sizes]
        places = best_fit([length for length, *_ in sizes], self._row_tokens)
        full = [[every[i] for i in row] for row in places]
        starts = range(0, len(full), self._rows)
        return [packed(full[i : i + self._rows], self._row_tokens, pad=pad) for i in starts]

    def _document(self, task: str, row: int) -> Document:
        key = (task, row)
        found = self._cache.get(key)
        if found is None:
            found = self._cache[key] = self._encode(task, self._train[row])
            self._cached_tokens += len(found.ids)
            while self._cached_tokens > _CACHE_TOKENS:
                self._cached_tokens -= len(self._cache.popitem(last=False)[1].ids)
        return found

    def _encode(self, name: str, material: Material) -> Document:
        ids = self.ids
        dialogue = TASKS[self._sources[name].format](material)
        stream = ids.layout.encode(dialogue, ids.text, ids.vocabulary)
        ids_, slots = np.array(stream.ids, np.int32), np.array(stream.slots, np.int8)
        return Document(self.names.index(name), ids_, slots)

    def _noisy(self, document: Document, rng: np.random.Generator) -> Document:
        """Replace some linguistic codes without loss: what a new voice does to a tokenizer."""
        if self._near is None:
            return document
        _, ids, slots = document
        start, end = self.ids.vocabulary.linguistic_start, self.ids.vocabulary.semantic_start
        heard = (ids >= start) & (ids < end) & (slots == Slot.NONE)
        changed = (heard & (rng.random(len(ids)) < self._code_noise)).nonzero()[0]
        if not len(changed):
            return document
        near = self._near[ids[changed] - start, rng.integers(_NEIGHBOURS, size=len(changed))]
        any_code = rng.integers(end - start, size=len(changed))
        ids = ids.copy()
        ids[changed] = start + np.where(rng.random(len(changed)) < 0.7, near, any_code)
        return document._replace(ids=ids)


def _place(part: dict[str, Any], folder: Path) -> str:
    """The file of an audio part, and from when to when."""
    span = f" {part['start']}..{part['end']} s" if part.get("end") is not None else ""
    return f"{folder / part['path']}{span}"


def named_seed(seed: int, name: str) -> int:
    """A seed of its own for every name."""
    return random.Random(f"{seed}:{name}").getrandbits(32)


def nearest_codes(store: TokenStore) -> np.ndarray:
    """The nearest other codes of every linguistic code, (1024, 8)."""
    vectors = load_book(store.tokenizer / "linguistic").codebook.vectors
    order = torch.cdist(vectors, vectors).topk(_NEIGHBOURS + 1, largest=False).indices
    return order[:, 1:].numpy()
