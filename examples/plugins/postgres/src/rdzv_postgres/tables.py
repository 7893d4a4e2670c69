"""The tables, made when they are first needed, and emptied of runs that are long over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import psycopg

__all__ = ["prepare"]

_COLUMNS = {
    "documents": "token text NOT NULL, body bytea NOT NULL, PRIMARY KEY (run)",
    "tickets": "epoch text, tail bigint NOT NULL, PRIMARY KEY (run, epoch)",
    "log": "epoch text, ticket bigint, record bytea NOT NULL, PRIMARY KEY (run, epoch, ticket)",
    "beats": "epoch text, slot bigint, count bigint NOT NULL, PRIMARY KEY (run, epoch, slot)",
    "pieces": "epoch text, name text, piece bytea NOT NULL, PRIMARY KEY (run, epoch, name)",
    "items": "key bytea, value bytea NOT NULL, PRIMARY KEY (run, key)",
}

_LOCK = 0x72647A76  # Any number that others hardly use: "rdzv".

# In one statement, by one node at a time. A run lives while a node of it beats.
_RECENT = "at >= now() - make_interval(secs => %(ttl)s)"
_CLEAN = ", ".join(
    [
        "WITH alone AS (SELECT pg_try_advisory_xact_lock(%(lock)s) AS so)",
        f"""alive AS (SELECT run FROM rdzv_beats WHERE {_RECENT}
        UNION SELECT run FROM rdzv_documents WHERE {_RECENT})""",
        *(
            f"""{name} AS (DELETE FROM rdzv_{name} WHERE NOT {_RECENT}
            AND run NOT IN (SELECT run FROM alive) AND (SELECT so FROM alone))"""
            for name in _COLUMNS
        ),
    ]
)
_CLEAN += " SELECT so FROM alone"


def prepare(db: psycopg.Connection[Any], ttl: float) -> None:
    """Make the tables where they are missing, and remove runs that nobody has used for ``ttl`` s.

    Raises:
        psycopg.Error: It cannot be done.
    """
    # CREATE asks for the permission even where there is nothing to create.
    [[there]] = db.execute("SELECT to_regclass('rdzv_items') IS NOT NULL").fetchall()
    if not there:
        with db.transaction():
            # IF NOT EXISTS alone fails where two create at once.
            db.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
            for name, columns in _COLUMNS.items():
                # Beats need not outlive a crash, and no write of theirs waits for the disk.
                kind = "UNLOGGED" if name == "beats" else ""
                db.execute(
                    f"CREATE {kind} TABLE IF NOT EXISTS rdzv_{name} (run text, "
                    f"at timestamptz NOT NULL DEFAULT now(), {columns})".encode()
                )
    db.execute(_CLEAN.encode(), {"ttl": ttl, "lock": _LOCK})
