"""`nirvana characterize` and `nirvana simulate` on a small log of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fleet.cli import main
from tests.unit.evaluation.logs import log_rows, write_log

LINE = pytest.CaptureFixture[str]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return write_log(tmp_path / "log.jsonl", log_rows(150))


def run(captured: LINE, *arguments: str | Path) -> dict[str, Any]:
    """The JSON that a command ends with."""
    assert main([str(each) for each in (*arguments, "--json")]) == 0
    answer: dict[str, Any] = json.loads(captured.readouterr().out.splitlines()[-1])
    return answer


def test_characterize_prints_tables_and_draws_plots(
    log: Path, tmp_path: Path, capsys: LINE
) -> None:
    options = ("--embedder", "ngrams", "--cache-dir", tmp_path / "cache")
    answer = run(capsys, "characterize", log, *options, "--out", tmp_path / "plots")
    assert (answer["num_rows"], answer["num_users"]) == (150, 4)
    names = {path.name for path in (tmp_path / "plots").iterdir()}
    pictures = {"similarity", "popularity", "locality", "growth", "sessions"}
    assert names == {"index.html"} | {f"{name}.png" for name in pictures}
    page = (tmp_path / "plots" / "index.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == len(pictures)
    assert main(["characterize", str(log), *map(str, options)]) == 0
    assert "nearest earlier prompt of" in capsys.readouterr().out


def test_simulate_prints_tables_and_draws_plots(log: Path, tmp_path: Path, capsys: LINE) -> None:
    options: tuple[str | Path, ...] = (
        *("--embedder", "ngrams", "--cache-dir", tmp_path / "cache"),
        *("--policy", "lru", "--policy", "lcbfu-aged", "--capacity", "5", "--capacity", "100"),
        *("--seconds-per-step", "0.05", "--gpu-price", "2", "--rate", "0.5", "--predictor"),
    )
    answer = run(capsys, "simulate", log, *options, "--out", tmp_path / "plots")
    assert answer["shared_by"] == "user"
    assert {(r["policy"], r["capacity_share"]) for r in answer["runs"]} == {
        (policy, share) for policy in ("lru", "lcbfu-aged") for share in (0.05, 1.0)
    }
    for one in answer["runs"]:
        assert one["money_saved"] == pytest.approx(2 * one["gpu_hours_saved"])
        assert one["steps_saved"] == sum(int(k) * n for k, n in one["hits_by_k"].items())
    assert (tmp_path / "plots" / "savings-final.png").stat().st_size > 10_000
    assert main(["simulate", *map(str, (log, *options))]) == 0
    printed = capsys.readouterr().out
    assert "clairvoyant bound" in printed
    assert "without a cache on" in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--capacity", "0"], "percents above 0 and up to 100"),
        (["--thresholds", "0.5:0.9,0.1:0.6"], "both rising"),
        (["--gpu-price", "2"], "--gpu-price needs --seconds-per-step"),
        (["--rate", "1"], "need --seconds-per-step"),
        (["--embedder", "word2vec"], "expected minilm, ngrams or clip:FOLDER"),
    ],
)
def test_wrong_options_are_refused_in_one_line(
    log: Path, tmp_path: Path, capsys: LINE, options: list[str], message: str
) -> None:
    base = ["simulate", str(log), "--embedder", "ngrams", "--cache-dir", str(tmp_path / "cache")]
    assert main([*base, *options]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert message in error


def test_a_log_that_is_not_there(tmp_path: Path, capsys: LINE) -> None:
    assert main(["characterize", str(tmp_path / "absent.jsonl"), "--embedder", "ngrams"]) == 1
    assert "absent.jsonl: no such file" in capsys.readouterr().err


def test_simulate_limits_what_the_same_words_again_skip(tmp_path: Path, capsys: LINE) -> None:
    log = write_log(tmp_path / "log.jsonl", [{"prompt": "a fox", "user": "ada"}] * 4)
    options: tuple[str | Path, ...] = (
        *("--embedder", "ngrams", "--cache-dir", tmp_path / "cache", "--capacity", "100"),
        *("--policy", "lru", "--state-kind", "final"),
    )
    saved = {
        fraction: run(capsys, "simulate", log, *options, "--reroll-fraction", fraction)["runs"][0]
        for fraction in ("0", "0.2", "1")
    }
    assert {fraction: one["steps_saved"] for fraction, one in saved.items()} == {
        "0": 0,
        "0.2": 30,
        "1": 75,
    }
