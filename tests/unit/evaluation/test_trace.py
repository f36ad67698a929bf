from __future__ import annotations

import gzip
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from evaluation.errors import OptionInvalid, TraceInvalid
from evaluation.sharing import SharedBy, capacity_pools, sharing_groups
from evaluation.trace import UNKNOWN, Fields, read_trace
from tests.unit.evaluation.logs import log_rows, write_log

LINES: tuple[dict[str, Any], ...] = (
    {"prompt": "a fox", "user": "ada", "submitted_at": 1.5},
    {"prompt": "a red fox", "user": None, "submitted_at": "1970-01-01T00:00:02Z"},
    {"prompt": "an owl", "user": "ben", "submitted_at": 3},
)


def test_columns_become_numbers_in_the_order_of_first_sight(tmp_path: Path) -> None:
    trace = read_trace(write_log(tmp_path / "log.jsonl", iter(LINES)))
    assert (trace.name, len(trace), trace.num_users) == ("log", 3, 2)
    assert trace.users is not None
    assert trace.users.tolist() == [0, UNKNOWN, 1]
    assert trace.times_s is not None
    assert trace.times_s.tolist() == [1.5, 2.0, 3.0]
    assert trace.namespaces is None


def test_gzip_and_parquet_read_like_json_lines(tmp_path: Path) -> None:
    rows = list(log_rows(20))
    plain = read_trace(write_log(tmp_path / "log.jsonl", iter(rows)))
    with gzip.open(tmp_path / "log.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    times = [datetime.fromtimestamp(row["submitted_at"], UTC) for row in rows]
    columns = {
        "text": [row["prompt"] for row in rows],
        "user_name": [row["user"] for row in rows],
        "timestamp": pa.array(times, pa.timestamp("us", tz="UTC")),
    }
    parquet.write_table(pa.table(columns), tmp_path / "log.parquet")
    named = Fields(prompt="text", user="user_name", time="timestamp")
    for path, fields in (("log.jsonl.gz", Fields()), ("log.parquet", named)):
        read = read_trace(tmp_path / path, fields)
        assert read.fingerprint() == plain.fingerprint()
        np.testing.assert_array_equal(read.times_s, plain.times_s)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no rows"),
        ('{"prompt": "a"}\nnot json\n', "row 2: not JSON"),
        ("[1]\n", "row 1: not a JSON object"),
        ('{"prompt": "a"}\n{"text": "b"}\n', "row 2: no text in `prompt`"),
        ('{"prompt": "a", "submitted_at": "soon"}\n', "row 1: `submitted_at` is no RFC 3339 time"),
        (
            '{"prompt": "a", "submitted_at": 2}\n{"prompt": "b", "submitted_at": 1}\n',
            "row 2: `submitted_at` is earlier than the row before",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_row(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(TraceInvalid, match=message):
        read_trace(path)


def test_files_that_are_not_what_their_name_says(tmp_path: Path) -> None:
    for name in ("log.jsonl.gz", "log.parquet"):
        (tmp_path / name).write_bytes(b"neither of the two")
        with pytest.raises(TraceInvalid, match=name):
            read_trace(tmp_path / name)
    (tmp_path / "log.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(TraceInvalid, match="not UTF-8 text"):
        read_trace(tmp_path / "log.jsonl")
    with pytest.raises(TraceInvalid, match="no such file"):
        read_trace(tmp_path / "absent.jsonl")


def test_users_share_within_their_namespace_only(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a", "user": "ada", "namespace": "one"},
        {"prompt": "a", "user": "ada", "namespace": "two"},
        {"prompt": "a", "user": "ada", "namespace": "one"},
        {"prompt": "a", "user": "ben", "namespace": "one"},
    ]
    trace = read_trace(write_log(tmp_path / "log.jsonl", iter(rows)))
    by_user = sharing_groups(trace, SharedBy.USER).tolist()
    assert by_user[0] == by_user[2]
    assert len(set(by_user)) == 3
    assert sharing_groups(trace, SharedBy.NAMESPACE).tolist() == [0, 1, 0, 0]
    assert sharing_groups(trace, SharedBy.ALL).tolist() == [0, 0, 0, 0]
    assert capacity_pools(trace, SharedBy.USER).tolist() == [0, 1, 0, 0]


def test_sharing_by_user_needs_users(tmp_path: Path) -> None:
    trace = read_trace(write_log(tmp_path / "log.jsonl", iter([{"prompt": "a"}])))
    with pytest.raises(OptionInvalid, match="log names no users"):
        sharing_groups(trace, SharedBy.USER)
