"""Whose address a request is counted by."""

from hypothesis import given
from hypothesis import strategies as st

from gemini_proxy.http.peers import Proxies

PROXIES = Proxies(["10.0.0.0/8", "2001:db8::1", "unix"])
trusted = st.ip_addresses(v=4, network="10.0.0.0/8").map(str)
strangers = st.ip_addresses(v=4, network="203.0.113.0/24").map(str)
said = st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=40)


@given(st.sampled_from(["10.1.2.3", "2001:db8::1", "unix"]), said, strangers, st.lists(trusted, max_size=5))
def test_the_client_is_whom_the_outermost_trusted_proxy_saw(
    peer: str, forged: str, client: str, proxies: list[str]
) -> None:
    """Whatever the client writes into the header stands before that, and counts for nothing."""
    hops = ", ".join([forged, client, *proxies])
    assert PROXIES.client(peer, [hops]) == client
    assert PROXIES.client(peer, [forged, client, *proxies]) == client


@given(strangers | st.just(""), said)
def test_a_peer_that_is_not_trusted_speaks_for_itself(peer: str, header: str) -> None:
    assert PROXIES.client(peer, [header]) == peer
    assert Proxies([]).client("unix", [header]) == "unix"


@given(st.lists(said))
def test_any_header_can_be_read(headers: list[str]) -> None:
    PROXIES.client("unix", headers)


def test_addresses_are_read_in_every_form_that_proxies_write() -> None:
    for written, read in {
        "203.0.113.7:4711": "203.0.113.7",
        "[2001:db8::7]:4711": "2001:db8::7",
        "::ffff:203.0.113.7": "203.0.113.7",
        " 203.0.113.7 ": "203.0.113.7",
        "unknown": "unix",
        "unix:": "unix",
        "": "unix",
    }.items():
        assert PROXIES.client("unix", [written]) == read
