"""Fixtures for every test: the real servers once a run, and a fresh corner of each for a test.

A server that does not start is a failure, never a skip.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.services import TestServices, running_services, without_nirvana_variables


@pytest.fixture(scope="session", autouse=True)
def _scrubbed_environment() -> Iterator[None]:
    """No setting of the developer's shell reaches a test."""
    with pytest.MonkeyPatch.context() as patch:
        for name in without_nirvana_variables():
            patch.delenv(name)
        yield


@pytest.fixture(scope="session")
def services(_scrubbed_environment: None) -> Iterator[TestServices]:
    """PostgreSQL, Valkey and SeaweedFS, started once for the run."""
    with running_services() as running:
        yield running


@pytest.fixture
def database_url(services: TestServices) -> Iterator[str]:
    """A fresh empty database: postgresql+psycopg://..."""
    with services.database() as url:
        yield url


@pytest.fixture
def broker_url(services: TestServices) -> Iterator[str]:
    """A fresh empty broker index: redis://:password@127.0.0.1:port/N."""
    with services.broker() as url:
        yield url


@pytest.fixture
def s3_url(services: TestServices) -> Iterator[str]:
    """A fresh bucket: http://ACCESS:SECRET@127.0.0.1:port/bucket."""
    with services.bucket() as url:
        yield url
