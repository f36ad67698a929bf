from __future__ import annotations

from fleet.settings_page import PAGE, render


def test_the_page_of_settings_says_what_the_settings_are() -> None:
    assert PAGE.read_text(encoding="utf-8") == render(), "run python -m fleet.settings_page"


def test_every_setting_says_what_it_is_for() -> None:
    rows = [line for line in render().splitlines() if line.startswith("| `NIRVANA_")]
    assert [row for row in rows if row.endswith("|  |")] == []
