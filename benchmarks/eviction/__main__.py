"""How long it takes to free a share of millions of states, and what lookups notice.

    python -m benchmarks.eviction --states 5000000 --folder DIR --json

PostgreSQL and the S3 server run in DIR with their data; run again with the same folder, the
benchmark adds what the last run evicted, and evicts the next. Rows have their full size, and the
states that will be evicted, as well as a sample of the others, have real objects of full size.
Meanwhile a client looks up among users' own states at a steady pace. `--concurrency SECONDS` has
writers, readers, evictions and sweeps at work together instead, in a cache of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from sqlalchemy import Engine, text

from benchmarks.eviction import concurrency, rows, run
from cache.database import connect
from cache.objects import S3Address, S3Objects
from cache.settings import CacheSettings
from fleet.errors import FleetError
from fleet.settings import load_settings
from fleet.up import running_fleet

SEED: Final = 1
PATIENCE_S: Final = 120.0
SWEEP_GRACE_S: Final = 12.0  # half of it is more than a store takes
CAVEATS: Final = """\
Caveats: one machine for everything, benchmark included. One namespace of three scopes, random
vectors; lookups are the SQL alone, among the states of one user each. Seconds are those of the
whole run, from the choice of the victims to the last object deleted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Services:
    settings: CacheSettings
    database: Engine
    #: For what is not measured: with a server that is busy.
    patient: S3Objects


def main(given: Sequence[str] | None = None) -> int:
    """Load what is missing, measure, print; exit code 1 where something was lost or leaked."""
    options = _parse(given)
    try:
        with ExitStack() as stack:
            services = stack.enter_context(_services(_folder(options, stack)))
            measure = _measure_eviction if options.concurrency is None else _work_together
            answer = measure(services, options)
    except FleetError as error:
        print(f"benchmarks.eviction: {error}", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps(answer))
    return 1 if answer["lost_objects"] or answer["leaked_objects"] else 0


def _folder(options: argparse.Namespace, stack: ExitStack) -> Path:
    """The given one; of the work together always a new one."""
    if options.folder is not None and options.concurrency is None:
        return Path(options.folder)
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nirvana-eviction-")))
    folder.chmod(0o711)  # PostgreSQL under root runs as another user, who must pass
    return folder / "home"


def _measure_eviction(services: _Services, options: argparse.Namespace) -> dict[str, Any]:
    num_victims = round(options.states * options.share)
    scopes = rows.register(services.database)
    num_added = rows.load(
        services.database, [scope.id for scope in scopes], options.states, seed=SEED
    )
    print(f"{num_added:,} states added", flush=True)
    # What autovacuum does in time.
    with services.database.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("SET statement_timeout = 0"))
        connection.execute(text("VACUUM ANALYZE cached_prompts, cached_states, state_uses"))
    run.prepare(
        services.database,
        services.patient,
        num_victims=num_victims,
        num_kept=options.sample,
    )
    measured = run.measure(
        services.database,
        services.patient,
        services.settings,
        share=options.share,
        idle_s=options.idle_s,
        rate=options.rate,
    )
    _print_table(measured, options)
    return _answer(measured)


def _work_together(services: _Services, options: argparse.Namespace) -> dict[str, Any]:
    outcome = concurrency.run(
        services.settings,
        services.patient,
        seconds=options.concurrency,
        policy=services.settings.cache_policy,
        sweep_grace_s=min(SWEEP_GRACE_S, options.concurrency / 2),
    )
    answer = {
        "seconds": options.concurrency,
        **outcome.counts,
        "errors": len(outcome.errors),
        "live_bytes": outcome.live_bytes,
        "capacity_bytes": outcome.capacity_bytes,
        "is_best_kept": outcome.is_best_kept,
        "lost_objects": outcome.swept.rows_without_objects,
        "leaked_objects": outcome.swept.objects_without_rows,
    }
    print("\n".join(f"{name:<24}{value!s:>12}" for name, value in answer.items()))
    return answer


def _answer(measured: run.Measured) -> dict[str, Any]:
    return {
        "evicted": measured.report.evicted_states,
        "seconds": round(measured.seconds, 2),
        "row_seconds": round(measured.row_seconds, 2),
        "s3_cpu_seconds": round(measured.s3_cpu_seconds, 2),
        "lookup_p99_ms_idle": round(float(np.percentile(measured.idle_ms, 99)), 2),
        "lookup_p99_ms_during": round(float(np.percentile(measured.during_ms, 99)), 2),
        "objects_left": measured.report.objects_left,
        "lost_objects": measured.lost_objects,
        "leaked_objects": measured.leaked_objects,
    }


def _print_table(measured: run.Measured, options: argparse.Namespace) -> None:
    report = measured.report
    print(f"{options.states:,} states, {os.cpu_count()} cores, {options.rate:g} lookups a second")
    print(
        f"evicted {report.evicted_states:,} states ({report.evicted_bytes:,} bytes) and "
        f"{report.objects_removed:,} objects in {measured.seconds:.2f} s, "
        f"the rows in the first {measured.row_seconds:.2f} s, "
        f"the S3 server took {measured.s3_cpu_seconds:.1f} s of the cores; "
        f"{report.objects_left:,} objects left"
    )
    print(f"{'lookups':<12}{'number':>8}{'p50 ms':>10}{'p99 ms':>10}{'max ms':>10}")
    for name, taken in (("idle", measured.idle_ms), ("during", measured.during_ms)):
        p50, p99 = np.percentile(taken, [50, 99])
        print(f"{name:<12}{len(taken):>8}{p50:>10.2f}{p99:>10.2f}{max(taken):>10.2f}")
    print(CAVEATS)


@contextmanager
def _services(folder: Path) -> Iterator[_Services]:
    """PostgreSQL and SeaweedFS with their data in the folder, migrated."""
    settings = load_settings(
        home=folder, flower_port=0, database_url=None, broker_url=None, s3_url=None
    )
    with running_fleet(settings, workers=lambda *_: []) as fleet:
        urls = {"database_url": fleet.addresses.sqlalchemy_url, "s3_url": fleet.addresses.s3_url}
        database = connect(str(urls["database_url"]))
        try:
            address = S3Address.parse(fleet.addresses.s3_url)
            with closing(S3Objects(address, read_timeout_s=PATIENCE_S)) as patient:
                yield _Services(
                    settings=CacheSettings.load(**urls), database=database, patient=patient
                )
        finally:
            database.dispose()


def _parse(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.eviction",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--folder", type=Path, help="of the services' data; else a temporary one")
    parser.add_argument("--states", type=int, default=5_000_000)
    parser.add_argument("--share", type=float, default=0.01, help="of the states, to evict")
    parser.add_argument("--sample", type=int, default=2_000, help="kept states with an object")
    parser.add_argument("--rate", type=float, default=50.0, help="lookups a second")
    parser.add_argument("--idle-s", type=float, default=30.0, help="of lookups before the eviction")
    parser.add_argument(
        "--concurrency", type=float, metavar="SECONDS", help="of work together, instead"
    )
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    return parser.parse_args(given)


if __name__ == "__main__":
    sys.exit(main())
