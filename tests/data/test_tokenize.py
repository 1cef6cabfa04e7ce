"""Extraction: killed anywhere it goes on without a duplicate or a gap; shares become one store."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from aqaa import storage
from aqaa.audio.file import write_audio
from aqaa.data.clips import Clips
from aqaa.data.extraction import PADDED_SHARE, buckets, encode
from aqaa.data.keyed_clips import source
from aqaa.data.manifest import read_manifest, write_manifest
from aqaa.data.parts import Part, read_part
from aqaa.data.token_store import TokenStore
from aqaa.data.token_voice import TokenFlowBatches
from aqaa.data.tokenize import tokenize
from aqaa.errors import UsageError
from aqaa.signals import CodePair
from aqaa.storage import read_json, write_json
from aqaa.tokenizer.batched import encode_alone, pieces_of
from aqaa.tokenizer.dual import DualTokenizer
from tests.golden.make import dual, released_dual
from tests.release.test_tokenizer import write_release

CLIPS = 48


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 clips of 0.4 to 2 s in one file, some of them a question and an answer of one row."""
    folder = tmp_path_factory.mktemp("speech")
    rng = np.random.default_rng(0)
    seconds = rng.uniform(0.4, 2.0, CLIPS).round(3)
    ends = seconds.cumsum()
    noise = 0.1 * rng.standard_normal(int(ends[-1] * 16_000) + 1).astype(np.float32)
    write_audio(folder / "all.wav", noise, 16_000)
    parts = [
        {"path": "all.wav", "start": float(end - s), "end": float(end)}
        for s, end in zip(seconds, ends, strict=True)
    ]
    rows: list[dict[str, object]] = [
        {"id": f"a{i}", "kind": "asr", "text": "x", "audio": part}
        for i, part in enumerate(parts[:-2])
    ]
    turns = [{"type": "audio", **part} for part in parts[-2:]]
    roles = ({"role": r, "content": [t]} for r, t in zip(("user", "assistant"), turns, strict=True))
    rows.append({"id": "chat", "messages": list(roles)})
    write_manifest(folder / "speech.jsonl", rows)
    return folder / "speech.jsonl"


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("books")
    dual().save(folder)
    return folder


