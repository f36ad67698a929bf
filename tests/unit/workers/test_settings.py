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
