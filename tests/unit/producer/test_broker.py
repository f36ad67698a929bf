"""Addresses of the broker, as users write them."""

from __future__ import annotations

import pytest

from producer.broker import open_app, shown_address


@pytest.mark.parametrize(
    "url", ["redis://:p@h:1/0", "valkey://:p@h:1/0", "rediss://:p@h:1/0", "rediss://:p@h:1/0?x=1"]
)
def test_every_address_that_the_settings_take_has_a_result_backend(url: str) -> None:
    app = open_app(url)
    assert app.backend.connparams["host"] == "h"
    app.close()


def test_an_address_is_shown_without_its_password() -> None:
    assert shown_address("redis://user:secret@h:1/0") == "redis://h:1/0"
