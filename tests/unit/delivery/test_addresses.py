from __future__ import annotations

from datetime import UTC, datetime

import pytest

from tests.unit.delivery.receiver import UnreachableNetwork, receiver, status
from workers.delivery.addresses import is_public, permitted, resolve
from workers.delivery.errors import AddressRefused
from workers.delivery.network import Network
from workers.delivery.webhooks import Attempt, Message, Verdict, send

NOW = datetime(2026, 1, 1, tzinfo=UTC)
PUBLIC = "93.184.215.14"


def attempt(url: str, network: Network) -> Attempt:
    message = Message(webhook_id="m", url=url, secrets=["whsec_c2VjcmV0"], body=b"{}")
    return send(message, network=network, timeout_s=5, now=NOW)


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.255.255.254", "0.0.0.0", "0.1.2.3"),
        *("10.0.0.1", "10.255.255.255", "172.16.0.1", "172.31.255.255", "192.168.0.1"),
        *("169.254.169.254", "100.64.0.1", "100.100.100.200", "192.0.0.192", "198.18.0.1"),
        *("192.0.2.1", "198.51.100.1", "203.0.113.1", "192.88.99.1"),
        *("224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255"),
        *("::", "::1", "fc00::1", "fdff::1", "fd00:ec2::254", "fe80::1", "fe80::1%lo", "fec0::1"),
        *("ff02::1", "100::1", "2001:db8::1", "3fff::1", "5f00::1"),
        # IPv4 in IPv6: mapped, compatible, 6to4, Teredo, NAT64
        *("::ffff:127.0.0.1", "::ffff:8.8.8.8", "::127.0.0.1", "2002:7f00:1::", "2002:808:808::"),
        *("2001:0:4136:e378:8000:63bf:3fff:fdd2", "64:ff9b::10.0.0.1", "64:ff9b:1::8.8.8.8"),
    ],
)
def test_an_address_outside_the_public_internet_is_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        *("8.8.8.8", PUBLIC, "172.15.255.255", "172.32.0.0", "192.167.255.255", "100.128.0.0"),
        *("223.255.255.255", "2606:2800:21f:cb07::1", "2a00:1450::1", "64:ff9b::8.8.8.8"),
    ],
)
def test_an_address_of_the_public_internet_is_public(address: str) -> None:
    assert is_public(address)


def test_only_the_public_ones_of_several_addresses_are_tried() -> None:
    assert permitted("h", ["10.0.0.1", PUBLIC, "::1"], allow_private=False) == [PUBLIC]
    assert permitted("h", ["10.0.0.1"], allow_private=True) == ["10.0.0.1"]
    with pytest.raises(AddressRefused) as refused:
        permitted("db.internal", ["10.0.0.1"], allow_private=False)
    assert "10.0.0.1" not in str(refused.value)


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "127.1", "2130706433", "0177.0.0.1", "017700000001", "0x7f.1", "0x7f000001"),
        *("localhost", "LOCALHOST", "0.0.0.0", "0", "10.1.2.3", "167772161", "012.0.0.1"),
        *("172.16.0.1", "192.168.1.1", "0300.0250.1.1", "169.254.169.254", "2852039166"),
        *("[::1]", "[::]", "[fc00::1]", "[fe80::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]"),
        *("[2002:7f00:1::]", "[64:ff9b::7f00:1]"),
    ],
)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_no_spelling_of_a_private_address_is_connected_to(scheme: str, host: str) -> None:
    backend = UnreachableNetwork()
    outcome = attempt(f"{scheme}://{host}:8080/hook", Network(backend=backend))
    assert backend.asked == []
    assert outcome.verdict is Verdict.REFUSED
    # httpx already takes a dotted quad with leading zeros for no address at all.
    reasons = (f"{host.lower().strip('[]')} is not at a public address", "the url is not valid")
    assert outcome.error is not None
    assert outcome.error.removeprefix("refused: ").startswith(reasons)


@pytest.mark.parametrize(
    "url",
    [
        *("http://①②⑦.⓪.⓪.①/", "ftp://example.com/", "file:///etc/passwd", "http:///hook"),
        *("gopher://example.com/", "http://example.com:0/", "http://example.com:99999/"),
        *("http://127.0.0.1\r\nx: y/", "hook", "http://[::1", "http://\x00/"),
    ],
)
def test_a_url_that_cannot_be_requested_is_refused(url: str) -> None:
    backend = UnreachableNetwork()
    outcome = attempt(url, Network(backend=backend, allow_private_addresses=True))
    assert backend.asked == []
    assert outcome.verdict is Verdict.REFUSED
    assert outcome.error is not None
    assert outcome.error.startswith("refused: the url")


def test_credentials_in_a_url_do_not_hide_the_host() -> None:
    backend = UnreachableNetwork()
    outcome = attempt("http://example.com:80@127.0.0.1/", Network(backend=backend))
    assert (backend.asked, outcome.verdict) == ([], Verdict.REFUSED)


def test_a_name_is_resolved_once_and_that_very_address_is_connected_to() -> None:
    """DNS rebinding: the second answer is private, and nobody asks a second time."""
    answers, backend = iter([[PUBLIC], ["127.0.0.1"]]), UnreachableNetwork()
    network = Network(resolve=lambda host, port: next(answers), backend=backend)

    first = attempt("http://rebinding.example/", network)
    assert (backend.asked, first.verdict) == ([PUBLIC], Verdict.FAILED)

    second = attempt("http://rebinding.example/", network)
    assert (backend.asked, second.verdict) == ([PUBLIC], Verdict.REFUSED)


def test_host_and_path_stay_those_of_the_url() -> None:
    with receiver() as server:
        network = Network(resolve=lambda host, port: ["127.0.0.1"], allow_private_addresses=True)
        assert attempt(server.url("/a?b=c", host="receiver.example"), network).status_code == 200
        (request,) = server.requests
    assert request.headers["host"] == f"receiver.example:{server.port}"
    assert request.target == "/a?b=c"


def test_the_next_address_is_tried_when_one_refuses_the_connection() -> None:
    with receiver() as server:
        network = Network(
            # Nothing listens on the second loopback address.
            resolve=lambda host, port: ["127.0.0.2", "127.0.0.1"],
            allow_private_addresses=True,
        )
        assert attempt(server.url(host="two.example"), network).status_code == 200


def test_a_redirect_to_a_private_address_is_not_followed() -> None:
    with receiver() as private:
        location = f"location: {private.url()}"
        with receiver(status(301, location)) as server:
            outcome = attempt(server.url(), Network(allow_private_addresses=True))
    assert (outcome.status_code, outcome.verdict) == (301, Verdict.FAILED)
    assert (len(server.requests), len(private.requests)) == (1, 0)


def test_a_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with receiver() as proxy, receiver() as server:
        monkeypatch.setenv("HTTP_PROXY", proxy.url(""))
        monkeypatch.setenv("ALL_PROXY", proxy.url(""))
        attempt(server.url(), Network(allow_private_addresses=True))
    assert (len(server.requests), len(proxy.requests)) == (1, 0)


def test_the_system_resolver_reads_literals_without_asking_anyone() -> None:
    assert resolve("127.0.0.1", 80) == ["127.0.0.1"]
    assert resolve("2130706433", 80) == ["127.0.0.1"]
