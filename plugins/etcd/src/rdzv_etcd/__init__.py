"""Rendezvous for rdzv on etcd v3."""

__version__ = "0.1.0"
