from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from fleet.demo.contact_sheet import Card, write_contact_sheet
from fleet.demo.prompts import SESSIONS
from fleet.demo.session import Comparison, TimedJob, cards, num_prompts
from fleet.demo.summary import headline, job_table, summarize
from producer.contract import CacheOutcome, Status
from producer.result import CacheReport, JobResult, Steps
from tests.unit.fleet.pictures import png


def job(job_id: str, *, k: int = 0, source: str | None = None, seconds: float = 1.0) -> TimedJob:
    outcome = CacheOutcome.HIT if k else CacheOutcome.MISS
    report = CacheReport(outcome=outcome, k=k, similarity=0.9 if k else None, source_job_id=source)
    result = JobResult(
        job_id=job_id,
        status=Status.SUCCEEDED,
        attempt=1,
        cache=report,
        steps=Steps(asked=50, run=50 - k),
    )
    return TimedJob(result=result, seconds=seconds, png=png("red"))


@pytest.fixture
def comparisons() -> list[Comparison]:
    return [
        Comparison(
            user="ada",
            prompt="a fox",
            cached=job("1", seconds=1.0),
            uncached=job("2", seconds=1.0),
        ),
        Comparison(
            user="ada",
            prompt="a red fox",
            cached=job("3", k=25, source="1", seconds=0.5),
            uncached=job("4", seconds=1.0),
        ),
    ]


def test_the_prompt_list_is_long_enough_and_people_iterate() -> None:
    assert num_prompts() >= 40
    assert len(SESSIONS) >= 3
    prompts = [prompt for session in SESSIONS.values() for prompt in session]
    assert len(set(prompts)) == len(prompts) - 1  # somebody asks for the same one twice


def test_the_summary_adds_up(comparisons: list[Comparison]) -> None:
    summary = summarize(comparisons)
    assert (summary.jobs, summary.hits) == (2, 1)
    assert (summary.steps_asked, summary.steps_run, summary.savings) == (100, 75, 0.25)
    assert summary.seconds_saved == pytest.approx(0.5)
    assert headline(summary) == (
        "1 of 2 jobs were hits; 25 of 100 denoising steps skipped (25.0%); "
        "0.5 s saved of the 2.0 s that the same jobs took without the cache (25.0%)"
    )


def test_a_hit_stands_beside_the_job_that_its_state_came_from(
    comparisons: list[Comparison],
) -> None:
    (card,) = cards(comparisons)
    assert (card.prompt, card.source_prompt, card.k) == ("a red fox", "a fox", 25)


def test_the_table_has_a_row_a_prompt(comparisons: list[Comparison]) -> None:
    console = Console(width=100)
    with console.capture() as captured:
        console.print(job_table(comparisons))
    lines = captured.get().splitlines()
    assert "uncached" in lines[0]
    assert ["miss" in lines[1], "hit" in lines[2], "0.900" in lines[2]] == [True, True, True]


@pytest.mark.parametrize(("num_cards", "num_rows"), [(0, 1), (1, 1), (3, 1), (4, 2)])
def test_the_sheet_grows_by_rows_of_three(tmp_path: Path, num_cards: int, num_rows: int) -> None:
    sheet = tmp_path / "sheet.png"
    write_contact_sheet(sheet, title="x" * 200, cards=[a_card()] * num_cards)
    one_row = tmp_path / "one.png"
    write_contact_sheet(one_row, title="", cards=[])
    with Image.open(sheet) as image, Image.open(one_row) as reference:
        row_height = 192 + 24
        assert image.size == (
            reference.width,
            reference.height + (num_rows - 1) * row_height,
        )


def test_the_sheet_shows_the_three_pictures_in_order(tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    write_contact_sheet(sheet, title="", cards=[a_card()])
    with Image.open(sheet) as image:
        row = image.height - 24 - 24 - 64  # in the middle of the tiles
        pixels = [image.getpixel((24 + 64 + number * 136, row)) for number in range(3)]
    assert pixels == [(255, 0, 0), (0, 128, 0), (0, 0, 255)]


def a_card() -> Card:
    return Card(
        prompt="a red fox",
        source_prompt="a fox",
        k=25,
        steps_asked=50,
        similarity=0.95,
        source_png=png("red"),
        reused_png=png("green"),
        uncached_png=png("blue"),
    )
