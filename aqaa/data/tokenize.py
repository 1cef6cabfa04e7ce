"""The verb: a corpus or manifests into a token store, however often the work is interrupted.

Codes are gathered in ``OUT.parts/KKKKK-of-NNNNN``, one part for each share of a job array, and put
together once every clip is there. Killed at any moment, the same command goes on. A clip that
cannot be heard ends nothing: it is listed, and tried again at the next start; only too many are
refused.
"""

import contextlib
import multiprocessing
import re
import shutil
import tempfile
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from aqaa import lineage
from aqaa.data.extraction import Bad, encode
from aqaa.data.keyed_clips import Source, source
from aqaa.data.manifest import write_manifest
from aqaa.data.parts import BAD, IDENTITY, Codes, Part, read_bad, read_part
from aqaa.data.row_sounds import is_corpus
from aqaa.data.token_store import write_store
from aqaa.errors import UsageError
from aqaa.progress import Bar
from aqaa.storage import atomic_folder, check_replaceable, read_json
from aqaa.tokenizer.dual import DualTokenizer, load_book

MERGE = "merge"
_SHARD = re.compile(r"(\d+)/(\d+)")
_ALL = "0/1"
_LISTED = 100  # clips that cannot be heard before more than are allowed end the work at once


@dataclass(frozen=True)
class _Job:
    """What is encoded by what, and where to."""

    source: Source
    out: Path
    identity: dict[str, Any]
    bad_share: float

    @property
    def bad_allowed(self) -> float:
        """How many clips may be left out."""
        return self.bad_share * len(self.source.clips)

    @property
    def parts(self) -> Path:
        return self.out.with_name(f"{self.out.name}.parts")

    def part(self, shard: int, shards: int) -> Path:
        return self.parts / f"{shard:05}-of-{shards:05}"


def tokenize(
    *,
    corpus: str,
    out: str,
    linguistic: str = "",
    semantic: str = "",
    tokenizers: str | None = None,
    question_books: str = "both",
    shard: str | None = None,
    workers: int = 0,
    batch_s: float = 120.0,
    bad_share: float = 0.001,
    device: str | None = None,
) -> None:
    """Encode every clip of a corpus folder, an aqaa-jsonl manifest or a folder of manifests.

    Args:
        corpus: folder of the corpus, the manifest, or the folder of manifests.
        out: folder of the store, written as a whole.
        linguistic: model folder of that tokenizer.
        semantic: model folder of the other one.
        tokenizers: instead of these two, a folder of both: ours, or one as it was released.
        question_books: ``both``, or ``linguistic`` where the layout's questions carry that alone.
        shard: ``K/N`` encodes one share of N, ``merge`` puts finished shares together; None does
            both for the whole.
        workers: processes that read and prepare sound.
        batch_s: seconds of sound encoded together.
        bad_share: of the clips may be left out because they cannot be heard, each named in
            ``bad.jsonl``; of a corpus, whose every row is trained on, none may.
        device: of the tokenizers (None: a GPU where there is one).

    Raises:
        UsageError: a source is missing or damaged, too many clips cannot be heard, shares are
            missing or do not belong together.
    """
    if not 0 <= bad_share <= 1:
        raise UsageError(f"bad_share={bad_share} is no share: 0 (no clip) to 1")
    check_replaceable(out)
    share = None if shard == MERGE else _share(shard or _ALL)
    found = source(corpus, question_books=question_books, verify=shard in (None, MERGE))
    with _tokenizer_folders(tokenizers, linguistic, semantic) as books:
        dual = DualTokenizer(*(load_book(folder) for folder in books.values()))
        identity = {
            "tokenizer_hash": lineage.books_hash(*books.values()),
            "corpus_hash": found.hash,
            "question_books": question_books,
        }
        job = _Job(found, Path(out), identity, 0.0 if is_corpus(corpus) else bad_share)
        if share is not None:
            _encode_share(job, dual, *share, workers=workers, batch_s=batch_s, device=device)
        if shard in (None, MERGE):
            merge(job, books)


