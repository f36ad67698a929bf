"""Errors of the evaluation: each is one sentence for whoever ran the command.

EvaluationError
├── TraceInvalid         a prompt log cannot be read, or a row of it
├── EmbedderUnavailable  an embedder's package or folder is not there
├── OptionInvalid        an option that is out of its limits, or does not fit the log
└── PackageMissing       a package of the `evaluation` extra is not installed
"""

from __future__ import annotations

from pathlib import Path


class EvaluationError(Exception):
    """The evaluation could not do its work."""


class TraceInvalid(EvaluationError):
    """A prompt log cannot be read."""

    def __init__(self, path: Path, reason: str, *, line: int | None = None) -> None:
        where = f"{path}" if line is None else f"{path}, row {line:,}"
        super().__init__(f"{where}: {reason}")
        self.path = path
        self.line = line


class EmbedderUnavailable(EvaluationError):
    """An embedder's package or folder is not there."""


class OptionInvalid(EvaluationError):
    """An option is out of its limits, or does not fit the log."""


class PackageMissing(EvaluationError):
    """A package of an extra is not installed."""

    def __init__(self, package: str, *, needed_for: str) -> None:
        super().__init__(
            f"{needed_for} needs the package {package}: pip install 'nirvana-serving[evaluation]'"
        )
        self.package = package
