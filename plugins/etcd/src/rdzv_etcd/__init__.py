"""rdzv-etcd: a rendezvous on etcd."""

__version__ = "0.1.0"
