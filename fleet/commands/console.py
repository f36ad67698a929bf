"""What all commands share: where they print, `--json`, and errors as one line and an exit code.

A command takes `as_json: JsonOption = False`, makes an `Output`, prints for people with
`output.rich`, and ends with `output.finish(...)`. It raises CommandFailed or UsageProblem, or lets
an error of the packages pass: each of those is a sentence for a user.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Mapping
from typing import Annotated, Any, Final, TextIO

import typer
from rich.console import Console

FAILED: Final = 1
USAGE: Final = 2
INTERRUPTED: Final = 130

_PIPE_WIDTH: Final = 200

OUR_PACKAGES: Final = (
    "cache",
    "evaluation",
    "fleet",
    "migrations",
    "models",
    "producer",
    "workers",
)
# What the caller can put right by calling differently; errors of all packages, by name.
_USAGE_ERRORS: Final = frozenset(
    {
        "InvalidJob",
        "OptionInvalid",
        "SettingError",
        "SettingsInvalid",
        "UnknownModel",
        "UsageProblem",
    }
)

JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON object as the last line of the output.")
]


class CommandFailed(Exception):
    """The command did not do what was asked; the message is one sentence."""


class UsageProblem(CommandFailed):
    """The command was called wrongly; the message says what is allowed."""


class Output:
    """What a command prints: for people, or, with `--json`, one object on stdout at the end.

    With `--json` everything for people goes to stderr.
    """

    def __init__(self, *, as_json: bool = False) -> None:
        self.is_json = as_json
        self.rich = _console(sys.stderr if as_json else sys.stdout)
        self.notes = _console(sys.stderr)  #: progress, hints: never the answer

    def finish(self, answer: Mapping[str, Any]) -> None:
        """Print the JSON object, if one is asked for."""
        if self.is_json:
            print_json(answer)


def _console(stream: TextIO) -> Console:
    """Fit a terminal; in a file or a pipe nothing is cut to its 80 columns."""
    width = None if stream.isatty() else _PIPE_WIDTH
    return Console(file=stream, width=width, highlight=False)


def confirm(question: str, *, instead: str = "--yes") -> None:
    """Ask before what cannot be undone; raises CommandFailed for a no, UsageProblem unattended."""
    if not sys.stdin.isatty():
        raise UsageProblem(f"nobody can be asked here: give {instead}")
    if not typer.confirm(question, err=True):
        raise CommandFailed("nothing was removed")


def print_json(answer: Mapping[str, Any]) -> None:
    """Print one line of JSON on stdout."""
    sys.stdout.write(json.dumps(answer, ensure_ascii=False, default=str) + "\n")
    sys.stdout.flush()


def report(error: BaseException, *, command: str, as_json: bool, is_debug: bool) -> int:
    """Tell a user of an error in one line on stderr; returns the exit code."""
    if is_debug:
        traceback.print_exception(error)
    message, code = _explain(error, command)
    if as_json:
        print_json({"error": {"code": _error_code(error), "message": message}})
    line = " ".join(message.split())
    sys.stderr.write(_printable(f"nirvana: {line}\n"))
    return code


def _explain(error: BaseException, command: str) -> tuple[str, int]:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", INTERRUPTED
    if hasattr(error, "format_message"):  # an error of Typer's own parser
        message = error.format_message().replace("Value error, ", "").rstrip(".")
        return f"{message} (see `{command} --help`)", USAGE
    if _is_ours(error):
        is_usage = any(kind.__name__ in _USAGE_ERRORS for kind in type(error).__mro__)
        return str(error), USAGE if is_usage else FAILED
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}", FAILED
    return f"unexpected {type(error).__name__}: {error} ({_kept_traceback(error)})", FAILED


def _is_ours(error: BaseException) -> bool:
    return type(error).__module__.partition(".")[0] in OUR_PACKAGES


def _error_code(error: BaseException) -> str:
    """`invalid_job` for InvalidJob, as in results."""
    name = type(error).__name__.removesuffix("Error")
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def _kept_traceback(error: BaseException) -> str:
    """Put the traceback where a bug report can take it from."""
    try:
        handle, path = tempfile.mkstemp(prefix="nirvana-error-", suffix=".log")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as log:
            traceback.print_exception(error, file=log)
    except OSError:
        return "set NIRVANA_DEBUG=1 to see where"
    return f"a bug; where it happened is in {path}"


def _printable(text: str) -> str:
    encoding = sys.stderr.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)
