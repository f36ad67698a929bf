"""The file of thresholds: what it may hold, and how it is refused."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from cache.calibration import FILE_NAME, Calibration, read_calibration, read_shipped
from cache.entry import StateKind
from cache.errors import CalibrationInvalid

ROWS = ((0.2, 0.7), (0.6, 0.9))


def calibration(**changes: Any) -> Calibration:
    fields: dict[str, Any] = {
        "revision": "r1",
        "embedder": "clip",
        "tables": {StateKind.FINAL: ROWS},
        "measured": {"pairs": 200},
    }
    return Calibration(**{**fields, **changes})


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    calibration().write(tmp_path / FILE_NAME)
    assert read_calibration(tmp_path / FILE_NAME) == calibration()
    assert read_shipped([str(tmp_path), str(tmp_path / "absent")]) == [calibration()]


def test_the_version_names_what_it_holds() -> None:
    assert calibration().version == calibration().version
    assert calibration(revision="r2").version != calibration().version
    assert calibration().version.startswith("calibrated-")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ((), "expected fractions and similarities that rise"),
        (((0.4, 0.9), (0.2, 0.95)), "expected fractions and similarities that rise"),
        (((0.2, 0.9), (0.4, 0.8)), "expected fractions and similarities that rise"),
        (((0.2, 0.7), (1.0, 0.9)), "fractions between 0 and 1"),
        (((0.2, 0.7), (0.4, 1.1)), "similarities from -1 to 1"),
        (((0.2, float("nan")),), "similarities from -1 to 1"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused(rows: Any, message: str) -> None:
    with pytest.raises(CalibrationInvalid, match=f"final: {message}|final: .*{message}"):
        calibration(tables={StateKind.FINAL: rows})


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", json.dumps({"revision": "r", "embedder": "e", "tables": {"half": []}})],
)
def test_a_file_that_cannot_be_read_is_named_and_left_out(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / FILE_NAME
    path.write_text(text)
    with pytest.raises(CalibrationInvalid, match=FILE_NAME):
        read_calibration(path)
    with caplog.at_level(logging.WARNING):  # a worker of an earlier test may have raised it
        assert read_shipped([str(tmp_path)]) == []
    assert "thresholds not used" in caplog.text
