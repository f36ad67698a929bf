"""What to send a claimed delivery's receiver, and why some get nothing."""

from __future__ import annotations

from collections.abc import Sequence

from workers.delivery.claims import Delivery
from workers.delivery.errors import ReceiverRefused
from workers.delivery.webhooks import Message


def message_for(delivery: Delivery, default_secret: str | None) -> Message:
    """What to send for a delivery; raises ReceiverRefused with the reason it cannot be sent."""
    where = f"'{delivery.endpoint_name}' in namespace '{delivery.namespace}'"
    if delivery.url is None:
        raise ReceiverRefused(f"no endpoint {where} with a url")
    if delivery.disabled_reason is not None:
        raise ReceiverRefused(f"endpoint {where} is disabled: {delivery.disabled_reason}")
    return Message(
        webhook_id=str(delivery.id),
        url=delivery.url,
        secrets=_secrets(delivery, default_secret, where),
        body=delivery.body,
    )


def _secrets(delivery: Delivery, default_secret: str | None, where: str) -> Sequence[str]:
    if delivery.secrets is not None:
        return delivery.secrets
    if delivery.endpoint_name is not None:
        raise ReceiverRefused(f"no secret {where}")
    if default_secret is None:
        raise ReceiverRefused("no secret: the job names none, and the fleet has no default")
    return [default_secret]
