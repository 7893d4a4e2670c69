"""rdzv-postgres: a rendezvous on PostgreSQL."""

__version__ = "0.1.0"
