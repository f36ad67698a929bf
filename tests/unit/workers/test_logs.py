"""A line of a log, as people and as machines read it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

from workers import logs


@pytest.fixture(autouse=True)
def root_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level


def log_a_job() -> None:
    logging.getLogger("workers.gpu_tasks").info(
        "job %s", "ended", extra={"job_id": "j1", "namespace": "default", "k": 20}
    )


def test_text_ends_with_the_events_fields(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure()
    log_a_job()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("INFO workers.gpu_tasks: job ended job_id=j1 k=20 namespace=default")


def test_json_is_one_object_a_line_also_with_a_traceback(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.configure(process="gpu", log_format="json")
    log_a_job()
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logging.getLogger("x").exception("failed")
    first, second = map(json.loads, capsys.readouterr().err.splitlines())
    assert first["worker"].startswith("gpu@")
    assert {k: first[k] for k in ("level", "message", "job_id", "namespace", "k")} == {
        "level": "INFO",
        "message": "job ended",
        "job_id": "j1",
        "namespace": "default",
        "k": 20,
    }
    assert first["time"].endswith("+00:00")
    assert "ValueError: two\nlines" in second["exception"]
