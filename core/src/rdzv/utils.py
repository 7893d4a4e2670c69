"""The place where torch has ``parse_rendezvous_endpoint``, for programs that import it there."""

from rdzv.endpoint import parse_rendezvous_endpoint

__all__ = ["parse_rendezvous_endpoint"]
