"""`aqaa import`: released folders become run folders that the other verbs take."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from aqaa.audio.file import write_audio
from aqaa.backbone.loading import load_backbone
from aqaa.backbone.shards import read_tensors, write_tensors
from aqaa.backbone.step1 import Step1Config, Step1ForCausalLM
from aqaa.cli import main
from aqaa.errors import UsageError
from aqaa.lineage import read_lineage
from aqaa.pipeline import Pipeline
from aqaa.release import load_tokenizer, load_vocoder
from aqaa.release.bring_in import bring_in
from aqaa.signals import CodePair
from aqaa.storage import verify_manifest
from aqaa.tokenizer.dual import DualTokenizer
from tests.release.pieces import write_pieces
from tests.release.test_tokenizer import SOUND, write_release
from tests.release.test_vocoder import YAML, tiny_flow, tiny_head

SIZES: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
                         "num_attention_heads": 4, "num_attention_groups": 2}  # fmt: skip


def write_vocoder(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "cosyvoice.yaml").write_text(YAML)
    torch.save(tiny_flow(), folder / "flow.pt")
    torch.save(tiny_head(), folder / "hift.pt")
    return folder


def write_backbone(folder: Path, *, spare: int = 64, vision: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    texts = write_pieces(folder / "tokenizer.model", audio=5120)
    torch.manual_seed(0)
    config = Step1Config(vocab_size=texts + 5120 + spare, max_seq_len=64, **SIZES)
    state = Step1ForCausalLM(config).state_dict()
    state = {k: (v + 0.01).bfloat16() for k, v in state.items()}
    if vision:
        state["vision_tower.weight"] = torch.ones(3)
    write_tensors(folder, state.items(), shard_bytes=100_000)
    told = {"model_type": "step1", "architectures": ["Step1ForCausalLM"],
            "vocab_size": config.vocab_size, "max_seq_len": 64, **SIZES}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(told))
    (folder / "modeling_step1.py").write_text("raise SystemExit('code of a release was run')\n")
    return folder


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders as published: tokenizer, vocoder, backbone; and imported: runs/…"""
    root = tmp_path_factory.mktemp("releases")
    write_release(root / "tokenizer")
    write_vocoder(root / "CosyVoice-300M-25Hz")
    write_backbone(root / "backbone")
    assert main(["import", f"from={root / 'tokenizer'}", f"out={root / 'runs/tokenizer'}"]) == 0
    bring_in(folder=str(root / "CosyVoice-300M-25Hz"), out=str(root / "runs/vocoder"))
    bring_in(
        folder=str(root / "backbone"), out=str(root / "runs/backbone"),
        codes=str(root / "runs/tokenizer"), ignore=["vision_"], shard_bytes=60_000,
    )  # fmt: skip
    return root


def test_a_tokenizer_and_a_vocoder_are_what_they_were(releases: Path) -> None:
    ours = DualTokenizer.load(releases / "runs/tokenizer/model")
    assert ours.encode(SOUND) == load_tokenizer(releases / "tokenizer").encode(SOUND)
    voice = load_vocoder(releases / "CosyVoice-300M-25Hz")
    for organ, part in ((voice.flow, "flow"), (voice.head, "waveform")):
        stored = dict(read_tensors(releases / "runs/vocoder/model" / part))
        assert all(torch.equal(stored[k], v) for k, v in organ.state_dict().items())


def test_a_backbone_keeps_its_numbers_and_gets_ids(releases: Path) -> None:
    model = releases / "runs/backbone/model"
    before = dict(read_tensors(releases / "backbone"))
    after = dict(read_tensors(model))
    assert before.keys() - after.keys() == {"vision_tower.weight"}
    assert all(torch.equal(after[k], before[k]) and after[k].dtype == torch.bfloat16 for k in after)
    assert len(list(model.glob("*.safetensors"))) > 2
    loaded = load_backbone(model)
    ids = loaded.ids
    assert (ids.vocabulary.pad, ids.vocabulary.bos) == (0, 1)
    assert (ids.vocabulary.eot, ids.vocabulary.bot) == (3, 4)
    assert ids.vocabulary.text_tokens == ids.text.size
    assert ids.vocabulary.rows == loaded.table.shape[0] > ids.vocabulary.used_rows
    assert ids.text.encode("human\n")


def test_the_record_says_that_nobody_vouched(releases: Path) -> None:
    for kind in ("tokenizer", "vocoder", "backbone"):
        record = read_lineage(releases / "runs" / kind)
        assert record is not None and record.stage == "import" and record.parameters > 100
        assert record.parents["release"].verified is False
        assert verify_manifest(releases / "runs" / kind / "model")
    assert read_lineage(releases / "runs/backbone").parents["codes"].verified  # type: ignore[union-attr]


