"""kombu's transport for Valkey, made to outlive what is no message.

kombu reads whatever lies in a queue's list as JSON with an envelope, and its error ends the worker:
each of them in turn, as their supervisor starts them again and the next such message waits. Here
what is no envelope goes to the dead-letter list.
"""

from __future__ import annotations

import json
import logging
from functools import cached_property
from typing import Any, Final

from kombu.transport import redis
from kombu.utils import json as kombu_json

from workers.dead_letters import DeadLetters

logger = logging.getLogger(__name__)

# What parsing raises on bytes that anybody may have written.
MALFORMED: Final = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)

# kombu has types of its own, and too few of them.
_redis: Final[Any] = redis
_json: Final[Any] = kombu_json

Reply = tuple[bytes, bytes]  # the list's name and the message


class SteadyChannel(_redis.Channel):  # type: ignore[misc]
    """Hands on only what kombu can make a message of."""

    @cached_property
    def client(self) -> Any:
        """The client that waits for messages."""
        client = self._create_client(asynchronous=True)
        client.set_response_callback("BRPOP", self._readable)
        return client

    @cached_property
    def dead_letters(self) -> DeadLetters:
        """The list, reached by connections of the channel's own pool."""
        return DeadLetters(self._create_client())

    def keep_dead(self, message: Any, reason: str) -> None:
        """Keep a message that was read as one; it is still to be rejected."""
        queue = message.delivery_info["routing_key"]
        priority = self._get_message_priority(message._raw, reverse=False)
        self.dead_letters.keep(
            json.dumps(message._raw).encode(),
            list_name=self._q_for_pri(queue, priority),
            reason=reason,
            letter_id=str(message.delivery_tag),
        )

    def _readable(self, reply: Reply | None, **_: Any) -> Reply | None:
        """Give the reply, or None, as if the wait had been in vain."""
        if not reply:
            return None
        list_name, raw = reply
        try:
            self._check(_json.loads(raw.decode()))
        except MALFORMED as error:
            reason = f"no message: {type(error).__name__}: {error}"
            logger.error("unreadable message kept: %s", reason)
            self.dead_letters.keep(raw, list_name=list_name.decode(), reason=reason)
            return None
        return list_name, raw

    def _check(self, envelope: Any) -> None:
        """Raise one of MALFORMED for what kombu could not take as a message, and put back."""
        message = self.Message(envelope, channel=self)
        delivery = message.delivery_info
        for name, value in {
            "properties.delivery_tag": message.delivery_tag,
            "delivery_info.exchange": delivery["exchange"],
            "delivery_info.routing_key": delivery["routing_key"],
        }.items():
            if not isinstance(value, str):
                raise TypeError(f"{name} must be text, not {type(value).__name__}")
        self._get_message_priority(envelope, reverse=False)


class SteadyTransport(_redis.Transport):  # type: ignore[misc]
    """The transport with such channels."""

    Channel = SteadyChannel
