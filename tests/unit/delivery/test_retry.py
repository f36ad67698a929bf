from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.delivery.retry import (
    JITTER_SHARE,
    RETRY_AFTER_S_MAX,
    next_attempt_at,
    parse_retry_after,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_the_table_is_that_of_standard_webhooks() -> None:
    """Times since the start as the specification prints them."""
    at, times = NOW, []
    for attempt in range(1, 11):
        next_at = next_attempt_at(attempt, now=at, jitter=0.0)
        if next_at is None:
            break
        at = next_at
        times.append((at - NOW) / timedelta(seconds=1))
    clock = [(0, 0, 5), (0, 5, 5), (0, 35, 5), (2, 35, 5), (7, 35, 5), (17, 35, 5)]
    clock += [(31, 35, 5), (51, 35, 5), (75, 35, 5)]
    assert times == [h * 3_600 + m * 60 + s for h, m, s in clock]


def test_it_gives_up_after_the_tenth_attempt() -> None:
    assert next_attempt_at(9, now=NOW, jitter=0.5) is not None
    assert next_attempt_at(10, now=NOW, jitter=0.5) is None
    assert next_attempt_at(11, now=NOW, jitter=0.5, retry_after_s=1.0) is None


@given(
    attempt=st.integers(1, 9),
    jitter=st.floats(0, 1, exclude_max=True),
    retry_after_s=st.none() | st.floats(0, 1e12),
)
def test_jitter_and_retry_after_only_ever_delay_and_are_bounded(
    attempt: int, jitter: float, retry_after_s: float | None
) -> None:
    plain = next_attempt_at(attempt, now=NOW, jitter=0.0)
    at = next_attempt_at(attempt, now=NOW, jitter=jitter, retry_after_s=retry_after_s)
    assert plain is not None
    assert at is not None
    assert plain <= at <= NOW + timedelta(seconds=RETRY_AFTER_S_MAX * (1 + JITTER_SHARE))


def test_a_longer_retry_after_replaces_the_delay() -> None:
    at = next_attempt_at(1, now=NOW, jitter=0.0, retry_after_s=120.0)
    assert at == NOW + timedelta(minutes=2)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        (" 120 ", 120.0),
        ("Thu, 01 Jan 2026 00:01:30 GMT", 90.0),
        ("Thu, 01 Jan 2026 00:01:30 -0000", 90.0),
        ("Wed, 31 Dec 2025 00:00:00 GMT", 0.0),
        ("Thu, 01 Jan 2099 00:00:00 GMT", RETRY_AFTER_S_MAX),
        ("9" * 5_000, RETRY_AFTER_S_MAX),
        ("", None),
        ("-5", None),
        ("1.5", None),
        ("soon", None),
        ("٣", None),
        ("Thu, 99 Jan 2026 00:00:00 GMT", None),
        ("Thu, 01 Jan 2026 00:00:00 +9999999999", None),
    ],
)
def test_retry_after_is_read_in_both_its_forms(value: str, seconds: float | None) -> None:
    assert parse_retry_after(value, now=NOW) == seconds


@given(st.text())
def test_no_retry_after_header_breaks_the_parser(value: str) -> None:
    seconds = parse_retry_after(value, now=NOW)
    assert seconds is None or 0 <= seconds <= RETRY_AFTER_S_MAX
