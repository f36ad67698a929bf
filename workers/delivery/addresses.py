"""Which addresses a webhook may be sent to: public ones, so that no job reaches our own network.

The tables are written out, from IANA's special-purpose registries, because `ipaddress.is_global`
differs between Python releases and holds multicast, 6to4 and NAT64 to be global.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final

from workers.delivery.errors import AddressRefused

# Host and port to addresses, in the order to try them; raises OSError or UnicodeError.
Resolver = Callable[[str, int], list[str]]

_NOT_PUBLIC_V4: Final = tuple(
    map(
        IPv4Network,
        (
            "0.0.0.0/8",  # this host, on Linux also by 0.0.0.0
            "10.0.0.0/8",
            "100.64.0.0/10",  # shared by carriers, and by some clouds' metadata servers
            "127.0.0.0/8",
            "169.254.0.0/16",  # link-local, the clouds' metadata servers
            "172.16.0.0/12",
            "192.0.0.0/24",
            "192.0.2.0/24",
            "192.88.99.0/24",  # 6to4 relays
            "192.168.0.0/16",
            "198.18.0.0/15",
            "198.51.100.0/24",
            "203.0.113.0/24",
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",  # reserved, and broadcast
        ),
    )
)
# IPv6's public unicast; outside it are ::1, IPv4-mapped, fc00::/7, fe80::/10 and ff00::/8.
_UNICAST_V6: Final = IPv6Network("2000::/3")
_NOT_PUBLIC_V6: Final = tuple(
    map(
        IPv6Network,
        (
            "2001::/23",  # protocol assignments, among them Teredo, which wraps an IPv4 address
            "2001:db8::/32",
            "2002::/16",  # 6to4 wraps an IPv4 address
            "3fff::/20",
        ),
    )
)
# In a network without IPv4 the resolver wraps every IPv4 address so (RFC 6052).
_NAT64: Final = IPv6Network("64:ff9b::/96")


def is_public(address: str) -> bool:
    """Whether the address, a literal, belongs to the public internet."""
    match ip_address(address):
        case IPv4Address() as v4:
            return _is_public_v4(v4)
        case v6 if v6 in _NAT64:
            return _is_public_v4(IPv4Address(int(v6) & 0xFFFF_FFFF))
        case v6:
            return _is_public_v6(v6)


def permitted(host: str, addresses: list[str], *, allow_private: bool) -> list[str]:
    """Those of a host's addresses that may be connected to; raises AddressRefused if none is."""
    if allow_private:
        return addresses
    if public := [address for address in addresses if is_public(address)]:
        return public
    raise AddressRefused(host, addresses)


def resolve(host: str, port: int) -> list[str]:
    """Ask the system's resolver, which also reads spellings such as 2130706433 and 0177.1."""
    answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in answers))


def _is_public_v4(address: IPv4Address) -> bool:
    return not any(address in network for network in _NOT_PUBLIC_V4)


def _is_public_v6(address: IPv6Address) -> bool:
    return address in _UNICAST_V6 and not any(address in network for network in _NOT_PUBLIC_V6)