def test_imported_organs_make_one_model_that_answers(releases: Path, tmp_path: Path) -> None:
    runs = releases / "runs"
    words = [f"organs.tokenizer={runs}/tokenizer/model", f"organs.backbone={runs}/backbone/model",
             f"organs.flow={runs}/vocoder/model/flow",
             f"organs.waveform={runs}/vocoder/model/waveform"]  # fmt: skip
    assert main(["bundle", f"out={tmp_path / 'model'}", *words]) == 0
    pipeline = Pipeline.load(tmp_path / "model")
    sound = pipeline.vocoder.speak(CodePair([1] * 8, [2] * 12))
    assert sound.rate_hz == 22_050 and len(sound.samples) > 0.4 * 22_050
    write_audio(tmp_path / "question.wav", SOUND.numpy(), 16_000)
    code = main(["answer", f"{tmp_path / 'question.wav'}", f"model={tmp_path / 'model'}",
                 f"out={tmp_path / 'answer.wav'}"])  # fmt: skip
    assert code in (0, 2)  # random weights may say nothing


def test_an_imported_tokenizer_encodes_a_manifest(releases: Path, tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav", SOUND.numpy(), 16_000)
    (tmp_path / "m.jsonl").write_text('{"id": "a", "kind": "audio", "audio": {"path": "a.wav"}}\n')
    tokenized = ["data", "tokenize", f"{tmp_path / 'm.jsonl'}", "workers=0"]
    stores = []
    for name in ("runs/tokenizer", "runs/tokenizer/model", "tokenizer"):
        out = tmp_path / name.replace("/", "_")
        assert main([*tokenized, f"tokenizers={releases / name}", f"out={out}"]) == 0
        stores.append((out / "linguistic.bin").read_bytes() + (out / "meta.json").read_bytes())
    assert stores[0] == stores[1] == stores[2]


def test_what_cannot_be_imported_is_refused_and_nothing_left(
    releases: Path, tmp_path: Path
) -> None:
    codes, out = str(releases / "runs/tokenizer"), str(tmp_path / "out")

    def refused(sentence: str, folder: Path, **more: Any) -> None:
        with pytest.raises(UsageError, match=sentence):
            bring_in(folder=str(folder), out=out, **more)
        assert not Path(out).exists()

    backbone = releases / "backbone"
    refused("has no place for 1 tensors: vision_tower.weight", backbone, codes=codes)
    refused("import those first and give codes=FOLDER", backbone, ignore=["vision_"])
    refused("nowhere is not a folder", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    refused("is no release we know", tmp_path / "empty")
    refused("there is no room for audio ids", write_backbone(tmp_path / "small", spare=-2000),
            codes=codes, ignore=["vision_"])  # fmt: skip
    bare = shutil.copytree(backbone, tmp_path / "bare")
    (bare / "tokenizer.model").unlink()
    refused("holds neither tokenizer.model nor tokenizer.json", bare, codes=codes,
            ignore=["vision_"])  # fmt: skip
    other = shutil.copytree(backbone, tmp_path / "other")
    told = json.loads((other / "config.json").read_text())
    told |= {"model_type": "step_audio_2", "architectures": ["StepAudio2ForCausalLM"]}
    (other / "config.json").write_text(json.dumps(told))
    refused("Step-Audio 2 and R1", other, codes=codes)
    torch.save({"decoder.estimator.blocks.0.x": torch.ones(1)}, _moved(tmp_path) / "flow.pt")
    refused("DiT flow of Step-Audio-EditX", tmp_path / "editx")


def _moved(tmp_path: Path) -> Path:
    return write_vocoder(tmp_path / "editx")


def test_numbers_that_are_none_and_foreign_runs_are_refused(
    releases: Path, tmp_path: Path
) -> None:
    folder = write_backbone(tmp_path / "nan")
    state = dict(read_tensors(folder))
    state["model.norm.weight"][0] = torch.nan
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    write_tensors(folder, state.items())
    codes = str(releases / "runs/tokenizer")
    with pytest.raises(UsageError, match="model.norm.weight holds NaN or infinity"):
        bring_in(folder=str(folder), out=str(tmp_path / "o"), codes=codes, ignore=["vision_"])
    assert not (tmp_path / "o/model").exists()
    run = shutil.copytree(releases / "runs/tokenizer", tmp_path / "run")
    record = json.loads((run / "lineage.json").read_text())
    (run / "lineage.json").write_text(json.dumps({**record, "stage": "sft"}))
    with pytest.raises(UsageError, match="holds a run of sft, not an import"):
        bring_in(folder=str(releases / "tokenizer"), out=str(run))
