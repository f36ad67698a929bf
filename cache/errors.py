"""Errors of the cache. None of them may fail a job: `ApproximateCache.find` turns each into a Miss.

CacheError
├── SettingsInvalid      a NIRVANA_ variable is missing or out of its limits
├── InvalidUrl           a service's URL does not have the expected form
├── DatabaseUnreachable  PostgreSQL does not answer, or refuses us
├── DatabaseTooOld       pgvector is missing, or older than the first version safe under churn
├── InvalidEmbedding     not a finite, non-zero vector of the scope's dimension
├── TooBusy              as many lookups are in progress as the cache allows
├── BudgetExceeded       the lookup took longer than cache_budget_s, or a statement than its limit
├── CalibrationInvalid   a table of thresholds cannot be read, or used
├── PredictorRefused     a stored match predictor is damaged, or another scope's
├── StoreTooSlow         objects were written too long ago for a row to point at them safely
├── JobForgotten         what the job leaves may not be kept any more
├── ScopeGone            the scope's namespace was forgotten meanwhile
├── RowsHeld             somebody else keeps rows locked that are to be removed
├── ObjectStoreError     the S3 server does not answer, or refuses us
│   └── ObjectMissing    no object has that key
└── LatentsInvalid       the object does not hold the latents that its row describes
    ├── ObjectTruncated  fewer or more bytes than were written
    ├── ChecksumMismatch other bytes than were written
    └── LatentsMismatch  whole, but of another shape or dtype
"""

from __future__ import annotations


class CacheError(Exception):
    """The cache could not do its work."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or type(self).__doc__)


class SettingsInvalid(CacheError):
    """A setting is missing or out of its limits."""

    def __init__(self, variable: str, reason: str) -> None:
        super().__init__(f"{variable}: {reason}")
        self.variable = variable
        self.reason = reason


class InvalidUrl(CacheError):
    """A service's URL does not have the expected form."""

    def __init__(self, expected: str) -> None:
        # The URL itself holds a password, so it is not repeated.
        super().__init__(f"expected {expected}")
        self.expected = expected


class DatabaseUnreachable(CacheError):
    """PostgreSQL does not answer, or refuses us."""

    def __init__(self, address: str, reason: str) -> None:
        super().__init__(f"database {address}: {reason}")
        self.address = address
        self.reason = reason


class DatabaseTooOld(CacheError):
    """pgvector is missing, or older than the first version safe under churn."""

    def __init__(self, found: str | None, needed: str) -> None:
        have = f"has pgvector {found}" if found else "has no pgvector"
        super().__init__(f"the database {have}; pgvector >= {needed} is needed")
        self.found = found
        self.needed = needed


class InvalidEmbedding(CacheError):
    """The embedding is not a finite, non-zero vector of the scope's dimension."""


class TooBusy(CacheError):
    """As many lookups are in progress as the cache allows."""


class BudgetExceeded(CacheError):
    """It took longer than its budget."""


class CalibrationInvalid(CacheError):
    """A table of thresholds cannot be read, or used."""


class PredictorRefused(CacheError):
    """A stored match predictor is damaged, or another scope's."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"match predictor refused: {reason}")
        self.reason = reason


class StoreTooSlow(CacheError):
    """The objects were written too long ago for a row to point at them safely."""


class JobForgotten(CacheError):
    """What the job leaves may not be kept any more: it, its user or its namespace was forgotten."""


class ScopeGone(CacheError):
    """The scope's namespace was forgotten meanwhile."""


class RowsHeld(CacheError):
    """Somebody else keeps rows locked that are to be removed."""

    def __init__(self, subject: str) -> None:
        super().__init__(f"rows of {subject} are locked by another transaction; run this again")


class ObjectStoreError(CacheError):
    """The S3 server does not answer, or refuses us."""


class ObjectMissing(ObjectStoreError):
    """No object has that key."""

    def __init__(self, key: str) -> None:
        super().__init__(f"no object {key}")
        self.key = key


class LatentsInvalid(CacheError):
    """The object does not hold the latents that its row describes."""


class ObjectTruncated(LatentsInvalid):
    """The object has another length than was written."""

    def __init__(self, expected_bytes: int, found_bytes: int) -> None:
        super().__init__(f"{found_bytes} bytes where {expected_bytes} were written")
        self.expected_bytes = expected_bytes
        self.found_bytes = found_bytes


class ChecksumMismatch(LatentsInvalid):
    """The object has other bytes than were written."""


class LatentsMismatch(LatentsInvalid):
    """The object holds a tensor of another shape or dtype."""

    def __init__(self, expected: str, found: str) -> None:
        super().__init__(f"holds {found} where {expected} was expected")
        self.expected = expected
        self.found = found
