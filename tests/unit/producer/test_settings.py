from __future__ import annotations

import pytest

from producer.broker import open_connection, shown_address
from producer.errors import SettingsInvalid
from producer.settings import ProducerSettings, load_settings


def test_a_wrong_variable_is_named_without_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIRVANA_BROKER_URL", "amqp://user:sesame@host")
    with pytest.raises(SettingsInvalid, match="NIRVANA_BROKER_URL: ") as raised:
        load_settings(ProducerSettings)
    assert "sesame" not in str(raised.value)


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIRVANA_NAMESPACE_BUCKETS", "")
    assert load_settings(ProducerSettings).namespace_buckets == 8


def test_a_password_is_never_shown() -> None:
    settings = ProducerSettings(broker_url="valkey://:sesame@host:6379/3")
    assert "sesame" not in repr(settings)
    assert shown_address(settings.broker_url) == "valkey://host:6379/3"


def test_an_address_that_is_none_is_a_setting_that_is_wrong() -> None:
    with pytest.raises(SettingsInvalid, match="NIRVANA_BROKER_URL"):
        open_connection("redis://host:no-port/0")
