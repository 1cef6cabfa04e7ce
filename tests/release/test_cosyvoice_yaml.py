"""Tags name no code here, references are followed, and only numbers come out."""

from pathlib import Path

import pytest

from aqaa.errors import UsageError
from aqaa.release.cosyvoice_yaml import VocoderNumbers, read_plain


def write(folder: Path, text: str) -> Path:
    path = folder / "cosyvoice.yaml"
    path.write_text(text)
    return path


def test_tags_are_dropped(tmp_path: Path) -> None:
    text = "a: !new:os.system\n  b: !apply:os.abort []\nc: !name:x.y\nd: !ref <a>\ne: !copy [1, 2]"
    tree = read_plain(write(tmp_path, text))
    assert tree == {"a": {"b": []}, "c": "", "d": "<a>", "e": [1, 2]}


def test_pythons_own_tags_build_nothing(tmp_path: Path) -> None:
    text = "a: !!python/object/apply:os.system ['touch trapped']\n"
    with pytest.raises(UsageError, match="not valid YAML"):
        read_plain(write(tmp_path, text))


def test_what_is_not_said_is_the_recipes(tmp_path: Path) -> None:
    found = VocoderNumbers.read(write(tmp_path, "flow: !new:x\n  a: 1\n"))
    assert found == VocoderNumbers()
    assert (found.rate_hz, found.encoder_heads, found.unet_heads) == (22050, 8, 8)


def test_a_reference_is_followed(tmp_path: Path) -> None:
    text = "n:\n  m: 3\nflow: !new:x\n  encoder:\n    attention_heads: !ref <n.m>\n"
    assert VocoderNumbers.read(write(tmp_path, text)).encoder_heads == 3


@pytest.mark.parametrize(
    "value", ["!ref <gone>", "<hift.sampling_rate>", "yes", "-1", ".nan", "[1]"]
)
def test_what_is_no_number_is_refused_or_left(tmp_path: Path, value: str) -> None:
    path = write(tmp_path, f"flow: {{}}\nhift:\n  sampling_rate: {value}\n")
    if value == "!ref <gone>":  # nothing is said
        assert VocoderNumbers.read(path).rate_hz == 22050
        return
    with pytest.raises(UsageError, match="sampling_rate is .* not a number"):
        VocoderNumbers.read(path)


@pytest.mark.parametrize("text", ["a: [", "- 1\n", "\x00", "a: *b"])
def test_damage_is_one_sentence(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match="not valid YAML|is not a mapping"):
        read_plain(write(tmp_path, text))


def test_it_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read .*cosyvoice.yaml: No such file"):
        read_plain(tmp_path / "cosyvoice.yaml")
