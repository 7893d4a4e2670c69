"""Whether the address by which the other nodes are to reach this one is one."""

from __future__ import annotations

import contextlib
import secrets
import socket
import threading
from collections.abc import Iterator

from rdzv.diagnosis import Finding
from rdzv.endpoint import matches_machine
from rdzv.options import written_host

from .bounded import reason
from .names import families, look_up
from .ports import connect

__all__ = ["Listener", "check_address", "greet"]

_WORDS = b"rdzv-doctor "
_LENGTH = len(_WORDS) + 32

PORTS = (
    "the ports that systems give to programs (on Linux those of "
    "/proc/sys/net/ipv4/ip_local_port_range), of which the workers' master takes one"
)


class Listener:
    """A socket that listens on all addresses, and tells who connects that it is a doctor's.

    Args:
        port: The port, 0 for one that is free.

    Attributes:
        port: The port.
        word: What it answers, a random word.

    Raises:
        OSError: The port is taken, or may not be taken.
    """

    def __init__(self, port: int = 0) -> None:
        self.word = secrets.token_hex(16)
        dual = socket.has_dualstack_ipv6()
        self._socket = socket.create_server(
            ("", port),
            family=socket.AF_INET6 if dual else socket.AF_INET,
            dualstack_ipv6=dual,
        )
        self.port = int(self._socket.getsockname()[1])
        threading.Thread(target=self._serve, name="rdzv-doctor", daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return  # It was closed.
            # It reads nothing, so that nobody can hold it up.
            with connection, contextlib.suppress(OSError):
                connection.settimeout(1)
                connection.sendall(_WORDS + self.word.encode())

    def close(self) -> None:
        """Listen no more."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def greet(host: str, port: int, limit: float) -> str:
    """Connect to another doctor; its word, or an empty text where something else listens there.

    Raises:
        OSError: No connection can be made.
    """
    with connect(host, port, limit) as connection:
        connection.settimeout(limit)
        answer = b""
        with contextlib.suppress(OSError):
            while len(answer) < _LENGTH and (more := connection.recv(_LENGTH - len(answer))):
                answer += more
    return answer[len(_WORDS) :].decode("ascii", "replace") if answer.startswith(_WORDS) else ""


def check_address(
    address: str, listener: Listener, limit: float, *, given: bool, local_run: bool
) -> Iterator[Finding]:
    """Look at the address that this node would give to the others.

    Args:
        address: It, or a name.
        listener: Listens on this machine.
        limit: Seconds for each step.
        given: Whether the user has given it, by ``--local-addr``.
        local_run: Whether the endpoint is on the loopback interface.
    """
    how = "given by --local-addr" if given else "found out from the endpoint"
    (lookup,) = look_up([address], limit)
    if not lookup.addresses:
        yield Finding(
            "node.unresolved",
            "error",
            f"This node's address, {address} ({how}), is a name that does not resolve here.",
            "Give the address by which the other nodes reach this one: --local-addr.",
        )
        return
    known = "" if lookup.is_literal else f", which is {families(lookup.addresses)} here"
    if lookup.is_loopback:
        if local_run:
            yield Finding(
                "node.loopback",
                "note",
                f"This node gives the others the address {address}: all nodes have to be on this "
                "machine, as the endpoint is.",
            )
        else:
            yield Finding(
                "node.loopback",
                # A name may be another address where the others are.
                "error" if lookup.is_literal else "warning",
                f"This node gives the others the address {address} ({how}){known}: by that they "
                "do not come here, but to themselves.",
                "Give the address by which the other nodes reach this one: --local-addr; or "
                "correct the name's line in /etc/hosts.",
            )
    elif not matches_machine(address):
        yield Finding(
            "node.elsewhere",
            "warning",
            f"This node gives the others the address {address} ({how}){known}, which no network "
            "interface of this machine has. That is right only where something forwards it here, "
            "with the same port.",
            "Give an address of this machine (ip addr): --local-addr.",
        )
    else:
        yield Finding(
            "node.address", "ok", f"This node gives the others the address {address}{known}."
        )
    yield _listens(address, listener, limit)


def _listens(address: str, listener: Listener, limit: float) -> Finding:
    where = written_host([(address, listener.port)])
    try:
        word = greet(address, listener.port, limit)
    except OSError as exc:
        said = f"cannot be reached from this machine itself: {reason(exc)}."
    else:
        if word == listener.word:
            text = f"A socket that listens here is reached by that address (port {listener.port})."
            return Finding("node.listens", "ok", text)
        said = "leads to something else than the socket that listens here."
    return Finding(
        "node.unreached",
        "error",
        f"{where} {said}",
        "See whether the address is this machine's (ip addr), and whether its own firewall drops "
        f"what comes in. What has to be open between nodes are {PORTS}.",
    )
