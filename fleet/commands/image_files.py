"""Where `--out` puts images: found out before a job is sent, written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from fleet.commands.console import CommandFailed, UsageProblem


class ImageFiles:
    """One PNG file, or a folder of them, named by job, where there are several jobs."""

    def __init__(self, out: Path, *, num_jobs: int) -> None:
        self._out = out
        self._is_folder = num_jobs > 1 or out.is_dir()

    def check(self) -> None:
        """Make the folder if it takes one; raises UsageProblem where nothing can be written."""
        try:
            if self._is_folder:
                self._out.mkdir(parents=True, exist_ok=True)
            probe = _partial(self._path("probe"))
            probe.touch(exist_ok=False)
            probe.unlink()
        except FileExistsError:
            raise UsageProblem(
                f"--out {self._out}: must be a folder, for there are several jobs"
            ) from None
        except OSError as error:
            raise UsageProblem(f"--out {self._out}: cannot be written: {error.strerror}") from None

    def write(self, job_id: str, png: bytes) -> Path:
        """Write an image; returns its path. Raises CommandFailed."""
        path = self._path(job_id)
        partial = _partial(path)
        try:
            try:
                partial.write_bytes(png)
                partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)
        except OSError as error:
            raise CommandFailed(
                f"--out {path}: cannot be written: {error.strerror}; job {job_id} has its image:"
                f" nirvana wait {job_id} --out PATH"
            ) from None
        return path

    def _path(self, job_id: str) -> Path:
        return self._out / f"{job_id}.png" if self._is_folder else self._out


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name[:200]}.{os.getpid()}.partial")
