"""TCP ports on loopback: which are free, and which to choose."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Collection, Sequence
from contextlib import closing

from fleet.errors import FleetError

# Below Linux' ephemeral range (32768 and up), so that no outgoing connection sits on a remembered
# port when the fleet comes back.
PORT_MIN = 12_000
PORT_MAX = 22_000
CHOICES_MAX = 200
PATIENCE_S = 0.5


def is_free(port: int) -> bool:
    """Whether a server can bind the port on 127.0.0.1 now."""
    with closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as probe:
        # Servers set this too: connections that linger in TIME_WAIT do not keep them out.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            probe.listen(1)
        except OSError:
            return False
    return True


def are_free(port: int, offsets: Sequence[int] = (0,), taken: Collection[int] = ()) -> bool:
    """Whether every port + offset is free, and not among `taken`."""
    block = [port + offset for offset in offsets]
    return not any(p in taken for p in block) and all(is_free(p) for p in block)


def become_free(port: int, offsets: Sequence[int], taken: Collection[int]) -> bool:
    """Whether `are_free` holds, now or within PATIENCE_S.

    The kernel closes the sockets of a process that was just killed a moment after its end.
    """
    deadline = time.monotonic() + PATIENCE_S
    while not are_free(port, offsets, taken):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def choose_port(*, offsets: Sequence[int] = (0,), taken: Collection[int] = ()) -> int:
    """A random port for which `are_free` holds; raises FleetError after CHOICES_MAX tries."""
    for _ in range(CHOICES_MAX):
        port = random.randint(PORT_MIN, PORT_MAX)  # noqa: S311  not a secret
        if are_free(port, offsets, taken):
            return port
    raise FleetError(f"no free ports were found between {PORT_MIN} and {PORT_MAX}")
