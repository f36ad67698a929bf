"""A killed PostgreSQL's pid file: kept while its process runs, forgotten when it is gone."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import psutil
import pytest

from fleet.services.postgres import _remove_stale_pid_file


@pytest.fixture
def postgres(tmp_path: Path) -> Path:
    """A program of that name which reads its input until the end."""
    program = tmp_path / "postgres"
    cat = shutil.which("cat")
    assert cat is not None
    program.symlink_to(cat)
    return program


def test_a_running_postmaster_keeps_its_file_and_a_zombie_does_not(
    postgres: Path, tmp_path: Path
) -> None:
    pid_file = tmp_path / "postmaster.pid"
    with subprocess.Popen([postgres], stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        pid_file.write_text(f"{process.pid}\nmore\n")
        _remove_stale_pid_file(tmp_path)
        assert pid_file.exists()
        process.stdin.close()
        while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
            pass  # it ends at once; nobody has waited for it yet
        _remove_stale_pid_file(tmp_path)
        assert not pid_file.exists()


def test_a_pid_that_something_else_has_by_now_is_forgotten(tmp_path: Path) -> None:
    pid_file = tmp_path / "postmaster.pid"
    pid_file.write_text(f"{psutil.Process().pid}\n")
    _remove_stale_pid_file(tmp_path)
    assert not pid_file.exists()
