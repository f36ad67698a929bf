"""`nirvana submit | status | wait | cancel`: what they print, and how they refuse."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import redis

from fleet.cli import COMMANDS, main
from producer.broker import open_connection
from producer.contract import CacheOutcome, ErrorCode, Priority, Status
from producer.models import ModelTable
from producer.queues import bucket_queue
from producer.result import CacheReport, JobError, JobResult, Steps, StoredImage, Timings
from producer.trace import Progress, Traces, list_name
from tests.served_models import SMALL

PROJECT = Path(__file__).resolve().parents[3]
PNG = b"\x89PNG of a fox"
WAITING = list_name(bucket_queue("small", "default", 8), Priority.STANDARD)

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run the command in this process: exit code, stdout, stderr. No fleet, no broker."""
    monkeypatch.setenv("NIRVANA_HOME", str(tmp_path / "no-home"))

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(arguments)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


@pytest.fixture
def broker(broker_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[redis.Redis]:
    monkeypatch.setenv("NIRVANA_BROKER_URL", broker_url)
    with closing(open_connection(broker_url)) as connection:
        ModelTable(connection).announce(SMALL)
        yield connection


@pytest.fixture
def traces(broker: redis.Redis) -> Traces:
    return Traces(broker, retention_s=60)


def last_json(stdout: str) -> dict[str, Any]:
    return dict(json.loads(stdout.strip().splitlines()[-1]))


def num_keys(broker: redis.Redis) -> int:
    return len(broker.keys("nirvana:job:*"))


def succeed(traces: Traces, job_id: str, image_url: str = "http://127.0.0.1:1/x.png") -> None:
    traces.mark_running(job_id, 1)
    traces.show_progress(job_id, Progress(steps_done=15, steps_asked=20))
    image = StoredImage(
        key=f"images/default/{job_id}/1.png",
        url=image_url,
        width=64,
        height=64,
        sha256=hashlib.sha256(PNG).hexdigest(),
    )
    result = JobResult(
        job_id=job_id,
        status=Status.SUCCEEDED,
        attempt=1,
        image=image,
        seed=7,
        cache=CacheReport(outcome=CacheOutcome.HIT, k=5, similarity=0.9312),
        steps=Steps(asked=20, run=15),
        timings=Timings(queued_s=9.0, denoise_s=1.25, decode_s=0.25),
    )
    traces.mark_finished(result)


class PlayedWorker(threading.Thread):
    """Ends every job that is submitted, the way a worker does."""

    def __init__(self, traces: Traces, image_url: str) -> None:
        super().__init__()
        self._traces, self._image_url = traces, image_url
        self.is_over = threading.Event()

    def run(self) -> None:
        while not self.is_over.wait(0.02):
            for job in list(self._traces.waiting(limit_per_list=100)):
                succeed(self._traces, job.job_id, self._image_url)


@pytest.fixture
def image_url() -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(PNG)

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/fox.png"
        server.shutdown()
        thread.join()


@pytest.fixture
def worker(traces: Traces, image_url: str) -> Iterator[PlayedWorker]:
    worker = PlayedWorker(traces, image_url)
    worker.start()
    yield worker
    worker.is_over.set()
    worker.join()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["submit"], "give either a PROMPT, or --file with a job a line"),
        (["submit", ""], "PROMPT: must have 1 to 4,000 characters"),
        (["submit", "x" * 10_000_000], "PROMPT: must have 1 to 4,000 characters"),
        (["submit", "fox", "--steps", "0"], "--steps: must be 1 to 200"),
        (["submit", "fox", "--steps", "1000000"], "--steps: must be 1 to 200"),
        (["submit", "fox", "--width", "7"], "--width: must be 8 to 8,192"),
        (["submit", "fox", "--guidance", "31"], "--guidance: must be 0 to 30"),
        (["submit", "fox", "--guidance", "nan"], "--guidance: input should be a finite number"),
        (["submit", "fox", "--seed", "-1"], "--seed: must be 0 to 9,007,199,254,740,991"),
        (["submit", "fox", "--seeds", "0"], "--seeds: must be 1 to 1,000"),
        (["submit", "fox", "--metadata", "order"], "--metadata: expected KEY=VALUE, got 'order'"),
        (["submit", "fox", "--namespace", "A"], "--namespace: must match '^[a-z0-9-]{1,64}$'"),
        (["submit", "fox", "--job-id", "7"], "--job-id: input should be a valid UUID"),
        (["submit", "fox", "--webhook-url", "ftp://a"], "--webhook-url: must match '^https?://'"),
        (
            ["submit", "fox", "--webhook-url", "http://a", "--webhook-endpoint", "b"],
            "--webhook: give either 'endpoint' or 'url'",
        ),
        (["submit", "fox", "--priority", "high"], "'high' is not one of 'interactive'"),
        (["submit", "fox", "--out", "/no/such/folder/x.png"], "cannot be written: No such file"),
        (["submit", "--file", "/no/such/file"], "--file /no/such/file: No such file or directory"),
        (["submit", "fox", "--file", "x"], "give either a PROMPT, or --file"),
        (["submit", "fox", "--speed", "9"], "No such option: --speed"),
        (["status"], "Missing argument 'JOB_ID'"),
        (["sumbit"], "No such command 'sumbit'. Did you mean 'submit'?"),
    ],
)
def test_a_wrong_call_is_one_line_and_exit_code_2(
    run: Run, arguments: list[str], message: str
) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"prompt": "a fox"', "is not JSON: Expecting ',' delimiter, at column 19"),
        (b'["a fox"]', "must be a JSON object, not list"),
        (b'{"prompt": ""}', "prompt: must have 1 to 4,000 characters"),
        (b'{"prompt": "a fox", "steps": 5}', "steps: unknown field; known: version, prompt"),
        (b'{"prompt": "a fox", "seed": NaN}', "seed: input should be a"),
        (b'{"prompt": "' + b"x" * 10_000_000 + b'"}', "prompt: must have 1 to 4,000 characters"),
        (b'{"prompt": "\xff"}', "is not UTF-8, at byte 13"),
        (b'{"prompt": ' + b"[" * 100_000, "is nested too deeply"),
        (b'{"prompt": "a", "seed": ' + b"9" * 5_000 + b"}", "is not JSON: Exceeds the limit"),
    ],
)
def test_a_malformed_line_names_its_place_and_nothing_is_sent(
    run: Run, broker: redis.Redis, tmp_path: Path, line: bytes, problem: str
) -> None:
    file = tmp_path / "jobs.jsonl"
    file.write_bytes(b'{"prompt": "a wolf"}\n\n' + line + b"\n")
    code, _, err = run("submit", "--file", str(file))
    assert code == 2
    assert f"{file}:3: {problem}" in err
    assert err.count("\n") == 1
    assert num_keys(broker) == 0


