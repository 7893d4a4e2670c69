"""PostgresServer: a private server on this machine, for tests."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from rdzv.testing.local_server import LocalServer

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["PostgresServer"]

ROLE = "rdzv"
"""Who may log in: a superuser of this server."""


class PostgresServer(LocalServer):
    """A PostgreSQL server that is gone with its data when the process ends, however it does.

    PostgreSQL refuses to run as root: then its processes, and its folder, are those of the user
    ``postgres``, whom Debian's package brings.

    Args:
        password: The password of the role ``rdzv``; without one all of this machine are let in.
        others: As ``LocalServer`` has them.
    """

    kind = "rdzv-postgres"
    binary_variable = "RDZV_POSTGRES_BINARY_PATH"
    # Debian does not have it on the path.
    programs = ("postgres", "/usr/lib/postgresql/*/bin/postgres")
    advice = "Install one with 'apt install postgresql'."

    def __init__(self, port: int = 0, *, password: str | None = None, **others: object) -> None:
        super().__init__(port, **others)  # type: ignore[arg-type]
        self._password = password

    def command(self) -> Sequence[str | int | os.PathLike[str]]:
        as_user: list[str] = []
        if os.getuid() == 0:
            # It executes the program in its own place, which others of its kind do not.
            as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
            shutil.chown(self.data_dir, "postgres", "postgres")
        data = self.data_dir / "data"
        if not data.exists():
            initdb = Path(self.binary).with_name("initdb")
            secret = self.data_dir / "password"
            secret.write_text(self._password or "unused")
            how = "scram-sha-256" if self._password else "trust"
            subprocess.run(
                [*as_user, initdb, "-D", data, "-U", ROLE, "-A", how, "--pwfile", secret,
                 "-E", "UTF8", "--locale=C", "--no-sync"],
                check=True, stdout=subprocess.DEVNULL, cwd=self.data_dir,
            )  # fmt: skip
        settings = {
            "listen_addresses": self.host,
            "unix_socket_directories": self.data_dir,
            "fsync": "off",
            "max_connections": 500,
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return [*as_user, self.binary, "-D", data, "-p", self.port, *options]

    def is_ready(self) -> bool:
        return "ready to accept connections" in self.log

    @property
    def url(self) -> str:
        """Where it is, as an endpoint; without the password."""
        return f"postgresql://{ROLE}@{self.endpoint}/postgres"
