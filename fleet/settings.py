"""Settings of one machine's fleet: the state folder, the ports, and services given by URL."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from fleet.addresses import check_broker_url, check_database_url, check_s3_url
from fleet.errors import SettingError

PORT_LIMITS = "must be 0 (any free port) or from 1024 to 65535"


def _check_port(port: int) -> int:
    if port and not 1_024 <= port <= 65_535:
        raise ValueError(PORT_LIMITS)
    return port


def _check_s3_port(port: int) -> int:
    # SeaweedFS takes ports up to 10,004 above.
    if port and not 1_024 <= port <= 55_531:
        raise ValueError("must be 0 (any free port) or from 1024 to 55531")
    return port


def _absolute(folder: Path) -> Path:
    try:
        return folder.expanduser().absolute()
    except RuntimeError as error:
        raise ValueError("this account has no home directory; name a folder") from error


def _default_home() -> Path:
    if os.geteuid() == 0:
        return Path("/var/lib/nirvana")
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(state) / "nirvana"


Port = Annotated[int, AfterValidator(_check_port)]


class FleetSettings(BaseSettings):
    """Read from `NIRVANA_*` variables; an empty variable counts as unset."""

    model_config = SettingsConfigDict(
        env_prefix="NIRVANA_",
        frozen=True,
        extra="ignore",
        env_ignore_empty=True,
        use_attribute_docstrings=True,
    )

    home: Annotated[Path, AfterValidator(_absolute)] = Field(
        default_factory=_default_home, validate_default=True
    )
    """State folder: data, passwords, logs. /var/lib/nirvana for root."""
    database_url: Annotated[str, AfterValidator(check_database_url)] | None = Field(
        None, repr=False
    )
    """PostgreSQL with pgvector; when set, none is started."""
    broker_url: Annotated[str, AfterValidator(check_broker_url)] | None = Field(None, repr=False)
    """Redis or Valkey; when set, none is started."""
    s3_url: Annotated[str, AfterValidator(check_s3_url)] | None = Field(None, repr=False)
    """An S3 bucket with its credentials; when set, no server is started."""
    postgres_port: Port = 0
    """0 is a free port, chosen once and kept in the state folder; as the next two."""
    valkey_port: Port = 0
    """As the one before."""
    s3_port: Annotated[int, AfterValidator(_check_s3_port)] = 0
    """First of five ports; five more lie 10,000 above."""
    flower_port: Port = 5_555
    """0 is any free port."""
    flower_user: str = Field("nirvana", pattern=r"^[^:\s]+$")
    """Who may look at Flower's page."""
    flower_password: str | None = Field(None, min_length=1, repr=False)
    """Generated and kept in the state folder if unset."""
    flower_state_path: Path | None = None
    """File in which Flower keeps what it showed; in the state folder if unset."""

    @property
    def flower_state(self) -> Path:
        """Where Flower keeps what it showed."""
        return self.flower_state_path or self.home / "flower" / "state"


def load_settings(**overrides: Any) -> FleetSettings:
    """Read the settings; `overrides` win over variables.

    Raises SettingError with the first wrong variable's name.
    """
    try:
        return FleetSettings(**overrides)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        variable = "NIRVANA_" + "_".join(str(part) for part in problem["loc"]).upper()
        is_port = variable.endswith("_PORT") and problem["type"] != "value_error"
        reason = PORT_LIMITS if is_port else problem["msg"].removeprefix("Value error, ")
        raise SettingError(variable, reason) from None