def _share(shard: str) -> tuple[int, int]:
    match = _SHARD.fullmatch(shard)
    number, of = map(int, match.groups()) if match else (1, 0)
    if number >= of:
        raise UsageError(f"shard={shard} is neither {MERGE} nor K/N with 0 <= K < N, such as 0/4")
    return number, of


@contextlib.contextmanager
def _tokenizer_folders(
    tokenizers: str | None, linguistic: str, semantic: str
) -> Iterator[dict[str, Path]]:
    """The folder of each book; a released tokenizer is converted for the time being."""
    if tokenizers is None:
        for given in (linguistic, semantic):
            lineage.parent(given)
        yield {"linguistic": Path(linguistic), "semantic": Path(semantic)}
        return
    lineage.parent(tokenizers)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(tokenizers)
        if (folder / lineage.MODEL / "linguistic").is_dir():  # a run folder
            folder = folder / lineage.MODEL
        if not (folder / "linguistic").is_dir():
            from aqaa.release.tokenizer import load_tokenizer

            folder = Path(temporary)
            load_tokenizer(tokenizers).save(folder)
        yield {book: folder / book for book in ("linguistic", "semantic")}


def _encode_share(
    job: _Job,
    dual: DualTokenizer,
    shard: int,
    shards: int,
    *,
    workers: int,
    batch_s: float,
    device: str | None,
) -> None:
    """Encode what is not yet there of every ``shards``-th clip by length."""
    # As if by lot, so that every share has as much to do as the others; not by length, or a mended
    # clip would change share.
    drawn = sorted(job.source.clips, key=lambda c: (zlib.crc32(c.key.encode()), c.key))
    clips = drawn[shard::shards]
    torch.backends.cudnn.allow_tf32 = False  # or a GPU rounds too coarsely for equal codes
    dual.to(torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")))
    if multiprocessing.current_process().daemon:
        workers = 0  # such a process may have no children
    identity = {**job.identity, "shard": f"{shard}/{shards}", "clips": len(clips)}
    with Part(job.part(shard, shards), identity) as part:
        if part.discarded:
            print(f"tokenize: {part.discarded} clips of an earlier start do not fit, begun anew")
        sizes = {clip.key: job.source.size_bytes(clip) for clip in clips}
        rest = [clip for clip in clips if part.done.get(clip.key) != sizes[clip.key]]
        begun, begun_s, heard_s, padded, frames = len(part.done), time.monotonic(), 0.0, 0, 0
        bad: list[Bad] = []
        with Bar("tokenize", len(clips), unit="clips", begun=begun) as bar:
            for batch in encode(job.source, rest, dual, batch_s=batch_s, workers=workers):
                part.append(batch.codes, sizes)
                bad += batch.bad
                if len(bad) > max(_LISTED, job.bad_allowed):
                    break
                heard_s += batch.seconds
                padded += batch.padded_frames
                frames += batch.frames
                rate = heard_s / max(1e-9, time.monotonic() - begun_s)
                bar.update(len(part.done), f"{rate:.0f} s of sound/s")
        if bad:
            part.tell_bad(clip._asdict() for clip in bad)
            print(f"tokenize: {len(bad)} clips cannot be heard: {part.folder / BAD} says why")
        if len(bad) > max(_LISTED, job.bad_allowed):
            _refuse(job, read_bad(part.folder), part.folder / BAD, "at least ")
    took_s = max(1e-9, time.monotonic() - begun_s)
    print(
        f"tokenize: {len(rest)} clips, {heard_s:.0f} s of sound in {took_s:.1f} s "
        f"({heard_s / took_s:.0f} s/s), {padded / max(1, frames):.1%} padding"
    )


def _refuse(job: _Job, bad: list[dict[str, str]], listed: Path, least: str = "") -> None:
    """Say that more clips cannot be heard than may be left out."""
    why = (
        f"above bad_share={job.bad_share:g}"
        if job.bad_share
        else "and none may be left out (bad_share=0, as for every corpus)"
    )
    raise UsageError(
        f"{least}{len(bad)} of {len(job.source.clips)} clips cannot be heard, {why}; the first is "
        f"{bad[0]['key']}: {bad[0]['reason']}. {listed} names each: mend or remove them, and run "
        f"the same command again, which keeps what is done"
    )


def merge(job: _Job, books: dict[str, Path]) -> None:
    """Put finished parts together into the store, and remove them.

    Raises:
        UsageError: a part is missing, there twice, unfinished, damaged, or of another tokenizer
            or corpus; or too many clips cannot be heard.
    """
    codes: dict[str, Codes] = {}
    bad: dict[str, dict[str, str]] = {}
    for folder in _parts(job):
        bad |= {row["key"]: row for row in read_bad(folder)}
        for key, pair in read_part(folder):
            if key in codes:
                raise UsageError(f"{folder} and another part both hold the clip {key}: remove one")
            codes[key] = pair
    keys = [clip.key for clip in job.source.clips]
    wanted, left_out = [k for k in keys if k not in bad], [bad[k] for k in keys if k in bad]
    if len(left_out) > job.bad_allowed or not wanted:
        write_manifest(job.parts / BAD, left_out)
        _refuse(job, left_out, job.parts / BAD)
    if lost := [key for key in wanted if key not in codes]:
        raise UsageError(f"the parts lack {len(lost)} clips, the first is {lost[0]}")
    with atomic_folder(job.out) as folder:
        for book, home in books.items():
            (folder / "tokenizer" / book).mkdir(parents=True)
            for name in ("config.json", "model.safetensors"):  # bytes, so that their hash stays
                shutil.copyfile(home / name, folder / "tokenizer" / book / name)
        counts = {"clips": len(keys), "bad": len(left_out)}
        write_store(folder, {key: codes[key] for key in wanted}, {**job.identity, **counts})
        if left_out:
            write_manifest(folder / BAD, left_out)
    shutil.rmtree(job.parts)
    if left_out:
        print(f"tokenize: {len(left_out)} of {len(keys)} clips cannot be heard and are left out; "
              f"{job.out / BAD} names each and says why")  # fmt: skip


def _parts(job: _Job) -> list[Path]:
    """The finished parts of one array, each once and all of this job."""
    found: dict[int, Path] = {}
    counts: dict[int, Path] = {}
    for path in sorted(job.parts.glob(f"*/{IDENTITY}")):
        record, folder = read_json(path), path.parent
        shard, shards = _share(str(record.get("shard")))
        counts[shards] = folder
        if shard in found:
            raise UsageError(f"{folder} and {found[shard]} both are shard {shard}: remove one")
        found[shard] = folder
        for name, value in job.identity.items():
            if record.get(name) != value:
                raise UsageError(
                    f"{folder} was made with {name} {record.get(name)}, not {value}: remove it "
                    f"and run shard={shard}/{shards} again"
                )
    if not found:
        raise UsageError(f"{job.parts} holds no part: run `aqaa data tokenize shard=0/N …` first")
    if len(counts) > 1:
        several = ", ".join(str(folder) for _, folder in sorted(counts.items()))
        raise UsageError(f"parts of arrays of different sizes lie together: {several}; remove some")
    shards = next(iter(counts))
    if missing := sorted(set(range(shards)) - set(found)):
        listed = ", ".join(map(str, missing[:10])) + (" …" if len(missing) > 10 else "")
        raise UsageError(f"{job.parts} lacks {len(missing)} of {shards} shards: {listed}")
    for shard, folder in sorted(found.items()):
        bad = {row["key"] for row in read_bad(folder)}
        done = len(bad) + sum(key not in bad for key, _ in read_part(folder))
        if done != (clips := read_json(folder / IDENTITY)["clips"]):
            raise UsageError(
                f"{folder} holds {done} of {clips} clips: run shard={shard}/{shards} to its end"
            )
    return [found[shard] for shard in sorted(found)]
