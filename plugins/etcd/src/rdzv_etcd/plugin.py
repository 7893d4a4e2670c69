"""What this distribution tells the core: the backends ``etcd`` and ``etcd-v2``, ``etcd-legacy``."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from rdzv import hookimpl
from rdzv.specs import BackendSpec, HandlerSpec, Parameter

if TYPE_CHECKING:
    from torch.distributed import Store

    from rdzv import RendezvousBackend, RendezvousHandler, RendezvousParameters
    from rdzv.diagnosis import Diagnosis

__all__ = ["LEGACY", "PARAMETERS", "rdzv_backend", "rdzv_handler"]


def _create(params: RendezvousParameters) -> tuple[RendezvousBackend, Store]:
    from rdzv_etcd.backend import create_backend

    return create_backend(params)


def _diagnose(params: RendezvousParameters) -> Diagnosis:
    from rdzv_etcd.diagnose import diagnose

    return diagnose(params)


def _create_legacy(params: RendezvousParameters) -> RendezvousHandler:
    from rdzv_etcd.legacy import create_rdzv_handler

    return create_rdzv_handler(params)


_CONNECTING = (
    Parameter(
        "protocol",
        "str",
        help="'https' for TLS, the default where a file for it is given, else 'http'.",
        choices=("http", "https"),
    ),
    Parameter("ca_cert", "str", help="A file of certificates to trust; switches TLS on."),
    Parameter("ssl_cert", "str", help="A file with this client's certificate; switches TLS on."),
    Parameter("ssl_cert_key", "str", help="The file with its key, if it is not in ssl_cert."),
    Parameter("username", "str", help="The user to log in as."),
    Parameter(
        "password",
        "str",
        help="Its password; torchrun logs what stands here, so rather use password_file or the "
        "environment variable RDZV_ETCD_PASSWORD.",
        secret=True,
    ),
    Parameter("password_file", "str", help="A file whose first line is the password."),
    Parameter("connect_timeout", "seconds", 5.0, help="How long connecting to a member may take."),
    Parameter(
        "read_timeout",
        "seconds",
        5.0,
        help="How long one operation may take before its connection is given up, and another "
        "member is tried.",
    ),
)

PARAMETERS = (
    *_CONNECTING,
    Parameter("prefix", "str", "/rdzv", help="What all keys begin with."),
    Parameter(
        "ttl",
        "seconds",
        7200.0,
        help="After which the keys of a run in which nobody is alive any more are gone.",
    ),
    Parameter(
        "lease_ttl",
        "int",
        help="Seconds, 2 or more, that a node's lease lives after its last sign of life; "
        "keep_alive_interval x keep_alive_max_attempt if not given.",
    ),
)

_ETCD = BackendSpec(
    name="etcd",
    summary="an etcd cluster, by its v3 API",
    create=_create,
    parameters=PARAMETERS,
    capabilities=frozenset({"roster", "watch"}),
    guarantees=(
        "What is stored is linearizable, and survives the loss of a minority of the members.",
        "A lost node is noticed when its lease ends; twice that if etcd's leader dies too.",
        "The keys of a run expire when nobody in it has been alive for its time to live.",
    ),
    diagnose=_diagnose,
)

_BACKENDS = {
    "etcd": _ETCD,
    # torch's name for the same: what it has there speaks the v2 API, which etcd has no more.
    "etcd-v2": replace(_ETCD, name="etcd-v2"),
}


@hookimpl
def rdzv_backend(name: str) -> BackendSpec | None:
    """Describe ``etcd`` and ``etcd-v2``."""
    return _BACKENDS.get(name)


# What torch's legacy handler calls the same.
_TORCH = {"ca_cert": ("cacert",), "ssl_cert": ("cert",), "ssl_cert_key": ("key",)}

LEGACY = HandlerSpec(
    name="etcd-legacy",
    summary="the interface of torch's legacy handler for etcd; use 'etcd' instead",
    create=_create_legacy,
    parameters=(
        *(replace(each, aliases=_TORCH.get(each.name, ())) for each in _CONNECTING),
        Parameter("timeout", "seconds", 600.0, help="Within which a round has to complete."),
        Parameter(
            "last_call_timeout",
            "seconds",
            30.0,
            help="How long to wait for more nodes once min_nodes are here.",
        ),
        Parameter("etcd_prefix", "str", "/torchelastic/p2p", help="What all keys begin with."),
    ),
)


@hookimpl
def rdzv_handler(name: str) -> HandlerSpec | None:
    """Describe ``etcd-legacy``."""
    return LEGACY if name == "etcd-legacy" else None
