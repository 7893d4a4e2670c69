"""rdzv-sqlite: a rendezvous in a database file of SQLite."""

__version__ = "0.1.0"
