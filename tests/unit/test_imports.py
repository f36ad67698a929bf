"""What a process must not load, asked of a fresh interpreter."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "diffusers", "transformers", "numpy")


@pytest.mark.parametrize("module", ["workers.beat_tasks", "workers.delivery.deliver"])
def test_io_and_beat_load_no_torch(module: str) -> None:
    loaded = loaded_by(module)
    assert loaded.isdisjoint({"torch", "diffusers", "transformers", "workers.gpu_tasks"})


def test_the_client_loads_neither_torch_nor_a_database_driver() -> None:
    forbidden = {*HEAVY, "sqlalchemy", "psycopg", "minio", "alembic", "httpx"}
    assert loaded_by("producer.client").isdisjoint(forbidden)


def loaded_by(module: str) -> set[str]:
    code = f"import sys, {module}; print(*sys.modules, sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    return set(done.stdout.split())
