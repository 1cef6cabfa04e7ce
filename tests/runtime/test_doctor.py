"""The doctor's judgement of what it sees, and that one broken library does not stop it."""

import pytest
from packaging.requirements import Requirement

from aqaa.runtime import doctor


@pytest.mark.parametrize(
    ("version", "essential", "level"),
    [
        ("2.13.0+cpu", True, "ok"),
        ("2.14.0", True, "fail"),
        (None, True, "fail"),
        (None, False, "warn"),
    ],
)
def test_packages_are_held_against_their_range(
    version: str | None, essential: bool, level: str
) -> None:
    finding = doctor.package_finding(Requirement("torch>=2.13,<2.14"), version, essential)
    assert finding.level == level
    assert bool(finding.cure) == (level != "ok")


def test_disk_memory_and_python() -> None:
    levels = [doctor.disk_finding(gb).level for gb in (0.5, 3, 100)]
    assert levels == ["fail", "warn", "ok"]
    assert [doctor.memory_finding(gb).level for gb in (2, 64)] == ["warn", "ok"]
    assert [doctor.python_finding(v).level for v in ((3, 10), (3, 11))] == ["fail", "ok"]


def test_the_card_names_core_and_demo_packages() -> None:
    essential = {requirement.name: core for requirement, core in doctor.requirements()}
    assert essential["torch"] and not essential["espeakng-loader"]
    assert "trl" not in essential and "pytest" not in essential


def test_a_check_that_raises_is_a_finding_with_a_cure() -> None:
    def _peft() -> doctor.Finding:
        raise OSError("libc10_cuda.so: cannot\nopen")

    text = str(doctor._tried(_peft))
    assert text.startswith("fail  peft") and "cannot open; run `make setup`" in text


def test_the_exit_code_tells_whether_something_essential_failed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = doctor.Finding("ok", "a", "1"), doctor.Finding("fail", "b", "2", "mend it")
    for findings, code in (([good], 0), ([doctor.Finding("warn", "c", "3")], 0), ([good, bad], 1)):
        monkeypatch.setattr(doctor, "findings", lambda found=findings: iter(found))
        assert doctor.doctor() == code
    assert "mend it" in capsys.readouterr().out


def test_env_prints_versions_without_importing(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.env() == 0
    text = capsys.readouterr().out
    assert "python" in text and "torch" in text and "espeakng-loader" in text


@pytest.mark.slow
def test_what_is_installed_here_passes() -> None:
    assert [str(f) for f in doctor.findings() if f.level == "fail"] == []
