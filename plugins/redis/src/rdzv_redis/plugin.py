"""What this distribution tells the core: the backend ``redis``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rdzv import hookimpl
from rdzv.specs import BackendSpec, Parameter

if TYPE_CHECKING:
    from torch.distributed import Store

    from rdzv import RendezvousBackend, RendezvousParameters
    from rdzv.diagnosis import Diagnosis

__all__ = ["PARAMETERS", "rdzv_backend"]


def _create(params: RendezvousParameters) -> tuple[RendezvousBackend, Store]:
    from rdzv_redis.backend import create_backend

    return create_backend(params)


def _diagnose(params: RendezvousParameters) -> Diagnosis:
    from rdzv_redis.diagnose import diagnose

    return diagnose(params)


PARAMETERS = (
    Parameter("username", "str", help="The user to log in as, where it is not the default one."),
    Parameter(
        "password",
        "str",
        help="Its password; torchrun logs what stands here, so rather use password_file or the "
        "environment variable RDZV_REDIS_PASSWORD.",
        secret=True,
    ),
    Parameter("password_file", "str", help="A file whose first line is the password."),
    Parameter("sentinel_username", "str", help="The user to log in as at the sentinels."),
    Parameter(
        "sentinel_password",
        "str",
        help="Its password; see password. Also RDZV_REDIS_SENTINEL_PASSWORD.",
        secret=True,
    ),
    Parameter(
        "sentinel_password_file",
        "str",
        help="A file whose first line is the sentinels' password.",
    ),
    Parameter("db", "int", 0, help="The number of the database; a Cluster has only 0."),
    Parameter("ca_cert", "str", help="A file of certificates to trust; switches TLS on."),
    Parameter("ssl_cert", "str", help="A file with this client's certificate; switches TLS on."),
    Parameter("ssl_cert_key", "str", help="The file with its key, if it is not in ssl_cert."),
    Parameter(
        "ssl_check_hostname",
        "bool",
        True,
        help="Whether the server's certificate must name the host that was connected to.",
    ),
    Parameter("connect_timeout", "seconds", 5.0, help="How long connecting may take."),
    Parameter(
        "read_timeout",
        "seconds",
        5.0,
        help="How long the answer to one command may take before its connection is given up.",
    ),
    Parameter(
        "retries",
        "int",
        0,
        help="How often the store that a round hands out tries a command again, up to a second "
        "apart, after its connection broke or got no answer.",
    ),
    Parameter("prefix", "str", "rdzv", help="What all keys begin with."),
    Parameter(
        "ttl",
        "seconds",
        7200.0,
        help="After which the keys of a run in which nobody is alive any more are gone.",
    ),
    Parameter(
        "wait_replicas",
        "int",
        0,
        help="How many replicas must have confirmed a change of the run before it counts.",
    ),
    Parameter(
        "failover",
        "str",
        "refuse",
        help="What to do where the server can fail over to a replica that lacks acknowledged "
        "writes: refuse to start, or accept that the newest round may be lost.",
        choices=("refuse", "accept"),
    ),
)

_REDIS = BackendSpec(
    name="redis",
    summary="a Redis or Valkey server, alone, with Sentinel or as a Cluster",
    create=_create,
    parameters=PARAMETERS,
    capabilities=frozenset({"roster", "watch"}),
    guarantees=(
        "On one server what is stored is linearizable; exactly one of several writers has won.",
        "What was acknowledged may be lost in a failover; rounds after it have higher numbers.",
        "The keys of a run expire when nobody in it has been alive for its time to live.",
    ),
    diagnose=_diagnose,
)


@hookimpl
def rdzv_backend(name: str) -> BackendSpec | None:
    """Describe ``redis``."""
    return _REDIS if name == "redis" else None
