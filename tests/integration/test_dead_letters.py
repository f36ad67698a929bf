"""The dead-letter list, and `nirvana dead`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest
import redis

from fleet.cli import main
from workers import dead_letters
from workers.dead_letters import RAW_BYTES_MAX, DeadLetters
from workers.errors import LetterCut, UnknownLetter

Nirvana = Callable[..., tuple[int, str]]

QUEUE = "generate.small"
HIGH = f"{QUEUE}\x06\x163"


@pytest.fixture
def broker(broker_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(broker_url) as connection:
        yield connection


@pytest.fixture
def letters(broker: redis.Redis) -> DeadLetters:
    return DeadLetters(broker)


@pytest.fixture
def nirvana(
    broker_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Nirvana:
    monkeypatch.setenv("NIRVANA_BROKER_URL", broker_url)

    def run_command(*arguments: str) -> tuple[int, str]:
        code = main(["dead", *arguments])
        printed = capsys.readouterr()
        return code, printed.err + printed.out

    return run_command


def test_a_letter_is_kept_once_with_its_very_bytes(letters: DeadLetters) -> None:
    for reason in ("no message", "told twice"):
        letters.keep(b"\xff\x00{", list_name=HIGH, reason=reason, letter_id="one")
    (letter,) = letters.read()
    assert (letter.queue, letter.list_name, letter.reason) == (QUEUE, HIGH, "no message")
    assert letter.encoded() == b"\xff\x00{"


def test_the_oldest_make_room(letters: DeadLetters, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead_letters, "LETTERS_MAX", 3)
    ids = [letters.keep(b"%d" % n, list_name=QUEUE, reason="-") for n in range(5)]
    assert letters.count() == 3
    assert [letter.letter_id for letter in letters.read(limit=10)] == ids[:1:-1]


def test_retry_puts_a_message_back_where_it_lay(letters: DeadLetters, broker: redis.Redis) -> None:
    broker.lpush(HIGH, b"waiting")
    letter_id = letters.keep(b"\xffread me", list_name=HIGH, reason="-")
    letters.retry([letter_id])
    assert broker.lrange(HIGH, 0, -1) == [b"\xffread me", b"waiting"]
    assert letters.read() == []


def test_a_message_too_long_to_keep_is_not_sent_again(
    letters: DeadLetters, broker: redis.Redis
) -> None:
    whole = letters.keep(b"x" * RAW_BYTES_MAX, list_name=QUEUE, reason="-")
    cut = letters.keep(b"x" * (RAW_BYTES_MAX + 1), list_name=QUEUE, reason="-")
    with pytest.raises(LetterCut, match=f"message {cut} was longer than 262,144 bytes"):
        letters.retry([whole, cut])
    assert broker.llen(QUEUE) == 0
    assert letters.count() == 2


def test_an_unknown_letter_changes_nothing(letters: DeadLetters) -> None:
    known = letters.keep(b"x", list_name=QUEUE, reason="-")
    for change in (letters.retry, letters.drop):
        with pytest.raises(UnknownLetter, match="has no message other"):
            change([known, "other"])
    assert letters.count() == 1


def test_the_command_lists_retries_and_drops(
    letters: DeadLetters, broker: redis.Redis, nirvana: Nirvana
) -> None:
    one = letters.keep(b"\xff[bold]hello[/]", list_name=QUEUE, reason="no message")
    other = letters.keep(b"{}", list_name=HIGH, reason="no [properties]")
    code, table = nirvana("list")
    assert code == 0
    assert "\ufffd[bold]hello[/]" in table
    assert "no [properties]" in table
    _, printed = nirvana("list", "--limit=1", "--json")
    answer = json.loads(printed.splitlines()[-1])
    assert (answer["kept"], [letter["letter_id"] for letter in answer["letters"]]) == (2, [other])

    _, printed = nirvana("retry", one, "--json")
    assert json.loads(printed.splitlines()[-1]) == {"retried": [one]}
    assert broker.lrange(QUEUE, 0, -1) == [b"\xff[bold]hello[/]"]
    _, printed = nirvana("drop", "--all", "--json")
    assert json.loads(printed.splitlines()[-1]) == {"dropped": [other]}
    assert letters.count() == 0


def test_the_command_refuses_in_one_line(nirvana: Nirvana, monkeypatch: pytest.MonkeyPatch) -> None:
    assert nirvana("drop", "x") == (1, "nirvana: the dead-letter list has no message x\n")
    code, printed = nirvana("drop")
    assert (code, printed) == (
        2,
        "nirvana: give ids as `nirvana dead list` shows them, or --all\n",
    )
    assert nirvana("drop", "--all") == (0, "0 dropped\n")
    monkeypatch.setenv("NIRVANA_BROKER_URL", "redis://:hunter2@127.0.0.1:9/0")
    code, printed = nirvana("list")
    assert (code, printed.count("\n"), "hunter2" in printed) == (1, 1, False)
