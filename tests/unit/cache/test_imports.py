from __future__ import annotations

import subprocess
import sys

import pytest

TORCH_FREE = [
    "cache.database",
    "cache.entry",
    "cache.eviction",
    "cache.index",
    "cache.objects",
    "cache.policies",
    "cache.removal",
    "cache.scopes",
    "cache.selector",
    "cache.settings",
    "cache.stats",
    "cache.sweep",
    "cache.tables",
    "cache.uses",
    "migrations.migrate",
]


def imported(statement: str) -> set[str]:
    script = f"import sys; {statement}; print(*sys.modules)"
    answer = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return {name.partition(".")[0] for name in answer.stdout.split()}


def test_what_beat_imports_brings_no_torch() -> None:
    modules = imported("import " + ", ".join(TORCH_FREE))
    assert modules.isdisjoint({"torch", "diffusers", "transformers", "safetensors", "celery"})


@pytest.mark.parametrize("name", ["cache.approximate"])
def test_what_the_worker_imports_brings_no_queue(name: str) -> None:
    assert imported(f"import {name}").isdisjoint({"celery", "kombu", "diffusers"})
