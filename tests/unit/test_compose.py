"""What of compose.yaml can be checked without a container engine."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from cache.settings import CacheSettings
from fleet.cli import COMMANDS
from fleet.settings import FleetSettings
from producer.settings import ProducerSettings
from workers.settings import WorkerSettings

PROJECT = Path(__file__).resolve().parents[2]
OURS = {"migrate", "gpu-worker", "io-worker", "beat", "flower"}
THEIRS = {"postgres", "redis", "minio"}


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    content = yaml.safe_load((PROJECT / "compose.yaml").read_text(encoding="utf-8"))
    found = content["services"]
    assert isinstance(found, dict)
    return found


def test_it_has_the_parts_of_a_fleet(services: dict[str, Any]) -> None:
    assert set(services) == OURS | THEIRS


def test_our_parts_run_commands_that_exist(services: dict[str, Any]) -> None:
    assert {services[name]["command"][0] for name in OURS} <= set(COMMANDS)


def test_every_variable_is_a_setting(services: dict[str, Any]) -> None:
    settings = (FleetSettings, ProducerSettings, WorkerSettings, CacheSettings)
    known = {f"NIRVANA_{name.upper()}" for each in settings for name in each.model_fields}
    given = {variable for name in OURS for variable in services[name]["environment"]}
    assert given <= known
    assert {"NIRVANA_DATABASE_URL", "NIRVANA_BROKER_URL", "NIRVANA_S3_URL"} <= given


def test_images_of_others_are_pinned(services: dict[str, Any]) -> None:
    for name in THEIRS:
        assert re.search(r":[\w.-]*\d", services[name]["image"]), name


def test_nothing_has_a_password_in_the_file(services: dict[str, Any]) -> None:
    secrets = [
        value
        for service in services.values()
        for name, value in service.get("environment", {}).items()
        if "PASSWORD" in name or "AUTH" in name
    ]
    assert len(secrets) >= 4
    assert all(re.fullmatch(r"\$\{\w+:\?\}", value) for value in secrets)


def test_what_waits_for_a_service_names_one(services: dict[str, Any]) -> None:
    for service in services.values():
        assert set(service.get("depends_on", {})) <= set(services)
