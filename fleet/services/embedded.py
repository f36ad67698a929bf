"""The services of one fleet: which are started here, on which ports, and which are given by URL."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from fleet import ports
from fleet.addresses import Addresses, without_credentials
from fleet.errors import NotReadyError, PortTakenError, ServiceUnreachableError
from fleet.home import Home
from fleet.program import Program
from fleet.services import postgres, s3, seaweedfs, valkey
from fleet.services.postgres import Passwords
from fleet.services.service import Service
from fleet.settings import FleetSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """Addresses of all three services, and the programs of those that are started here."""

    addresses: Addresses
    programs: tuple[Program, ...]


def prepare(settings: FleetSettings, home: Home, *, taken: Collection[int] = ()) -> Services:
    """Choose ports outside `taken`, write configurations, initialise PostgreSQL.

    Starts nothing that stays. Checks the services that are given by URL. Raises
    ServiceUnreachableError, PortTakenError, HomeError, FleetError.
    """
    _check_given(settings)
    chosen = _choose_ports(settings, home, set(taken))
    started: list[Service] = []

    def url(given: str | None, embedded: Callable[[Home, int], Service], port: int) -> str:
        if given is not None:
            return given
        with home.named_errors():
            started.append(embedded(home, port))
        return started[-1].url

    addresses = Addresses(
        database_url=url(settings.database_url, _postgres, chosen["postgres"]),
        broker_url=url(settings.broker_url, _valkey, chosen["valkey"]),
        s3_url=url(settings.s3_url, _seaweedfs, chosen["s3"]),
    )
    programs = tuple(service.program for service in started)
    return Services(addresses=addresses, programs=programs)


def _postgres(home: Home, port: int) -> Service:
    secrets = home.secrets()
    passwords = Passwords(
        superuser=secrets.postgres_superuser_password, role=secrets.postgres_password
    )
    return postgres.embedded(home.postgres, port=port, passwords=passwords)


def _valkey(home: Home, port: int) -> Service:
    return valkey.embedded(home.valkey, port=port, password=home.secrets().valkey_password)


def _seaweedfs(home: Home, port: int) -> Service:
    secrets = home.secrets()
    return seaweedfs.embedded(
        home.s3, port=port, access_key=secrets.s3_access_key, secret_key=secrets.s3_secret_key
    )


def _check_given(settings: FleetSettings) -> None:
    checks: list[tuple[str, str | None, Callable[[str], None]]] = [
        ("NIRVANA_DATABASE_URL", settings.database_url, postgres.probe),
        ("NIRVANA_BROKER_URL", settings.broker_url, valkey.probe),
        ("NIRVANA_S3_URL", settings.s3_url, s3.probe),
    ]
    for variable, given, probe in checks:
        if given is None:
            continue
        try:
            probe(given)
        except NotReadyError as error:
            reason = f"{without_credentials(given)} cannot be used: {error}"
            raise ServiceUnreachableError(variable, reason) from error


def _choose_ports(settings: FleetSettings, home: Home, taken: set[int]) -> dict[str, int]:
    """A port for each service, the remembered one where it is free; none of `taken`."""
    wanted: list[tuple[str, int, Sequence[int]]] = [
        ("postgres", settings.postgres_port, (0,)),
        ("valkey", settings.valkey_port, (0,)),
        ("s3", settings.s3_port, seaweedfs.PORT_OFFSETS),
    ]
    remembered, chosen = home.ports(), dict[str, int]()
    for name, configured, offsets in wanted:
        port = configured or remembered.get(name, 0)
        if not port or not ports.become_free(port, offsets, taken):
            if configured and getattr(settings, _URL_SETTING[name]) is None:
                raise PortTakenError(f"NIRVANA_{name.upper()}_PORT", configured)
            port = ports.choose_port(offsets=offsets, taken=taken)
        chosen[name] = port
        taken |= {port + offset for offset in offsets}
    home.remember_ports(chosen)
    return chosen


_URL_SETTING = {"postgres": "database_url", "valkey": "broker_url", "s3": "s3_url"}
