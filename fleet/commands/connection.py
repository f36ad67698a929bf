"""Finds the fleet that a command talks to."""

from __future__ import annotations

import os

from fleet.commands.console import CommandFailed
from fleet.errors import NotRunningError
from fleet.home import connection_environment
from fleet.settings import load_settings as load_fleet_settings
from producer.settings import ProducerSettings, load_settings


def client_settings() -> ProducerSettings:
    """NIRVANA_BROKER_URL, or else the fleet that runs on this machine.

    Raises CommandFailed where there is neither, SettingsInvalid or SettingError.
    """
    settings = load_settings(ProducerSettings)
    if os.environ.get("NIRVANA_BROKER_URL"):
        return settings
    home = load_fleet_settings().home
    try:
        addresses = connection_environment(home)
    except NotRunningError:
        raise CommandFailed(
            f"no fleet is running in {home}; start one with `nirvana up`, or set NIRVANA_BROKER_URL"
        ) from None
    return settings.model_copy(update={"broker_url": addresses["NIRVANA_BROKER_URL"]})