@pytest.fixture(scope="module")
def whole(manifest: Path, books: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of an extraction that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole") / "tokens"
    run(manifest, books, out)
    return out


def run(manifest: Path, books: Path, out: Path, **more: object) -> None:
    given = {"device": "cpu", "batch_s": 6.0, **more}
    tokenize(corpus=str(manifest), tokenizers=str(books), out=str(out), **given)  # type: ignore[arg-type]


def same_store(one: Path, other: Path) -> bool:
    names = ["keys.json", "meta.json", *(f"{b}.{e}" for b in ("linguistic", "semantic")
                                         for e in ("bin", "idx"))]  # fmt: skip
    return all((one / n).read_bytes() == (other / n).read_bytes() for n in names)


def test_every_clip_has_the_codes_it_has_alone(manifest: Path, books: Path, whole: Path) -> None:
    store, tokenizer, found = TokenStore(whole), DualTokenizer.load(books), source(manifest)
    assert store.keys() == [c.key for c in found.clips]
    assert store.keys()[-2:] == ["speech/chat/0", "speech/chat/1"]
    for clip in found.clips:
        samples = found.sound(clip, tokenizer.peak)
        for book in ("linguistic", "semantic"):
            one = getattr(tokenizer, book)
            alone = [c for piece in pieces_of(one, samples) for c in encode_alone(one, piece)]
            assert getattr(store[clip.key], book) == alone and len(alone) > 3
    copied = whole / "tokenizer/semantic/model.safetensors"
    assert copied.read_bytes() == (books / "semantic/model.safetensors").read_bytes()
    assert not whole.with_name("tokens.parts").exists()


def test_workers_batches_and_shares_change_nothing(
    manifest: Path, books: Path, whole: Path, tmp_path: Path
) -> None:
    run(manifest, books, tmp_path / "workers", workers=2, batch_s=1.0)
    assert same_store(tmp_path / "workers", whole)
    for shard in (2, 0, 1):
        run(manifest, books, tmp_path / "shares", shard=f"{shard}/3", batch_s=60.0)
    assert not (tmp_path / "shares").exists()
    run(manifest, books, tmp_path / "shares", shard="merge")
    assert same_store(tmp_path / "shares", whole)


def test_a_released_folder_tokenizes(manifest: Path, tmp_path: Path) -> None:
    released = write_release(tmp_path / "release")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("aqaa.tokenizer.released.PIECE_SAMPLES", 20_000)
        run(manifest, released, tmp_path / "tokens")
        store, found = TokenStore(tmp_path / "tokens"), source(manifest)
        tokenizer = DualTokenizer.load(store.tokenizer)
        assert tokenizer.peak == 0.999
        for clip in found.clips[::7]:
            assert store[clip.key] == tokenizer.encode(found.sound(clip, tokenizer.peak))


def test_killed_at_random_moments_it_goes_on_without_a_duplicate_or_a_gap(
    manifest: Path, books: Path, whole: Path, tmp_path: Path
) -> None:
    out, rng = tmp_path / "tokens", random.Random(1)
    part = tmp_path / "tokens.parts/00000-of-00001"
    context, seen = multiprocessing.get_context("fork"), [0]
    for attempt in range(18):
        child = context.Process(target=_child, args=(manifest, books, out, attempt % 4 == 3))
        child.start()
        limit = time.monotonic() + (rng.uniform(0.0, 0.6) if attempt < 12 else 20.0)
        # Most are killed right after a batch, where files are being written.
        while child.is_alive() and time.monotonic() < limit:
            grown = (part / "done.jsonl").stat().st_size if part.is_dir() else 0
            if attempt < 12 and grown > seen[-1]:
                time.sleep(rng.uniform(0.0, 0.01))
                break
            time.sleep(0.001)
        assert child.pid is not None
        if child.is_alive():
            os.kill(child.pid, signal.SIGKILL)
        child.join()
        if child.exitcode == 0:
            break
        assert child.exitcode == -signal.SIGKILL
        seen.append((part / "done.jsonl").stat().st_size if part.is_dir() else 0)
    assert len(set(seen)) > 3, "it was killed while it was getting on"
    run(manifest, books, out, shard="merge")
    assert same_store(out, whole)


def _child(manifest: Path, books: Path, out: Path, worker: bool) -> None:
    torch.set_num_threads(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    # Not the merge: Arrow's threads, once started, do not survive a fork.
    run(manifest, books, out, batch_s=2.5, workers=int(worker), shard="0/1")


def test_a_tail_cut_at_any_byte_is_taken_back(tmp_path: Path) -> None:
    pairs = {f"k{i}": CodePair([i] * (2 + i), [7 * i] * (3 + i)) for i in range(4)}
    with Part(tmp_path / "whole", {"a": 1}) as part:
        for pair in pairs.items():
            part.append([pair])
    files = {p.name: p.read_bytes() for p in (tmp_path / "whole").iterdir()}
    lines = files["done.jsonl"].splitlines(keepends=True)
    before = len(b"".join(lines[:-1]))
    for name in ("done.jsonl", "linguistic.bin", "semantic.bin"):
        # Every third byte: each case costs some syncs of a disk.
        cuts = range(before if name == "done.jsonl" else 0, len(files[name]), 3)
        for cut in cuts:
            folder = tmp_path / "cut"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            for other, data in files.items():
                (folder / other).write_bytes(data[:cut] if other == name else data)
            with Part(folder, {"a": 1}) as part:
                rest = [(k, p) for k, p in pairs.items() if k not in part.done]
                assert rest, (name, cut)
                part.append(rest)
            found = {k: CodePair(*(c.tolist() for c in codes)) for k, codes in read_part(folder)}
            assert found == pairs, (name, cut)
            assert {p.name: p.stat().st_size for p in folder.iterdir()} == {
                n: len(d) for n, d in files.items()
            }


def test_a_part_of_other_work_is_begun_anew_and_one_in_use_refused(tmp_path: Path) -> None:
    with Part(tmp_path / "p", {"tokenizer_hash": "a"}) as part:
        part.append([("k", CodePair([1], [2])), ("l", CodePair([], []))])
        context = multiprocessing.get_context("fork")
        other = context.Process(target=_refused, args=(tmp_path / "p",))
        other.start(), other.join(20)
        assert other.exitcode == 7
    with Part(tmp_path / "p", {"tokenizer_hash": "a"}) as part:
        assert (set(part.done), part.discarded) == ({"k", "l"}, 0)
    with Part(tmp_path / "p", {"tokenizer_hash": "b"}) as part:
        assert (part.done, part.discarded) == ({}, 2)
    assert list(read_part(tmp_path / "p")) == []


def _refused(folder: Path) -> None:
    try:
        Part(folder, {"tokenizer_hash": "a"})
    except UsageError as error:
        os._exit(7 if f"another process is at work in {folder}" in str(error) else 1)


def test_a_merge_names_what_is_missing_double_or_foreign(
    manifest: Path, books: Path, tmp_path: Path
) -> None:
    out, parts = tmp_path / "tokens", tmp_path / "tokens.parts"

    def merged(sentence: str) -> None:
        with pytest.raises(UsageError, match=sentence):
            run(manifest, books, out, shard="merge")
        assert not out.exists()

    merged("tokens.parts holds no part: run `aqaa data tokenize shard=0/N")
    for shard in (0, 2):
        run(manifest, books, out, shard=f"{shard}/4")
    merged("lacks 2 of 4 shards: 1, 3")
    for shard in (1, 3):
        run(manifest, books, out, shard=f"{shard}/4")
    shutil.copytree(parts / "00003-of-00004", parts / "copy")
    merged("copy and .*00003-of-00004 both are shard 3|00003-of-00004 both are shard 3")
    shutil.rmtree(parts / "copy")
    shutil.copytree(parts / "00001-of-00004", parts / "other")
    write_json(parts / "other/part.json", {**read_json(parts / "other/part.json"), "shard": "7/9"})
    merged("arrays of different sizes lie together")
    shutil.rmtree(parts / "other")
    record = read_json(parts / "00002-of-00004/part.json")
    write_json(parts / "00002-of-00004/part.json", {**record, "tokenizer_hash": "older"})
    merged("00002-of-00004 was made with tokenizer_hash older, not .* run shard=2/4 again")
    write_json(parts / "00002-of-00004/part.json", record)
    data = bytearray((parts / "00002-of-00004/semantic.bin").read_bytes())
    data[5] ^= 1
    (parts / "00002-of-00004/semantic.bin").write_bytes(data)
    merged("00002-of-00004 is damaged at speech/")
    data[5] ^= 1
    (parts / "00002-of-00004/semantic.bin").write_bytes(data)
    lines = (parts / "00001-of-00004/done.jsonl").read_bytes().splitlines(keepends=True)
    (parts / "00001-of-00004/done.jsonl").write_bytes(b"".join(lines[:-1]))
    merged("00001-of-00004 holds 11 of 12 clips: run shard=1/4 to its end")
    run(manifest, books, out, shard="1/4")
    run(manifest, books, out, shard="merge")
    assert TokenStore(out).keys()


@pytest.mark.parametrize("shard", ["4/4", "x", "-1/4", "1/0", "1"])
def test_a_share_that_is_none_is_refused(
    shard: str, manifest: Path, books: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=f"shard={shard} is neither merge nor K/N"):
        run(manifest, books, tmp_path / "out", shard=shard)


BAD = {"mute": "the sound is silent", "cut": "is cut short", "words": "not a readable sound file",
       "gone": "does not exist", "away": "does not lie below"}  # fmt: skip


@pytest.fixture
def spoilt(manifest: Path, tmp_path: Path) -> Path:
    """The manifest with a clip of every kind that cannot be heard, each at a place of its own."""
    folder = tmp_path / "spoilt"
    shutil.copytree(manifest.parent, folder)
    write_audio(folder / "mute.wav", np.zeros(8000, np.float32), 16_000)
    (folder / "cut.wav").write_bytes((folder / "all.wav").read_bytes()[:9000])
    (folder / "words.wav").write_text("no sound")
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    for place, name in enumerate(BAD):
        path = "../away.wav" if name == "away" else f"{name}.wav"
        rows.insert(8 * place, {"id": name, "kind": "audio", "audio": {"path": path}})
    write_manifest(folder / "speech.jsonl", rows)
    return folder / "speech.jsonl"


def done(out: Path) -> list[str]:
    """Keys in the part of a whole extraction, in the order they were encoded."""
    path = out.with_name(f"{out.name}.parts") / "00000-of-00001/done.jsonl"
    return [json.loads(line)["key"] for line in path.read_text().splitlines()]


def test_bad_clips_are_listed_and_few_of_them_left_out(
    spoilt: Path, whole: Path, books: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    for workers in (0, 1):
        sentence = "5 of 53 clips cannot be heard, above bad_share=0.001; .* speech/mute: .*silent"
        with pytest.raises(UsageError, match=sentence) as caught:
            run(spoilt, books, out, workers=workers, batch_s=2.0)
        assert "Traceback" not in str(caught.value) and not out.exists()
        assert sorted(done(out)) == sorted(TokenStore(whole).keys())
    told = read_manifest(tmp_path / "out.parts/bad.jsonl")
    assert [(row["key"], row["file"]) for row in told] == [
        (f"speech/{name}", "../away.wav" if name == "away" else f"{name}.wav") for name in BAD
    ]
    assert all(BAD[row["key"].split("/")[1]] in row["reason"] for row in told)
    run(spoilt, books, out, bad_share=0.1)
    store, clean = TokenStore(out), TokenStore(whole)
    assert store.keys() == clean.keys()
    assert all(store[key] == clean[key] for key in clean.keys())
    assert (store.meta["clips"], store.meta["bad"]) == (53, 5) and clean.meta["bad"] == 0
    assert read_manifest(out / "bad.jsonl") == told and not (whole / "bad.jsonl").exists()
    assert "5 of 53 clips cannot be heard and are left out" in capsys.readouterr().out
    with pytest.raises(UsageError, match="no codes of speech/mute, which says: the sound is sil"):
        store["speech/mute"]
    storage.verify_manifest(out)


def test_shares_keep_count_of_bad_clips(spoilt: Path, books: Path, tmp_path: Path) -> None:
    run(spoilt, books, tmp_path / "one", bad_share=0.1)
    for shard in ("1/3", "0/3", "2/3", "0/3"):
        run(spoilt, books, tmp_path / "shares", shard=shard)
    with pytest.raises(UsageError, match="5 of 53 clips cannot be heard"):
        run(spoilt, books, tmp_path / "shares", shard="merge")
    lists = sorted((tmp_path / "shares.parts").glob("*/bad.jsonl"))
    assert sum(len(read_manifest(path)) for path in lists) == 5 and len(lists) > 1
    lists[0].unlink()
    with pytest.raises(UsageError, match="of 1[78] clips: run shard=./3 to its end"):
        run(spoilt, books, tmp_path / "shares", shard="merge", bad_share=0.1)
    run(spoilt, books, tmp_path / "shares", shard=f"{int(lists[0].parent.name[:5])}/3")
    run(spoilt, books, tmp_path / "shares", shard="merge", bad_share=0.1)
    assert same_store(tmp_path / "one", tmp_path / "shares")
    ours, theirs = ((tmp_path / n / "bad.jsonl").read_bytes() for n in ("one", "shares"))
    assert ours == theirs


def test_mended_and_replaced_clips_alone_are_encoded_again(
    folder: Path, books: Path, tmp_path: Path
) -> None:
    out, sound = tmp_path / "out", folder / "sound"
    kept = (sound / "c.wav").read_bytes()
    (sound / "c.wav").unlink()
    with pytest.raises(UsageError, match="1 of 5 clips cannot be heard"):
        run(folder, books, out)
    before = done(out)
    (sound / "c.wav").write_bytes(kept)
    samples, rate_hz = soundfile.read(sound / "b.wav")
    soundfile.write(sound / "b.wav", samples[: len(samples) // 2], rate_hz)
    run(folder, books, out, shard="0/1")
    assert done(out)[: len(before)] == before
    assert sorted(done(out)[len(before) :]) == ["train/two/0", "train/two/1", "validation/a"]
    run(folder, books, out, shard="merge")
    run(folder, books, tmp_path / "fresh")
    assert same_store(out, tmp_path / "fresh") and TokenStore(out).meta["bad"] == 0
    again = tmp_path / "again"
    run(folder, books, again, shard="0/1")
    (sound / "a.flac").unlink()  # codes of a clip that is gone since do not count
    run(folder, books, again, bad_share=0.5)
    assert TokenStore(again).keys() == ["train/two/0", "train/two/1", "validation/a"]


def test_too_many_bad_clips_end_the_work_at_once(books: Path, tmp_path: Path) -> None:
    rows: list[dict[str, object]] = []
    for i in range(102):
        rows.append({"id": f"m{i}", "kind": "audio", "audio": {"path": "m.wav", "start": 0.0,
                                                               "end": 1.0 - i / 200}})  # fmt: skip
    soundfile.write(tmp_path / "m.wav", np.zeros(16_000), 16_000)
    noise = 0.1 * np.random.default_rng(0).standard_normal(4800)
    soundfile.write(tmp_path / "good.wav", noise, 16_000)
    write_manifest(tmp_path / "m.jsonl", [*rows, {"id": "g", "audio": {"path": "good.wav"}}])
    with pytest.raises(UsageError, match="at least 101 of 103 clips cannot be heard"):
        run(tmp_path / "m.jsonl", books, tmp_path / "out", batch_s=0.1)
    assert done(tmp_path / "out") == []  # the shortest comes last and was not reached
    for share in (-0.1, 1.5):
        with pytest.raises(UsageError, match=f"bad_share={share} is no share"):
            run(tmp_path / "m.jsonl", books, tmp_path / "out", bad_share=share)
    write_manifest(tmp_path / "m.jsonl", rows[:3])
    with pytest.raises(UsageError, match="3 of 3 clips cannot be heard"):
        run(tmp_path / "m.jsonl", books, tmp_path / "out", bad_share=1.0)


def test_of_a_corpus_no_clip_is_left_out(folder: Path, books: Path, tmp_path: Path) -> None:
    row = read_manifest(folder / "validation.jsonl")[0]
    (folder / "domain.json").write_text("{}")
    for name in ("answers", "train", "validation", "test"):
        write_manifest(folder / f"{name}.jsonl", [row])
    with pytest.raises(UsageError, match="4 of 4 .* every corpus.* answers/a: 16000 samples"):
        run(folder, books, tmp_path / "out", bad_share=0.9)


def test_a_training_says_which_clips_it_does_without(
    folder: Path, books: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "sound/c.wav").unlink()
    run(folder, books, tmp_path / "out", bad_share=0.5)
    capsys.readouterr()
    TokenFlowBatches(corpus=str(folder), tokens=str(tmp_path / "out"))
    said = capsys.readouterr().out
    assert "1 of 5 clips are left out" in said and "(1 could not be heard" in said
    assert "the first is train/two/1)" in said and said.count("\n") == 1


def test_two_clips_of_one_name_are_refused(manifest: Path, books: Path, tmp_path: Path) -> None:
    row = {"id": "a", "audio": {"path": "all.wav", "start": 0.0, "end": 0.5}}
    shutil.copy(manifest.parent / "all.wav", tmp_path / "all.wav")
    write_manifest(tmp_path / "speech.jsonl", [row, row])
    with pytest.raises(UsageError, match="has two clips speech/a: ids must differ"):
        run(tmp_path / "speech.jsonl", books, tmp_path / "out")
    write_manifest(tmp_path / "speech.jsonl", [{**row, "audio": {"path": "all.wav", "end": "1"}}])
    with pytest.raises(UsageError, match="speech/a has end='1': it is in seconds, a number"):
        run(tmp_path / "speech.jsonl", books, tmp_path / "out")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two manifests of odd sound files below them: another rate, two channels, several a row."""
    here = tmp_path / "speech"
    (here / "sound").mkdir(parents=True)
    rng = np.random.default_rng(1)
    files = {"a.flac": (44_100, 1), "b.wav": (8000, 2), "c.wav": (16_000, 1)}
    for name, (rate_hz, channels) in files.items():
        noise = 0.05 * rng.standard_normal((rate_hz, channels))
        noise[: rate_hz // 5] = 0.0  # silence that has to go
        soundfile.write(here / "sound" / name, noise, rate_hz)
    parts = [{"type": "audio", "path": f"sound/{name}"} for name in files]
    row = {"kind": "asr", "text": "x"}
    write_manifest(here / "train.jsonl", [
        {"id": "a", "audio": parts[0], "speaker": "s", **row},
        {"id": "two", "messages": [{"role": "user", "content": [parts[1], parts[2]]}]},
        {"id": "half", "audio": {**parts[0], "start": 0.4, "end": 0.9}, **row},
    ])  # fmt: skip
    write_manifest(here / "validation.jsonl", [{"id": "a", "audio": parts[1], **row}])
    (here / ".half.jsonl").write_text("cut while it was wri")
    return here


def test_a_folder_of_manifests_is_taken_whole(folder: Path, books: Path, tmp_path: Path) -> None:
    run(folder, books, tmp_path / "whole")
    store = TokenStore(tmp_path / "whole")
    wanted = [*(f"train/{k}" for k in ("a", "two/0", "two/1", "half")), "validation/a"]
    assert store.keys() == wanted == list(Clips(folder).spoken)
    run(folder / "train.jsonl", books, tmp_path / "one")
    one = TokenStore(tmp_path / "one")
    assert all(one[key] == store[key] and store[key].groups for key in wanted[:4])
    assert store["validation/a"] == store["train/two/0"] != store["train/two/1"]
    for shard in ("1/2", "0/2", "merge"):
        run(folder, books, tmp_path / "shares", shard=shard)
    assert same_store(tmp_path / "shares", tmp_path / "whole")
    batch = TokenFlowBatches(corpus=str(folder), tokens=str(store.folder), batch=2).batch(0)
    assert len(batch.mel) == 2 and batch.mel.isfinite().all()


def test_the_hash_of_manifests_covers_their_names_and_rows(folder: Path) -> None:
    seen = [source(folder).hash]

    def changed() -> bool:
        seen.append(source(folder).hash)
        return seen[-1] not in seen[:-1]

    assert not changed()
    rows = (folder / "train.jsonl").read_text()
    (folder / "train.jsonl").write_text(rows.replace('"text": "x"', '"text": "y"', 1))
    assert changed()
    (folder / "validation.jsonl").rename(folder / "test.jsonl")
    assert changed()
    samples, rate_hz = soundfile.read(folder / "sound/c.wav")
    soundfile.write(folder / "sound/c.wav", samples[:-160], rate_hz)
    assert not changed()  # mended sound does not make finished work void
    storage.write_manifest(folder)  # once sealed, every byte counts, and damage is refused
    sealed = source(folder).hash
    assert sealed == storage.tree_hash(folder)
    soundfile.write(folder / "sound/c.wav", samples[320:], rate_hz)
    with pytest.raises(UsageError, match="c.wav is damaged"):
        source(folder)


def test_a_folder_without_manifests_is_refused(books: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"empty holds no manifest \(\*\.jsonl\)"):
        run(tmp_path / "empty", books, tmp_path / "out")
    with pytest.raises(UsageError, match="nowhere does not exist"):
        run(tmp_path / "nowhere", books, tmp_path / "out")


def test_padding_stays_below_its_share() -> None:
    rng = random.Random(0)
    for lengths in ([rng.uniform(0.5, 30) for _ in range(500)], [1, 2, 4, 8, 16], [3.0] * 40):
        found = buckets(lengths, 60.0)
        assert sorted(i for bucket in found for i in bucket) == list(range(len(lengths)))
        for bucket in found:
            longest = max(lengths[i] for i in bucket)
            padding = len(bucket) * longest - sum(lengths[i] for i in bucket)
            assert padding <= PADDED_SHARE * len(bucket) * longest + 1e-9
            assert len(bucket) * longest <= 60.0 or len(bucket) == 1
    assert len(buckets([3.0] * 40, 60.0)) == 2


def test_pieces_of_a_long_clip_are_not_padded_to_each_other(
    manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aqaa.tokenizer.released.PIECE_SAMPLES", 9_000)
    found = source(manifest)
    batches = list(encode(found, found.clips, released_dual(), batch_s=20.0, workers=0))
    assert sum(b.padded_frames for b in batches) <= PADDED_SHARE * sum(b.frames for b in batches)
    assert sum(b.seconds for b in batches) == pytest.approx(sum(c.seconds for c in found.clips))
