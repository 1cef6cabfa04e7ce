"""The weighted mean of three models."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from aqaa.backbone.loading import Ids, load_backbone
from aqaa.backbone.shards import INDEX, WEIGHTS, read_tensors, write_tensors
from aqaa.errors import UsageError
from aqaa.runtime.export import export
from aqaa.stages.merge import merge
from aqaa.storage import (
    load_tensors,
    read_json,
    save_tensors,
    tree_hash,
    verify_manifest,
    write_json,
    write_manifest,
)
from tests.conftest import Chain
from tests.saved import reseal, save_plain, save_sharded

PARTS = ("sft_1", "sft_2", "dpo")


def folders(chain: Chain) -> list[str]:
    return [f"{chain / part}/model" for part in PARTS]


def test_it_is_the_mean_in_float64_rounded_once(chain: Chain) -> None:
    parts = [load_tensors(f"{folder}/model.safetensors") for folder in folders(chain)]
    merged = load_tensors(chain / "merge/model/model.safetensors")
    assert merged.keys() == parts[0].keys()
    for name, tensor in merged.items():
        five, also_five, one = (part[name].double() for part in parts)
        assert torch.equal(tensor, ((5 * five + 5 * also_five + one) / 11).float())


def test_the_result_is_a_model_with_a_record(chain: Chain) -> None:
    assert load_backbone(chain / "merge/model").ids.tokenizer_hash
    record = read_json(chain / "merge/lineage.json")
    assert (record["stage"], record["steps"], len(record["parents"])) == ("merge", 0, 3)
    merged = load_tensors(chain / "merge/model/model.safetensors")
    assert record["parameters"] == sum(t.numel() for t in merged.values())


def test_weights_count_by_their_ratio(chain: Chain, tmp_path: Path) -> None:
    merge(models=folders(chain), weights=[10, 10, 2], out=str(tmp_path / "a"))
    assert (tmp_path / "a/model/model.safetensors").read_bytes() == (
        (chain / "merge/model/model.safetensors").read_bytes()
    )


def test_sharded_models_are_merged_into_shards(chain: Chain, tmp_path: Path) -> None:
    sharded = []
    for i, folder in enumerate(folders(chain)):
        copy = shutil.copytree(folder, tmp_path / str(i))
        (copy / WEIGHTS).unlink()
        write_tensors(copy, read_tensors(folder), shard_bytes=30_000 * (i + 1))
        assert (copy / INDEX).is_file()
        write_manifest(copy)
        sharded.append(str(copy))
    merge(models=sharded, weights=[5, 5, 1], out=str(tmp_path / "m"), shard_bytes=40_000)
    model = tmp_path / "m/model"
    verify_manifest(model)
    assert (model / INDEX).is_file() and not (model / WEIGHTS).exists()
    wanted = load_tensors(chain / "merge/model/model.safetensors")
    found = dict(read_tensors(model))
    assert found.keys() == wanted.keys() and all(found[k].equal(wanted[k]) for k in wanted)
    ids = torch.arange(8)[None]
    logits = [load_backbone(f).model(input_ids=ids).logits for f in (model, chain / "merge/model")]
    assert logits[0].equal(logits[1])


def test_finished_runs_stand_for_their_models(chain: Chain, tmp_path: Path) -> None:
    merge(models=[str(chain / p) for p in PARTS], weights=[5, 5, 1], out=str(tmp_path / "m"))
    for name in (WEIGHTS, "MANIFEST.sha256"):
        assert (tmp_path / "m/model" / name).read_bytes() == (
            (chain / "merge/model" / name).read_bytes()
        )


def states(chain: Chain, folder: Path) -> list[str]:
    """The same three as the saved states of runs: of four ranks, of one process, of three ranks."""
    for number, (part, ranks) in enumerate(zip(PARTS, (4, 0, 3), strict=True)):
        weights = load_tensors(chain / part / "model" / WEIGHTS)
        weights |= {} if ranks else {"lm_head.weight": weights["model.embed_tokens.weight"]}
        if number == 2:
            del weights["model.norm.weight"]  # not trained: as it was in the model before
        run, start = folder / part, chain / "sft_1" / "model"
        if ranks:
            save_sharded(run, start, 7, weights, ranks)
        else:
            save_plain(run, start, 6, {k: v * 0 for k, v in weights.items()})
            save_plain(run, start, 7, weights)
    named = folder / "dpo/checkpoints/step_00000007"
    return [str(folder / "sft_1"), str(folder / "sft_2"), str(named)]


def test_saved_states_are_merged_as_the_models_they_would_become(
    chain: Chain, tmp_path: Path
) -> None:
    found = states(chain, tmp_path)
    exported = []
    for run in PARTS:
        export(source=str(tmp_path / run), out=str(tmp_path / f"{run}_hf"))
        exported.append(str(tmp_path / f"{run}_hf"))
    merge(models=exported, weights=[5, 5, 1], out=str(tmp_path / "wanted"))
    merge(models=found, weights=[5, 5, 1], out=str(tmp_path / "m"))
    for name in (WEIGHTS, "aqaa.json", "tokenizer.json", "config.json"):
        assert (tmp_path / "m/model" / name).read_bytes() == (
            (tmp_path / "wanted/model" / name).read_bytes()
        )
    parents = read_json(tmp_path / "m/lineage.json")["parents"]
    assert sorted(parents) == ["model_0", "model_1", "model_2", "model_2_start"]
    state = tmp_path / "sft_2/checkpoints/step_00000007"
    assert parents["model_1"] == {"path": str(state), "hash": tree_hash(state), "verified": True}
    mixed = [found[0], f"{chain / 'sft_2'}", found[2]]  # beside a run that has ended
    merge(models=mixed, weights=[5, 5, 1], out=str(tmp_path / "n"))
    assert (tmp_path / "n/model" / WEIGHTS).read_bytes() == (
        (tmp_path / "wanted/model" / WEIGHTS).read_bytes()
    )


def test_a_state_that_is_not_whole_is_refused(chain: Chain, tmp_path: Path) -> None:
    found, out = states(chain, tmp_path), tmp_path / "m"

    def refused(sentence: str) -> None:
        with pytest.raises(UsageError, match=sentence) as caught:
            merge(models=found, weights=[5, 5, 1], out=str(out))
        assert "\n" not in str(caught.value) and not out.exists()

    shard = tmp_path / "sft_1/checkpoints/step_00000007/shard_00002.safetensors"
    whole = shard.read_bytes()
    for place in (-1, len(whole) // 3):  # of a master; of a moment, which is only hashed
        damaged = bytearray(whole)
        damaged[place] ^= 1
        shard.write_bytes(damaged)
        refused("shard_00002.safetensors is damaged")
    shard.unlink()
    reseal(shard.parent)
    refused("step_00000007 lacks a part of decoder.*: shards of it are missing")
    start = {"path": f"{chain / 'sft_1'}/model", "hash": "0" * 64}
    write_json(tmp_path / "sft_1/parents.json", {"model": start})
    refused("sft_1/model has changed since .*/sft_1 began with it")
    shutil.rmtree(shard.parent)
    refused("is a run that has not ended and has saved no state")


def test_models_of_other_precisions_are_merged_into_one(chain: Chain, tmp_path: Path) -> None:
    parts = [load_tensors(f"{folder}/{WEIGHTS}") for folder in folders(chain)]
    copy = shutil.copytree(folders(chain)[1], tmp_path / "half")
    parts[1] = {name: tensor.bfloat16() for name, tensor in parts[1].items()}
    save_tensors(copy / WEIGHTS, parts[1], {"format": "pt"})
    write_manifest(copy)
    words = {"models": [folders(chain)[0], str(copy), folders(chain)[2]], "weights": [5, 5, 1]}
    with pytest.raises(UsageError, match="has BF16 .* and F32 .*; dtype=bfloat16 rounds all"):
        merge(**words, out=str(tmp_path / "m"))
    with pytest.raises(UsageError, match="dtype=int8 is none of"):
        merge(**words, out=str(tmp_path / "m"), dtype="int8")
    for dtype in (torch.bfloat16, torch.float32):
        name = str(dtype).removeprefix("torch.")
        merge(**words, out=str(tmp_path / name), dtype=name)
        found = load_tensors(tmp_path / name / "model" / WEIGHTS)
        for key, tensor in found.items():
            five, also_five, one = (part[key].double() for part in parts)
            wanted = ((5 * five + 5 * also_five + one) / 11).to(dtype)
            assert tensor.dtype == dtype and float((tensor == wanted).float().mean()) > 0.999
        assert read_json(tmp_path / name / "model/config.json")["dtype"] == name
        assert load_backbone(tmp_path / name / "model").ids


def test_audio_rows_may_have_their_own_weights(chain: Chain, tmp_path: Path) -> None:
    merge(models=folders(chain), weights=[5, 5, 1], audio_weights=[0, 0, 1],
          out=str(tmp_path / "m"))  # fmt: skip
    found, plain, dpo = (load_tensors(folder / WEIGHTS) for folder in (
        tmp_path / "m/model", chain / "merge/model", chain / "dpo/model"))  # fmt: skip
    ids = Ids.load(tmp_path / "m/model").vocabulary
    audio = slice(ids.linguistic_start, ids.marker_start)
    tables = {name for name, tensor in plain.items() if tensor.shape[0] == ids.rows}
    assert tables == {"model.embed_tokens.weight"}  # the head is tied to it
    for name, tensor in found.items():
        if name in tables:
            assert tensor[audio].equal(dpo[name][audio]) and not tensor.equal(dpo[name])
            tensor[audio] = plain[name][audio]
        assert tensor.equal(plain[name])
    assert "audio_weights: [0.0, 0.0, 1.0]" in (tmp_path / "m/config.yaml").read_text()
    with pytest.raises(UsageError, match="give one weight each"):
        merge(models=folders(chain), weights=[5, 5, 1], audio_weights=[1], out=str(tmp_path / "n"))


def test_a_cut_merge_goes_on_and_leaves_nothing_behind(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aqaa.backbone import merging

    words = {"models": folders(chain), "weights": [5, 5, 1], "out": str(tmp_path / "m")}
    written: list[str] = []
    real = merging._write

    def cut(folder: Path, file: str, *args: Any) -> str:
        if len(written) == 1:
            raise OSError(28, "No space left on device")
        written.append(file)
        return real(folder, file, *args)

    monkeypatch.setattr(merging, "_write", cut)
    with pytest.raises(UsageError, match="No space left on device; the same command goes on"):
        merge(**words, shard_bytes=40_000)
    left = {path.name for path in (tmp_path / "m").iterdir()}
    assert left == {".model.merging"} and not list((tmp_path / "m").rglob("*.safetensors"))
    monkeypatch.setattr(merging, "_write", lambda *args: written.append(args[1]) or real(*args))
    merge(**words, shard_bytes=40_000)
    assert len(written) == len(set(written)) > 2  # the finished file was kept
    assert not list((tmp_path / "m").glob(".*"))
    verify_manifest(tmp_path / "m/model")
    found, wanted = (dict(read_tensors(f)) for f in (tmp_path / "m/model", chain / "merge/model"))
    assert all(found[k].equal(wanted[k]) for k in wanted)


def test_what_another_merge_left_is_not_used(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aqaa.stages import merge as stage

    def die(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stage, "atomic_folder", die)
        with pytest.raises(KeyboardInterrupt):
            merge(models=folders(chain), weights=[1, 1, 1], out=str(tmp_path / "m"))
    assert list((tmp_path / "m/.model.merging").glob("*.part"))
    (tmp_path / "m/.model.0a1b2c3d").mkdir()  # of a kill while the model got its name
    merge(models=folders(chain), weights=[5, 5, 1], out=str(tmp_path / "m"))
    assert (tmp_path / "m/model" / WEIGHTS).read_bytes() == (
        (chain / "merge/model" / WEIGHTS).read_bytes()
    )
    assert not list((tmp_path / "m").glob(".*"))


def test_a_damaged_model_is_refused(chain: Chain, tmp_path: Path) -> None:
    copy = shutil.copytree(folders(chain)[2], tmp_path / "dpo")
    data = bytearray((copy / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "model.safetensors").write_bytes(data)
    with pytest.raises(UsageError, match="is damaged"):
        merge(models=[*folders(chain)[:2], str(copy)], weights=[5, 5, 1], out=str(tmp_path / "m"))
    assert not (tmp_path / "m").exists()


def test_models_of_other_tokenizers_are_refused(chain: Chain, tmp_path: Path) -> None:
    copy = shutil.copytree(folders(chain)[2], tmp_path / "dpo")
    replace(Ids.load(copy), tokenizer_hash="other").save(copy)
    write_manifest(copy)
    with pytest.raises(UsageError, match="have different speech tokenizers"):
        merge(models=[*folders(chain)[:2], str(copy)], weights=[5, 5, 1], out=str(tmp_path / "m"))
    assert not (tmp_path / "m").exists()


def _layout(folder: Path) -> None:
    found = Ids.load(folder)
    replace(found, layout=replace(found.layout, text_block=7)).save(folder)


def _text(folder: Path) -> None:
    file = folder / "tokenizer.json"
    file.write_text(file.read_text() + "\n")


def _config(folder: Path) -> None:
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", {**config, "num_attention_heads": 1, "extra": 3})


@pytest.mark.parametrize(
    ("change", "what"), [(_layout, "layouts"), (_text, "text tokenizers"), (_config, "sizes")]
)
def test_models_that_mean_something_else_are_refused(
    chain: Chain, tmp_path: Path, change: Callable[[Path], None], what: str
) -> None:
    copy = shutil.copytree(folders(chain)[2], tmp_path / "dpo")
    change(copy)
    write_manifest(copy)
    with pytest.raises(UsageError, match=f"have different {what}") as info:
        merge(models=[*folders(chain)[:2], str(copy)], weights=[5, 5, 1], out=str(tmp_path / "m"))
    assert "\n" not in str(info.value)
    assert not (tmp_path / "m").exists()


def test_its_settings_stay_with_it(chain: Chain, tmp_path: Path) -> None:
    merge(models=folders(chain), weights=[5, 5, 1], out=str(tmp_path / "m"))
    lines = (tmp_path / "m" / "config.yaml").read_text().splitlines()
    assert lines[0].startswith("models: [") and folders(chain)[1] in lines[0]
    assert lines[1] == "weights: [5.0, 5.0, 1.0]"
    merge(models=folders(chain), weights=[1, 1, 1], out=str(tmp_path / "m"))  # a merge may go
    assert "[1.0, 1.0, 1.0]" in (tmp_path / "m" / "config.yaml").read_text()


@pytest.mark.parametrize("kept", ["lineage.json", "checkpoints/last.ckpt", "thesis.txt"])
def test_another_stages_run_is_never_written_over(chain: Chain, tmp_path: Path, kept: str) -> None:
    run = tmp_path / "run"
    (run / kept).parent.mkdir(parents=True)
    (run / kept).write_text((chain / "sft_1/lineage.json").read_text())
    with pytest.raises(UsageError, match="choose another out"):
        merge(models=folders(chain), weights=[5, 5, 1], out=str(run))
    assert [p.name for p in run.iterdir()] == [kept.split("/")[0]]


@pytest.mark.parametrize("weights", [[5, 5], [0, 0, 0], [2, 2, -1]])
def test_unfit_weights_leave_nothing(chain: Chain, tmp_path: Path, weights: list[float]) -> None:
    with pytest.raises(UsageError, match="weights"):
        merge(models=folders(chain), weights=weights, out=str(tmp_path / "m"))
    assert not (tmp_path / "m" / "lineage.json").exists()
    assert not list((tmp_path / "m").glob("*"))
