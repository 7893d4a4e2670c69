"""What plugins read from parameters alike: logins and secrets, files, counts, times, hosts."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .endpoint import parse_rendezvous_endpoint, redact_endpoint

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from .api import RendezvousParameters

__all__ = [
    "Login",
    "read_count",
    "read_file_name",
    "read_hosts",
    "read_login",
    "read_positive",
    "read_secret_file",
    "written_host",
]

_LONGEST_SECRET = 64 * 1024


@dataclass(frozen=True)
class Login:
    """A user's name and password."""

    username: str | None = None
    password: str | None = field(default=None, repr=False)


def read_login(
    params: RendezvousParameters,
    variable: str,
    *,
    environ: Mapping[str, str] | None = None,
    which: str = "",
    in_url: Login = Login(),
) -> Login:
    """Read a user name and a password from wherever they may stand.

    The parameters are ``username``, ``password`` and ``password_file``, each after ``which``.
    What the user gives for this job counts before what the environment has for all.

    Args:
        params: The parameters.
        variable: What the names of the environment variables begin with, which have no
            secrets in ``--rdzv-conf``: ``RDZV_REDIS_`` stands for ``RDZV_REDIS_USERNAME`` and
            ``RDZV_REDIS_PASSWORD``.
        environ: The environment; the process's own by default.
        which: Whose login it is, where there are several (``"sentinel_"``).
        in_url: What the endpoint's URL says.

    Raises:
        ValueError: One of them is given twice, or the file cannot be read.
    """
    environ = os.environ if environ is None else environ
    username = params.get(f"{which}username")
    if username and in_url.username:
        raise ValueError("The user name is in the endpoint's URL and given beside it.")
    passwords = {
        "in the endpoint's URL": in_url.password,
        f"as {which}password": params.get(f"{which}password"),
        f"by {which}password_file": read_secret_file(params, f"{which}password_file"),
    }
    found = [where for where, password in passwords.items() if password]
    if len(found) > 1:
        raise ValueError(f"A password is given {found[0]} and {found[1]}; give only one of them.")
    variable += which.upper()
    password = passwords[found[0]] if found else environ.get(f"{variable}PASSWORD")
    username = username or in_url.username or environ.get(f"{variable}USERNAME")
    return Login(username or None, password or None)


def read_secret_file(params: RendezvousParameters, name: str) -> str | None:
    """The first line of the file that the parameter ``name`` names, if it is given.

    Raises:
        ValueError: The file cannot be read, or its first line is empty.
    """
    path = params.get(name)
    if not path:
        return None
    try:
        with open(path, encoding="utf-8") as file:
            secret = file.read(_LONGEST_SECRET).split("\n")[0].rstrip("\r")
    except (OSError, UnicodeDecodeError) as exc:
        raise ValueError(f"{name} is {path!r}, which cannot be read: {exc}") from None
    if not secret:
        raise ValueError(f"{name} is {path!r}, and its first line is empty.")
    return secret


def read_file_name(params: RendezvousParameters, name: str) -> str | None:
    """The name of a file, if it is given.

    Raises:
        ValueError: There is no such file.
    """
    file = params.get(name)
    if file and not os.path.isfile(file):
        raise ValueError(f"{name} is {file!r}, and there is no such file on this node.")
    return file or None


def read_count(params: RendezvousParameters, name: str, default: int) -> int:
    """A whole number of 0 or more.

    Raises:
        ValueError: It is none.
    """
    number = params.get_as_int(name)
    if number is None:
        return default
    if number < 0:
        raise ValueError(f"{name} is {number}; it must be 0 or more.")
    return number


def read_positive(params: RendezvousParameters, name: str, default: float) -> float:
    """A time above zero (seconds).

    Raises:
        ValueError: It is none.
    """
    seconds = params.get_as_seconds(name, default)
    if seconds <= 0:
        raise ValueError(f"{name} is {seconds:g} s; it must be positive.")
    return seconds


def read_hosts(text: str, default_port: int) -> tuple[tuple[str, int], ...]:
    """The hosts and ports in a text with commas between them.

    Raises:
        ValueError: One is malformed, empty, or has port 0.
    """
    parts = text.split(",")
    if len(parts) > 1 and not all(part.strip() for part in parts):
        wrong = "there is nothing between two commas"
    else:
        hosts = tuple(parse_rendezvous_endpoint(part, default_port) for part in parts)
        if all(port for _, port in hosts):
            return hosts
        wrong = "port 0 is nobody's"
    raise ValueError(f"The rendezvous endpoint '{redact_endpoint(text)}' cannot be used: {wrong}.")


def written_host(hosts: Iterable[tuple[str, int]]) -> str:
    """Hosts and ports as they are written in an endpoint."""
    return ", ".join(
        f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in hosts
    )
