from __future__ import annotations

import pytest

from cache.entry import Sharing, StateKind
from cache.errors import SettingsInvalid
from cache.settings import CacheSettings, Policy

DATABASE_URL = "postgresql://someone:hunter2@host:5432/nirvana"
S3_URL = "http://AKIA:hunter3@host:9000/bucket"


@pytest.fixture(autouse=True)
def _urls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIRVANA_DATABASE_URL", DATABASE_URL)
    monkeypatch.setenv("NIRVANA_S3_URL", S3_URL)


def test_defaults() -> None:
    settings = CacheSettings.load()
    assert settings.cache_enabled
    assert settings.cache_budget_s == 0.5
    assert settings.cache_sharing is Sharing.USER
    assert settings.cache_state_kind is StateKind.FINAL
    assert settings.cache_k_fractions is None
    assert settings.cache_policy is Policy.LCBFU_AGED


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIRVANA_CACHE_POLICY", "lru")
    monkeypatch.setenv("NIRVANA_CACHE_K_FRACTIONS", "0.5, 0.25")
    monkeypatch.setenv("NIRVANA_CACHE_TTL_S", "60")
    settings = CacheSettings.load()
    assert settings.cache_policy is Policy.LRU
    assert settings.cache_k_fractions == (0.25, 0.5)
    assert settings.cache_ttl_s == 60


def test_passwords_are_not_shown() -> None:
    settings = CacheSettings.load()
    for shown in (repr(settings), str(settings), settings.model_dump_json()):
        assert "hunter" not in shown
    assert settings.database_url.get_secret_value() == DATABASE_URL


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("NIRVANA_DATABASE_URL", "mysql://someone:hunter2@host/db", "expected postgresql://"),
        ("NIRVANA_S3_URL", "http://AKIA:hunter3@host:9000", "expected http"),
        ("NIRVANA_CACHE_BUDGET_S", "0", "greater than 0"),
        ("NIRVANA_CACHE_BUDGET_S", "soon", "valid number"),
        ("NIRVANA_CACHE_CAPACITY_BYTES", "-1", "greater than 0"),
        ("NIRVANA_CACHE_POLICY", "random", "'lcbfu-aged', 'lru'"),
        ("NIRVANA_CACHE_SHARING", "world", "'user' or 'namespace'"),
        ("NIRVANA_CACHE_STATE_KIND", "both", "'intermediate' or 'final'"),
        ("NIRVANA_CACHE_THRESHOLDS", "mine", "'calibrated' or 'paper'"),
        ("NIRVANA_CACHE_INDEX_ROWS_MIN", "10", "greater than or equal to 100"),
        ("NIRVANA_CACHE_INDEX_EF_CONSTRUCTION", "16", "at least twice NIRVANA_CACHE_INDEX_M"),
        ("NIRVANA_CACHE_K_FRACTIONS", ",", "between 0 and 1"),
        ("NIRVANA_CACHE_K_FRACTIONS", "0.1,1.5", "between 0 and 1"),
        ("NIRVANA_CACHE_K_FRACTIONS", "0.1,half", "valid number"),
        ("NIRVANA_CACHE_K_FRACTIONS", "0.1,nan", "between 0 and 1"),
        ("NIRVANA_CACHE_SWEEP_GRACE_S", "0", "greater than or equal to 60"),
    ],
)
def test_an_error_names_the_variable_and_no_password(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, reason: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsInvalid, match=reason) as caught:
        CacheSettings.load()
    assert caught.value.variable == variable
    assert str(caught.value).startswith(f"{variable}: ")
    assert "hunter" not in str(caught.value)


def test_a_missing_url_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NIRVANA_S3_URL")
    with pytest.raises(SettingsInvalid, match="NIRVANA_S3_URL: is required"):
        CacheSettings.load()


def test_an_empty_variable_is_one_that_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIRVANA_CACHE_TTL_S", "")
    assert CacheSettings.load().cache_ttl_s is None
