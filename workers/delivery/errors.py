"""Why a webhook is not sent at all, and will not be tried again.

DeliveryError
├── AddressRefused      the receiver is not at a public address
├── UrlRefused          the url cannot be requested
└── ReceiverRefused     no url or no secret to send with, or a disabled endpoint
"""

from __future__ import annotations


class DeliveryError(Exception):
    """The webhook cannot be sent."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or type(self).__doc__)


class AddressRefused(DeliveryError):
    """The receiver is not at a public address."""

    def __init__(self, host: str, addresses: list[str]) -> None:
        # Tenants read the message: it must not tell them what internal names resolve to.
        super().__init__(f"refused: {host} is not at a public address")
        self.host = host
        self.addresses = addresses


class UrlRefused(DeliveryError):
    """The url cannot be requested."""


class ReceiverRefused(DeliveryError):
    """There is nobody to send the webhook to, or nothing to sign it with."""
