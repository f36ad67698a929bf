"""Why a webhook is not sent at all, and will not be tried again; why an endpoint is not changed.

DeliveryError
├── AddressRefused      the receiver is not at a public address
├── UrlRefused          the url cannot be requested
└── ReceiverRefused     no url or no secret to send with, or a disabled endpoint
EndpointError
├── EndpointExists      the namespace has one of that name
├── EndpointUnknown     the namespace has none of that name
└── RotationState       a rotation is under way, or none is
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


class EndpointError(Exception):
    """The endpoint cannot be changed so."""


class EndpointExists(EndpointError):
    """The namespace has an endpoint of that name."""

    def __init__(self, namespace: str, name: str) -> None:
        super().__init__(f"namespace '{namespace}' has an endpoint '{name}' already")


class EndpointUnknown(EndpointError):
    """The namespace has no endpoint of that name."""

    def __init__(self, namespace: str, name: str) -> None:
        super().__init__(f"namespace '{namespace}' has no endpoint '{name}'")


class RotationState(EndpointError):
    """A rotation is under way, or none is."""
