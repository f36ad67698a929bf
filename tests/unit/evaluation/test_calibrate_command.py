"""`nirvana calibrate` on a tiny model: every part is real but the pictures' worth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cache.calibration import read_calibration
from fleet.cli import main
from models.sampling import SMALL
from tests.tiny_pipeline import build_tiny_pipeline
from tests.unit.evaluation.logs import log_rows, write_log

CAPTURED = pytest.CaptureFixture[str]


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    model = build_tiny_pipeline(tmp_path / "model")
    monkeypatch.setenv("NIRVANA_MODEL", "tiny")
    monkeypatch.setenv("NIRVANA_MODEL_PATH", str(model))
    log = write_log(tmp_path / "log.jsonl", log_rows(120))
    return [
        *("calibrate", "--prompts", str(log), "--out", str(tmp_path / "out")),
        *("--clip", str(SMALL / "clip"), "--pairs", "16", "--steps", "10", "--json"),
    ]


def answer(captured: CAPTURED) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(captured.readouterr().out.splitlines()[-1])
    return found


def test_calibrate_measures_draws_and_continues(
    arguments: list[str], tmp_path: Path, capsys: CAPTURED
) -> None:
    assert main(arguments) == 0
    first = answer(capsys)
    out = tmp_path / "out"
    calibration = read_calibration(out / "thresholds.json")
    assert first["version"] == calibration.version
    assert first["measured"]["num_inference_steps"] == 10
    lines = (out / "pairs.jsonl").read_text().splitlines()
    assert set(json.loads(lines[1])["from_state"]["final"]) == {str(k) for k in range(1, 10)}
    assert (out / "kept-final-clip-score.png").stat().st_size > 10_000
    # A run that was killed two pairs before its end draws those two, and no other.
    (out / "pairs.jsonl").write_text("\n".join(lines[:-2]) + "\n")
    assert main(arguments) == 0
    assert (out / "pairs.jsonl").read_text().splitlines()[:-2] == lines[:-2]
    assert answer(capsys)["tables"] == first["tables"]


def test_a_model_without_a_clip_needs_one_named(arguments: list[str], capsys: CAPTURED) -> None:
    at = arguments.index("--clip")
    assert main(arguments[:at] + arguments[at + 2 :]) == 2
    assert "is no CLIP folder" in capsys.readouterr().err


def test_a_model_that_is_not_served_is_refused(arguments: list[str], capsys: CAPTURED) -> None:
    assert main([arguments[0], "large", *arguments[1:]]) == 2
    assert "model 'large' is not served; NIRVANA_MODEL(S) name: tiny" in capsys.readouterr().err
