"""The benchmark of first attempts, short: an io worker and beat as users run them."""

from __future__ import annotations

import json

import pytest

from benchmarks import webhooks


def test_a_receiver_that_hangs_delays_no_first_attempt_at_the_others(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The benchmark sets it for good.
    monkeypatch.setenv("NIRVANA_WEBHOOK_ALLOW_PRIVATE_ADDRESSES", "true")
    webhooks.main(["--events=40", "--rate=20", "--json"])
    *table, last = capsys.readouterr().out.splitlines()
    figures = json.loads(last)
    assert set(figures) == {
        "first_attempt_ms_p50",
        "first_attempt_ms_p99",
        "first_attempt_beside_hanging_ms_p50",
        "first_attempt_beside_hanging_ms_p99",
    }
    assert 0 < figures["first_attempt_beside_hanging_ms_p50"] < 1_000
    assert table[1].split()[0] == "receivers"
