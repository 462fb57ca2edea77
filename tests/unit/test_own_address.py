"""Each worker uses its own host's interface, whatever it is called there."""

from __future__ import annotations

import pytest

from hvtrain.control import ownaddress
from hvtrain.control.ownaddress import place_on
from hvtrain.engine.world import Place
from hvtrain.errors import EnvironmentNotReady

THERE = {"lo": ["127.0.0.1", "::1"], "eth0": ["10.77.0.2", "10.78.0.2", "fd77::2"], "ib0": ["fd78::2"]}


@pytest.fixture(autouse=True)
def there(monkeypatch):
    monkeypatch.setattr(ownaddress, "addresses", lambda: THERE)


@pytest.mark.parametrize("local,name", [
    ("127.0.0.1", "lo"), ("10.78.0.2", "eth0"), ("fd77::2", "eth0"), ("fd78::2", "ib0")])
def test_the_one_that_reaches_the_coordinator(local, name):
    assert place_on("", local) == (name, local)


def test_an_address_that_no_interface_has():
    assert place_on("", "10.99.0.1") == ("", "")  # network address translation by a container's host, say


def test_an_interface_of_the_users_choice():
    assert place_on("eth0", "10.99.0.1") == ("eth0", "10.77.0.2")
    assert place_on("eth0", "fd99::1") == ("eth0", "fd77::2")


@pytest.mark.parametrize("name,local", [("ib0", "10.77.0.2"), ("nonet0", "10.77.0.2")])
def test_one_that_this_host_lacks_is_said_with_what_it_has(name, local):
    with pytest.raises(EnvironmentNotReady, match=rf"launch.interface is '{name}'.*IPv4.*eth0 \(10.77.0.2"):
        place_on(name, local)


def test_what_the_engine_is_told():
    four = Place(rendezvous_host="10.0.0.1", address="10.77.0.2", interface="eth0").environment()
    six = Place(rendezvous_host="fd77::1", address="fd77::2", interface="eth0").environment()
    assert (four["HOROVOD_GLOO_RENDEZVOUS_ADDR"], six["HOROVOD_GLOO_RENDEZVOUS_ADDR"]) == ("10.0.0.1", "fd77::1")
    assert (four["HVTRAIN_GLOO_ADDRESS"], six["HVTRAIN_GLOO_ADDRESS"]) == ("10.77.0.2", "fd77::2")


def test_this_machine_has_a_loopback():
    monkeyless = ownaddress.__dict__["addresses"]
    assert monkeyless()["lo"]
