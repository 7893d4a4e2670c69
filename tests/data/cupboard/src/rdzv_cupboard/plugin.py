"""The backend's description; what it needs is imported when it is made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rdzv import BackendSpec, Parameter, RendezvousParameters, hookimpl

if TYPE_CHECKING:
    from torch.distributed import Store

    from rdzv import RendezvousBackend

rdzv_api = 1


def create(params: RendezvousParameters) -> tuple[RendezvousBackend, Store]:
    """Open the drawer of a run in the folder that the endpoint names."""
    from torch.distributed import FileStore

    from .backend import Cupboard

    drawer = Path(params.endpoint) / params.run_id
    if params.get_as_bool("make", True):
        drawer.mkdir(parents=True, exist_ok=True)
    return Cupboard(drawer), FileStore(str(drawer / "store"))


@hookimpl
def rdzv_backend(name: str) -> BackendSpec | None:
    """Describe it."""
    if name != "cupboard":
        return None
    return BackendSpec(
        name="cupboard",
        summary="a rendezvous in a folder",
        create=create,
        parameters=(Parameter("make", "bool", True, help="Make the folder if it is missing."),),
        guarantees=("A write is seen by every process of this machine at once.",),
    )
