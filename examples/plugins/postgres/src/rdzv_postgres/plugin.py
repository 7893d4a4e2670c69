"""What this distribution tells the core: the backend ``postgres``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rdzv import BackendSpec, Parameter, hookimpl

if TYPE_CHECKING:
    from torch.distributed import Store

    from rdzv import RendezvousBackend, RendezvousParameters

__all__ = ["rdzv_backend"]


def _create(params: RendezvousParameters) -> tuple[RendezvousBackend, Store]:
    from rdzv_postgres.backend import create_backend

    return create_backend(params)


_POSTGRES = BackendSpec(
    name="postgres",
    summary="a PostgreSQL database; changes are pushed by LISTEN and NOTIFY",
    create=_create,
    parameters=(
        Parameter("username", "str", help="The role to log in as; by default libpq's."),
        Parameter(
            "password",
            "str",
            help="Its password; torchrun logs what stands here, so rather use password_file or "
            "the environment variable RDZV_POSTGRES_PASSWORD.",
            secret=True,
        ),
        Parameter("password_file", "str", help="A file whose first line is the password."),
        Parameter("dbname", "str", help="The database; by default the role's name."),
        Parameter(
            "sslmode",
            "str",
            help="Whether and how to talk TLS, as libpq has it.",
            choices=("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
        ),
        Parameter("sslrootcert", "str", help="A file of certificates to trust."),
        Parameter("connect_timeout", "seconds", 5.0, help="How long connecting may take."),
        Parameter(
            "ttl",
            "seconds",
            86400.0,
            help="After which the rows of a run in which nobody is alive are removed by the next.",
        ),
    ),
    capabilities=frozenset({"roster", "watch"}),
    guarantees=(
        "On one server what is stored is linearizable, and survives its restart.",
        "After a failover to an asynchronous replica acknowledged changes may be gone.",
    ),
)


@hookimpl
def rdzv_backend(name: str) -> BackendSpec | None:
    """Describe ``postgres``."""
    return _POSTGRES if name == "postgres" else None
