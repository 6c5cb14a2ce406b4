"""The guard of ``conftest.py`` works: a test cannot reach the network, and can reach itself."""

import os
import socket

import pytest

from tests.conftest import NetworkUsed


@pytest.mark.parametrize("address", [("203.0.113.1", 80), ("example.org", 443)], ids=str)
def test_connection_is_refused(address: tuple[str, int]) -> None:
    with pytest.raises(NetworkUsed, match="tests run offline"):
        socket.create_connection(address, timeout=1)


def test_datagram_is_refused() -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
        pytest.raises(NetworkUsed, match=r"203\.0\.113\.1"),
    ):
        sock.sendto(b"x", ("203.0.113.1", 53))


def test_no_handler_swallows_the_refusal() -> None:
    with pytest.raises(NetworkUsed):
        try:
            socket.getaddrinfo("example.org", 443)
        except Exception as error:  # what a library's fallback looks like
            pytest.fail(f"swallowed {error}")


def test_loopback_works() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        peer, _ = server.accept()
        peer.close()


def test_libraries_are_told() -> None:
    import huggingface_hub.constants

    assert huggingface_hub.constants.HF_HUB_OFFLINE
    assert os.environ["WANDB_MODE"] == "disabled"
