from __future__ import annotations

from pathlib import Path

import pytest

from fleet.addresses import Addresses, parse_s3_url, without_credentials
from fleet.errors import SettingError
from fleet.settings import load_settings


def test_the_home_follows_the_account(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert load_settings().home == Path("/state/nirvana")
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "/home/ada")
    assert load_settings().home == Path("/home/ada/.local/state/nirvana")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert load_settings().home == Path("/var/lib/nirvana")
    monkeypatch.setenv("NIRVANA_HOME", "~/fleet")
    assert load_settings().home == Path("/home/ada/fleet")


def test_an_account_without_a_home_is_asked_for_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIRVANA_HOME", "~nobody-of-this-name/fleet")
    with pytest.raises(SettingError, match=r"^NIRVANA_HOME: .*name a folder"):
        load_settings()


def test_an_empty_variable_is_unset_and_an_argument_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIRVANA_BROKER_URL", "")
    monkeypatch.setenv("NIRVANA_FLOWER_PORT", "5556")
    assert load_settings().broker_url is None
    assert load_settings().flower_port == 5556
    assert load_settings(flower_port=0).flower_port == 0


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("FLOWER_PORT", "70000", "0 \\(any free port\\) or from 1024 to 65535"),
        ("FLOWER_PORT", "many", "0 \\(any free port\\) or from 1024 to 65535"),
        ("POSTGRES_PORT", "80", "0 \\(any free port\\) or from 1024 to 65535"),
        ("S3_PORT", "60000", "0 \\(any free port\\) or from 1024 to 55531"),
        ("DATABASE_URL", "mysql://a@b/c", "postgresql://user:password@host:port/database"),
        ("BROKER_URL", "amqp://b", "redis\\[s\\]://:password@host:port/0"),
        ("S3_URL", "http://host/bucket", "http\\[s\\]://ACCESS:SECRET@host:port/bucket"),
        ("S3_URL", "http://a:s@host:x/bucket", "http\\[s\\]://ACCESS:SECRET@host:port/bucket"),
        ("DATABASE_URL", "postgresql://u@h:x/d", "postgresql://user:password@host:port/database"),
    ],
)
def test_a_wrong_setting_is_named_with_what_is_allowed(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, allowed: str
) -> None:
    monkeypatch.setenv(f"NIRVANA_{name}", value)
    with pytest.raises(SettingError, match=f"^NIRVANA_{name}: .*{allowed}") as caught:
        load_settings()
    assert caught.value.variable == f"NIRVANA_{name}"
    assert "\n" not in str(caught.value)


def test_an_s3_url_is_taken_apart_and_decoded() -> None:
    address = parse_s3_url("https://key:s%2Fcret@s3.example.com:9000/images/")
    assert address.endpoint == "s3.example.com:9000"
    assert (address.access_key, address.secret_key) == ("key", "s/cret")
    assert (address.bucket, address.is_secure) == ("images", True)


def test_passwords_are_not_shown() -> None:
    addresses = Addresses(
        database_url="postgresql://u:hidden@h:1/d",
        broker_url="redis://:hidden@h:2/0",
        s3_url="http://a:hidden@h:3/b",
    )
    assert "hidden" not in repr(addresses)
    shown = [without_credentials(url) for url in addresses.environment().values()]
    assert shown == ["postgresql://h:1/d", "redis://h:2/0", "http://h:3/b"]
    assert addresses.sqlalchemy_url == "postgresql+psycopg://u:hidden@h:1/d"
    settings = load_settings(broker_url=addresses.broker_url, flower_password="hidden")
    assert "hidden" not in repr(settings)