def test_a_file_without_jobs_is_refused(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "jobs.jsonl"
    file.write_text("\n \n")
    assert run("submit", "--file", str(file))[::2] == (
        2,
        f"nirvana: --file {file}: holds no jobs; expected one JSON object a line\n",
    )


def test_what_the_model_does_not_allow_names_the_option_or_the_line(
    run: Run, broker: redis.Redis, tmp_path: Path
) -> None:
    code, _, err = run("submit", "fox", "--width", "36")
    assert code == 2
    assert "--width: must be a multiple of 8, 32 to 128, for model 'small'; got 36" in err
    code, _, err = run("submit", "fox", "--model", "huge")
    assert code == 2
    assert "model: 'huge' is not served; served: small" in err
    file = tmp_path / "jobs.jsonl"
    file.write_text('{"prompt": "a fox"}\n{"prompt": "a fox", "model": "huge"}\n')
    code, _, err = run("submit", "--file", str(file))
    assert code == 2
    assert f"{file}:2: model: 'huge' is not served" in err
    assert num_keys(broker) == 0


def test_without_a_fleet_the_way_to_one_is_told(run: Run, tmp_path: Path) -> None:
    expected = f"no fleet is running in {tmp_path / 'no-home'}; start one with `nirvana up`, or set"
    for command in (["submit", "fox"], ["status", "x"], ["wait", "x"], ["cancel", "x"]):
        code, _, err = run(*command)
        assert code == 1
        assert expected in err


def test_an_unreachable_broker_is_one_line_without_its_password(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIRVANA_BROKER_URL", "redis://:sesame@127.0.0.1:1/0")
    started_at = time.monotonic()
    code, out, err = run("submit", "fox", "--json")
    assert time.monotonic() - started_at < 10
    assert code == 1
    assert "the broker redis://127.0.0.1:1/0 cannot be reached" in err
    assert "sesame" not in out + err
    assert last_json(out)["error"]["code"] == "broker_unavailable"


def test_submit_prints_the_id_and_sends_every_option(run: Run, traces: Traces) -> None:
    options = "--steps 10 --guidance 3 --width 32 --height 40 --negative blur --seed 7 --user ada"
    options += " --namespace acme --priority batch --cache bypass --deadline-s 60"
    options += " --webhook-url https://example.com/x --metadata a=1 --metadata b=2=3 --model small"
    code, out, err = run("submit", "a fox", *options.split())
    assert (code, err) == (0, "")
    job = traces.read(out.strip()).job
    assert job["prompt"] == "a fox"
    assert (job["num_inference_steps"], job["guidance_scale"]) == (10, 3.0)
    assert (job["width"], job["height"], job["negative_prompt"]) == (32, 40, "blur")
    assert (job["seed"], job["user"], job["namespace"], job["model"]) == (7, "ada", "acme", "small")
    assert (job["priority"], job["cache"], job["deadline_s"]) == ("batch", "bypass", 60.0)
    assert job["webhook"]["url"] == "https://example.com/x"
    assert job["metadata"] == {"a": "1", "b": "2=3"}


def test_the_same_job_id_is_the_same_job_and_another_payload_a_conflict(
    run: Run, broker: redis.Redis
) -> None:
    job_id = str(uuid.uuid4())
    for _ in range(2):
        assert run("submit", "a fox", "--job-id", job_id)[:2] == (0, f"{job_id}\n")
    assert num_keys(broker) == 1
    code, _, err = run("submit", "a wolf", "--job-id", job_id)
    assert (code, err) == (1, f"nirvana: job_id: {job_id} exists already with another payload\n")


def test_seeds_count_up_from_the_seed(run: Run, traces: Traces) -> None:
    code, out, _ = run("submit", "a fox", "--seeds", "3", "--seed", "40", "--json")
    jobs = last_json(out)["jobs"]
    assert code == 0
    assert [traces.read(job["job_id"]).job["seed"] for job in jobs] == [40, 41, 42]


def test_a_file_takes_its_defaults_from_the_options(
    run: Run, traces: Traces, tmp_path: Path
) -> None:
    file = tmp_path / "jobs.jsonl"
    file.write_text('{"prompt": "a fox"}\n{"prompt": "a wolf", "user": "bob"}\n')
    code, out, _ = run("submit", "--file", str(file), "--user", "ada")
    assert code == 0
    assert [traces.read(i).job["user"] for i in out.split()] == ["ada", "bob"]


def test_a_second_run_of_a_file_sends_only_what_is_missing(
    run: Run, broker: redis.Redis, tmp_path: Path
) -> None:
    file = tmp_path / "jobs.jsonl"
    fox, wolf = '{"prompt": "a fox"}\n', '{"prompt": "a wolf"}\n'
    file.write_text(fox + fox)  # twice the same is two jobs
    code, out, err = run("submit", "--file", str(file))
    first = out.split()
    assert (code, len(set(first)), err) == (0, 2, "")

    file.write_text(wolf + fox + fox)
    code, out, err = run("submit", "--file", str(file), "--json")
    jobs = last_json(out)["jobs"]
    assert code == 0
    assert [job["job_id"] for job in jobs][1:] == first
    assert [job["is_new"] for job in jobs] == [True, False, False]
    assert {job["status"] for job in jobs} == {"submitted"}
    assert "2 of 3 jobs were sent before; --again sends them once more" in err
    assert num_keys(broker) == broker.zcard(f"nirvana:waiting:{WAITING}") == 3


def test_what_was_sent_before_is_sent_again_when_asked_or_in_another_way(
    run: Run, broker: redis.Redis, tmp_path: Path
) -> None:
    file, copy = tmp_path / "jobs.jsonl", tmp_path / "other.jsonl"
    for path in (file, copy):
        path.write_text('{"prompt": "a fox"}\n')
    once = ("submit", "--file", str(file))
    for arguments in (once, once, (*once, "--again"), ("submit", "--file", str(copy))):
        assert run(*arguments)[0] == 0
    for options in (("--seed", "7"), ("--namespace", "acme")):
        assert run(*once, *options)[0] == 0
    assert num_keys(broker) == 5
    assert run("submit", "a fox", "--again")[::2] == (
        2,
        "nirvana: --again goes with --file: a PROMPT is a new job each time\n",
    )


def test_a_file_that_was_sent_in_part_is_finished_by_a_second_run(
    run: Run, broker: redis.Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The queue fills up between the check and the sending; nothing is sent twice."""
    file = tmp_path / "jobs.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"fox {n}"}) + "\n" for n in range(4)))
    monkeypatch.setenv("NIRVANA_QUEUE_LENGTH_MAX", "2")
    monkeypatch.setattr("producer.client.check_room", lambda *args, **fields: None)
    code, _, err = run("submit", "--file", str(file))
    assert code == 1
    assert "sent 2 of 4 jobs:" in err
    assert "is full: 2 jobs wait at this priority" in err
    monkeypatch.setenv("NIRVANA_QUEUE_LENGTH_MAX", "100")
    code, out, _ = run("submit", "--file", str(file), "--json")
    assert code == 0
    assert [job["is_new"] for job in last_json(out)["jobs"]] == [False, False, True, True]
    assert num_keys(broker) == 4


def test_wait_writes_the_image_and_tells_what_the_cache_did(
    run: Run, worker: PlayedWorker, tmp_path: Path
) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(b"an older image")
    code, out, err = run("submit", "a fox", "--wait", "--out", str(path))
    assert code == 0
    assert path.read_bytes() == PNG
    assert list(tmp_path.iterdir()) == [path]
    for word in ("hit", "5", "0.931", "15/20", "1.50"):
        assert word in out.split()
    assert err.startswith("submitted ")


def test_several_images_go_into_a_folder(run: Run, worker: PlayedWorker, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "images"
    code, out, _ = run("submit", "a fox", "--seeds", "3", "--out", str(folder), "--json")
    jobs = last_json(out)["jobs"]
    assert code == 0
    assert {path.name for path in folder.iterdir()} == {f"{job['job_id']}.png" for job in jobs}
    assert [job["image_path"] for job in jobs] == [
        str(folder / f"{job['job_id']}.png") for job in jobs
    ]


def test_a_place_that_cannot_be_written_is_found_before_anything_is_sent(
    run: Run, broker: redis.Redis, tmp_path: Path
) -> None:
    taken = tmp_path / "file"
    taken.touch()
    for arguments in (["--out", str(taken / "x.png")], ["--seeds", "2", "--out", str(taken)]):
        code, _, err = run("submit", "a fox", "--wait", *arguments)
        assert code == 2
        assert f"--out {arguments[-1]}: " in err
    assert num_keys(broker) == 0


def test_status_tells_the_position_and_then_the_result(run: Run, traces: Traces) -> None:
    first, second = (run("submit", "a fox")[1].strip() for _ in range(2))
    code, out, _ = run("status", second, "--json")
    found = last_json(out)
    assert code == 0
    assert (found["status"], found["num_ahead"]) == ("submitted", 1)
    assert found["estimated_wait_s"] == pytest.approx(10.0)
    assert "1 ahead, at most 10 s" in run("status", second)[1]
    succeed(traces, first)
    out = run("status", first)[1]
    assert "succeeded" in out
    assert "15 run of 20 asked" in out


def test_a_job_that_failed_is_shown_and_exits_with_1(run: Run, traces: Traces) -> None:
    job_id = run("submit", "a fox")[1].strip()
    error = JobError(code=ErrorCode.OUT_OF_MEMORY, message="did not fit")
    traces.mark_finished(JobResult(job_id=job_id, status=Status.FAILED, attempt=1, error=error))
    code, out, _ = run("wait", job_id)
    assert code == 1
    assert "failed" in out
    assert "out_of_memory" in out
    code, out, _ = run("wait", job_id, "--json")
    assert (code, last_json(out)["error"]["message"]) == (1, "did not fit")


def test_a_wait_that_is_over_says_that_the_job_goes_on(run: Run, broker: redis.Redis) -> None:
    job_id = run("submit", "a fox")[1].strip()
    code, _, err = run("wait", job_id, "--timeout-s", "0.2")
    assert code == 1
    assert err == f"nirvana: job {job_id} is still submitted after 0.2 s; it goes on\n"


def test_cancel_asks_and_says_when_it_is_too_late(run: Run, traces: Traces) -> None:
    job_id = run("submit", "a fox")[1].strip()
    assert run("cancel", job_id)[:2] == (0, "asked to end\n")
    succeed(traces, job_id)
    assert run("cancel", job_id)[:2] == (0, "has ended already: succeeded\n")


def test_an_unknown_job_is_not_queued(run: Run, broker: redis.Redis) -> None:
    for command in ("status", "wait", "cancel"):
        code, out, err = run(command, str(uuid.uuid4()), "--json")
        assert code == 1
        assert "never submitted here, or past its retention" in err
        assert last_json(out)["error"]["code"] == "unknown_job"


def test_a_bug_is_one_line_and_its_traceback_a_file(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken() -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr("fleet.commands.jobs.client_settings", broken)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code, _, err = run("submit", "fox")
    (log,) = tmp_path.glob("nirvana-error-*.log")
    assert code == 1
    assert err == (
        f"nirvana: unexpected ZeroDivisionError: by zero (a bug; where it happened is in {log})\n"
    )
    assert "Traceback" in log.read_text()
    assert "Traceback" in run("--debug", "submit", "fox")[2]


def test_an_interruption_is_130(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fleet.commands.jobs.client_settings", interrupted)
    code, _, err = run("submit", "fox")
    assert (code, err) == (130, "nirvana: interrupted\n")


def test_help_lists_all_commands_quickly_and_without_loading_them() -> None:
    script = (
        "import sys; from fleet.cli import main; code = main(['--help']);"
        "loaded = {'celery', 'redis', 'pydantic', 'torch', 'sqlalchemy'} & set(sys.modules);"
        "sys.exit(code or (str(loaded) if loaded else 0))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", script],
        cwd=PROJECT,
        env=os.environ | {"NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert shown.returncode == 0, shown.stderr
    assert all(f" {name} " in shown.stdout for name in COMMANDS)
