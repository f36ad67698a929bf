"""The composition of a fleet: services, migrations, workers, in this order.

    with running_fleet(load_settings()) as fleet:   # returns when everything is ready
        fleet.wait()                                # until Ctrl-C, SIGTERM or SIGHUP
                                                    # here everything has been stopped

An interruption anywhere but in `wait` leaves the block as KeyboardInterrupt, after the same stop.

A thread of its own supervises, so that the caller's thread is free for work (the demo) and its
interruption never leaves a child half-started.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace

from fleet import ports
from fleet.addresses import Addresses
from fleet.errors import FleetError, HomeError, PortTakenError
from fleet.home import Home, Secrets
from fleet.interruptions import handled_interruptions
from fleet.processes import end_children, own_identity
from fleet.program import Program
from fleet.record import ChildRecord, FleetRecord, FlowerAddress
from fleet.services import embedded
from fleet.services.embedded import Services
from fleet.settings import FleetSettings
from fleet.supervisor import FleetEvent, Supervisor
from fleet.workers import worker_programs

logger = logging.getLogger(__name__)

EventCallback = Callable[[FleetEvent], None]
WorkerPrograms = Callable[[Addresses, FlowerAddress, Secrets], Sequence[Program]]


def upgrade_schema(database_url: str) -> None:
    """Bring the database to the newest schema; raises FleetError."""
    # Late: Alembic and SQLAlchemy are slow to import, and needed here only.
    from sqlalchemy.exc import SQLAlchemyError

    from cache.errors import CacheError
    from migrations.migrate import upgrade

    try:
        upgrade(database_url)
    except (CacheError, SQLAlchemyError) as error:
        reason = " ".join(str(error).split("\n[SQL", 1)[0].split())
        raise FleetError(f"the database could not be migrated: {reason}") from error


class Fleet:
    """A fleet that is ready."""

    def __init__(self, home: Home, record: FleetRecord) -> None:
        self.home = home
        self.addresses = record.addresses
        self.flower = record.flower
        self.failure: Exception | None = None
        self.ended = threading.Event()

    def wait(self) -> None:
        """Return when the user interrupts; raise what ended the supervision, if anything does."""
        with suppress(KeyboardInterrupt):
            self.ended.wait()
        self.raise_failure()

    def raise_failure(self) -> None:
        """Raise what ended the supervision, if anything did."""
        if self.failure is not None:
            raise self.failure


@contextmanager
def running_fleet(
    settings: FleetSettings,
    *,
    on_event: EventCallback = lambda event: None,
    workers: WorkerPrograms = worker_programs,
    migrate: Callable[[str], None] = upgrade_schema,
) -> Iterator[Fleet]:
    """Start everything, yield when all is ready, stop everything in reverse order at the end.

    Until then SIGINT, SIGTERM and SIGHUP raise KeyboardInterrupt in the main thread, once: while
    the fleet stops, which takes 15 s at most, they are ignored. `on_event` is called from other
    threads. Raises FleetError.
    """
    home = Home(settings.home)
    with ExitStack() as stack:
        interruptions = stack.enter_context(handled_interruptions())
        home.create()
        stack.enter_context(home.locked())
        end_leftovers(home)
        flower = _flower_address(settings, home.secrets())
        services = embedded.prepare(settings, home, taken={_port(flower)})
        supervision = _Supervision(home, services, flower, on_event=on_event)
        try:
            with interruptions.held():
                supervision.launch(migrate, workers)
            supervision.wait_ready()
            try:
                yield supervision.fleet
            finally:
                interruptions.ignore()
        finally:
            supervision.stop()


class _Supervision:
    """The thread that owns the supervisor, from the first service's start to the last's end."""

    def __init__(
        self, home: Home, services: Services, flower: FlowerAddress, *, on_event: EventCallback
    ) -> None:
        self._home, self._programs = home, services.programs
        self._record = FleetRecord(
            supervisor=own_identity(), addresses=services.addresses, flower=flower
        )
        self._supervisor = Supervisor(home, on_event=on_event, on_change=self._write)
        self.fleet = Fleet(home, self._record)
        self._settled = threading.Event()
        self._thread: threading.Thread | None = None

    def launch(self, migrate: Callable[[str], None], workers: WorkerPrograms) -> None:
        """Start the thread."""

        def run() -> None:
            try:
                self._supervise(migrate, workers)
            except Exception as error:  # noqa: BLE001  the thread's end: re-raised by the caller's
                self.fleet.failure = error
            finally:
                self._settled.set()
                self.fleet.ended.set()

        self._home.write_record(self._record)
        self._thread = threading.Thread(target=run, name="supervisor")
        self._thread.start()

    def wait_ready(self) -> None:
        """Return when all is ready; raises what prevented it."""
        self._settled.wait()
        self.fleet.raise_failure()

    def stop(self) -> None:
        """Stop all children; returns when they are gone."""
        self._supervisor.stopping.set()
        if self._thread is not None:
            self._thread.join()
        self._home.remove_record()

    def _supervise(self, migrate: Callable[[str], None], workers: WorkerPrograms) -> None:
        addresses, stopping = self._record.addresses, self._supervisor.stopping
        try:
            self._supervisor.start(self._programs)
            if not stopping.is_set():
                migrate(addresses.sqlalchemy_url)
                self._supervisor.start(
                    workers(addresses, self._record.flower, self._home.secrets())
                )
            self._settled.set()
            self._supervisor.supervise()
        finally:
            self._supervisor.stop()

    def _write(self, children: Sequence[ChildRecord]) -> None:
        try:
            self._home.write_record(replace(self._record, children=tuple(children)))
        except HomeError as error:
            # A disk that fills up later must not bring the fleet down.
            logger.warning("%s", error)


def end_leftovers(home: Home) -> list[str]:
    """Stop what a killed supervisor left running; the caller holds the folder's lock."""
    record = home.record()
    if record is None:
        return []
    ended = end_children(record.children)
    if ended:
        logger.warning("stopped leftovers of an earlier run: %s", ", ".join(ended))
    home.remove_record()
    return ended


def _flower_address(settings: FleetSettings, secrets: Secrets) -> FlowerAddress:
    port = settings.flower_port
    if port and not ports.is_free(port):
        raise PortTakenError("NIRVANA_FLOWER_PORT", port)
    return FlowerAddress(
        url=f"http://127.0.0.1:{port or ports.choose_port()}",
        user=settings.flower_user,
        password=settings.flower_password or secrets.flower_password,
        state_path=str(settings.flower_state),
    )


def _port(flower: FlowerAddress) -> int:
    return int(flower.url.rpartition(":")[2])
