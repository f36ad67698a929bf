"""Messages that nobody can read, kept in the broker until somebody looks at them.

A message ends here where no worker could make a task of it: no JSON, no envelope, no task of that
name, arguments that cannot be decoded. A job that can be read and is wrong does not: it fails, with
its row, its result and its webhook.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Final

import redis

from workers.errors import LetterCut, UnknownLetter

LETTERS_MAX: Final = 1_000  # beyond, the oldest are dropped
RAW_BYTES_MAX: Final = 256 * 1024  # a longer message is kept cut, and cannot be sent again
REASON_CHARACTERS_MAX: Final = 300

_ORDER_KEY: Final = "nirvana:dead"  # sorted by time
_LETTERS_KEY: Final = "nirvana:dead:letters"  # hash from id to letter


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """One message, as it lay in its list."""

    letter_id: str
    list_name: str  # the broker's: a queue, and kombu's suffix for its priority
    reason: str
    raw: str  # what is no UTF-8 is escaped, and put back by `encoded`
    is_cut: bool
    died_at_s: float  # since 1970

    @property
    def queue(self) -> str:
        """The queue, without the suffix."""
        return self.list_name.partition("\x06")[0]

    def encoded(self) -> bytes:
        """The message's own bytes; raises LetterCut."""
        if self.is_cut:
            raise LetterCut(self.letter_id, RAW_BYTES_MAX)
        return self.raw.encode(errors="surrogateescape")


class DeadLetters:
    """The list. Each method is one transaction of the broker; its errors pass through."""

    def __init__(self, connection: redis.Redis) -> None:
        self._connection = connection

    def keep(self, raw: bytes, *, list_name: str, reason: str, letter_id: str = "") -> str:
        """Add a message, or one of the same id again, which changes nothing; returns the id."""
        letter = DeadLetter(
            letter_id=letter_id or str(uuid.uuid4()),
            list_name=list_name,
            reason=reason[:REASON_CHARACTERS_MAX],
            raw=raw[:RAW_BYTES_MAX].decode(errors="surrogateescape"),
            is_cut=len(raw) > RAW_BYTES_MAX,
            died_at_s=time.time(),
        )
        with self._connection.pipeline() as pipe:
            pipe.hsetnx(_LETTERS_KEY, letter.letter_id, json.dumps(asdict(letter)))
            pipe.zadd(_ORDER_KEY, {letter.letter_id: letter.died_at_s}, nx=True)
            pipe.zrange(_ORDER_KEY, 0, -LETTERS_MAX - 1)
            *_, too_many = pipe.execute()
        self._remove([_text(old) for old in too_many])
        return letter.letter_id

    def count(self) -> int:
        """How many are kept."""
        return int(self._connection.zcard(_ORDER_KEY))

    def read(self, *, limit: int = LETTERS_MAX) -> list[DeadLetter]:
        """The newest first."""
        ids = self._connection.zrange(_ORDER_KEY, 0, limit - 1, desc=True)
        return self._letters([_text(letter_id) for letter_id in ids])

    def retry(self, letter_ids: Sequence[str]) -> list[DeadLetter]:
        """Put messages back at the end of their lists, and forget them here.

        Raises UnknownLetter or LetterCut, and changes nothing.
        """
        letters = self._found(letter_ids)
        messages = [(letter.list_name, letter.encoded()) for letter in letters]
        with self._connection.pipeline() as pipe:
            for list_name, message in messages:
                pipe.lpush(list_name, message)
            pipe.zrem(_ORDER_KEY, *letter_ids)
            pipe.hdel(_LETTERS_KEY, *letter_ids)
            pipe.execute()
        return letters

    def drop(self, letter_ids: Sequence[str]) -> list[DeadLetter]:
        """Forget messages; raises UnknownLetter and changes nothing."""
        letters = self._found(letter_ids)
        self._remove(letter_ids)
        return letters

    def _found(self, letter_ids: Sequence[str]) -> list[DeadLetter]:
        letters = self._letters(letter_ids)
        known = {letter.letter_id for letter in letters}
        if missing := [letter_id for letter_id in letter_ids if letter_id not in known]:
            raise UnknownLetter(missing)
        return letters

    def _letters(self, letter_ids: Sequence[str]) -> list[DeadLetter]:
        if not letter_ids:
            return []
        kept = self._connection.hmget(_LETTERS_KEY, list(letter_ids))
        return [DeadLetter(**json.loads(letter)) for letter in kept if letter is not None]

    def _remove(self, letter_ids: Sequence[str]) -> None:
        if not letter_ids:
            return
        with self._connection.pipeline() as pipe:
            pipe.zrem(_ORDER_KEY, *letter_ids)
            pipe.hdel(_LETTERS_KEY, *letter_ids)
            pipe.execute()


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
