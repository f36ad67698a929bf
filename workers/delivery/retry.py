"""When a webhook is tried again: Standard Webhooks' example schedule, about three days long.

Pure: the time and the jitter are arguments.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Final

# Seconds before attempt 1, 2, ... counted from the end of the attempt before it.
RETRY_DELAYS_S: Final = (
    0,
    5,
    5 * 60,
    30 * 60,
    2 * 3_600,
    5 * 3_600,
    10 * 3_600,
    14 * 3_600,
    20 * 3_600,
    24 * 3_600,
)
JITTER_SHARE: Final = 0.1  # of the delay, added: a retry is never earlier than the table says
RETRY_AFTER_S_MAX: Final = RETRY_DELAYS_S[-1]  # a receiver may slow us down, not silence us


def next_attempt_at(
    attempt: int, *, now: datetime, jitter: float, retry_after_s: float | None = None
) -> datetime | None:
    """When to try again after the failed attempt of that number (from 1); None: give up.

    `jitter` is uniform in [0, 1). The receiver's `retry_after_s` can only make the wait longer.
    """
    if attempt >= len(RETRY_DELAYS_S):
        return None
    delay_s = max(RETRY_DELAYS_S[attempt], min(retry_after_s or 0.0, RETRY_AFTER_S_MAX))
    return now + timedelta(seconds=delay_s * (1 + JITTER_SHARE * jitter))


def parse_retry_after(value: str, *, now: datetime) -> float | None:
    """Seconds to wait by a Retry-After header, 0 to a day; None if it cannot be read.

    Both forms of RFC 9110, section 10.2.3: seconds, or an HTTP date.
    """
    value = value.strip()
    if value.isascii() and value.isdigit():
        # float, not int: any number of digits is read, up to infinity.
        return min(float(value), RETRY_AFTER_S_MAX)
    try:
        instant = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    if instant.tzinfo is None:
        instant = instant.replace(tzinfo=UTC)
    return min(max((instant - now).total_seconds(), 0.0), RETRY_AFTER_S_MAX)
