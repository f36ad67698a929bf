"""Settings that contradict each other are refused at the start."""

from __future__ import annotations

import pytest

from producer.errors import SettingsInvalid
from producer.settings import load_settings
from workers.settings import WorkerSettings


def test_a_heartbeat_that_lets_leases_lapse_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIRVANA_LEASE_S", "1")
    with pytest.raises(SettingsInvalid, match=r"^NIRVANA_HEARTBEAT_S: .*half of NIRVANA_LEASE_S"):
        load_settings(WorkerSettings)
    monkeypatch.setenv("NIRVANA_HEARTBEAT_S", "0.5")
    assert load_settings(WorkerSettings).heartbeat_s == 0.5


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ('{"xl": ', "must be JSON such as"),
        ('{"XL": "/models/xl"}', "'XL' must match"),
        ('{"xl": ""}', "'xl' has no folder"),
        ('{"small": "/models/small"}', "'small' is NIRVANA_MODEL"),
        ('["xl"]', "dictionary"),
    ],
)
def test_models_that_make_no_sense_are_refused(
    monkeypatch: pytest.MonkeyPatch, models: str, message: str
) -> None:
    monkeypatch.setenv("NIRVANA_MODELS", models)
    with pytest.raises(SettingsInvalid, match=rf"^NIRVANA_MODELS: .*{message}"):
        load_settings(WorkerSettings)


def test_the_default_model_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIRVANA_MODELS", '{"a": "/models/a"}')
    assert list(load_settings(WorkerSettings).model_paths) == ["small", "a"]
