"""What redis-py raises is translated: all that may pass is an error of the connection."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from redis import exceptions
from redis._parsers.base import BaseParser

from rdzv.errors import RendezvousConnectionError, RendezvousError, RendezvousStateError
from rdzv_redis.errors import COMMANDS, call


def raised_for(error: Exception) -> Exception:
    def fail() -> None:
        raise error

    with pytest.raises(RendezvousError) as caught:
        call("here", fail)
    assert caught.value.__cause__ is error
    return caught.value


PASSING = [
    "MOVED 1 127.0.0.1:7000",
    "ASK 1 127.0.0.1:7000",
    "TRYAGAIN Multiple keys request during rehashing of slot",
    "CLUSTERDOWN The cluster is down",
    "CROSSSLOT Keys in request don't hash to the same slot",
    "READONLY You can't write against a read only replica.",
    "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
    "LOADING Redis is loading the dataset in memory",
    "NOREPLICAS Not enough good replicas to write.",
    "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
    "MISCONF Redis is configured to save RDB snapshots, but it's unable to persist to disk.",
    "OOM command not allowed when used memory > 'maxmemory'.",
    "UNKILLABLE Sorry the script already executed write commands",
    "UNBLOCKED force unblock from blocking operation, instance state changed",
    "ERR max number of clients reached",
    "NOAUTH Authentication required.",
    "WRONGPASS invalid username-password pair or user is disabled.",
    "NOPERM User job has no permissions to run the 'evalsha' command",
    "NOSCRIPT No matching script.",
]


@pytest.mark.parametrize("text", PASSING)
def test_what_a_server_may_answer_for_a_while_is_an_error_of_the_connection(text):
    parser: Any = BaseParser
    assert isinstance(raised_for(parser.parse_error(text)), RendezvousConnectionError)


@pytest.mark.parametrize(
    "error",
    [
        exceptions.ConnectionError("Connection closed by server."),
        exceptions.TimeoutError("Timeout reading from socket"),
        exceptions.RedisClusterException("Redis Cluster cannot be connected."),
        exceptions.SlotNotCoveredError("not covered"),
        exceptions.ClusterError("TTL exhausted."),
        exceptions.MaxConnectionsError("Too many connections"),
        OSError("Bad file descriptor"),
        ValueError("I/O operation on closed file."),
    ],
)
def test_what_the_client_raises_by_itself_is_an_error_of_the_connection(error):
    assert isinstance(raised_for(error), RendezvousConnectionError)


@pytest.mark.parametrize(
    "text",
    [
        "WRONGTYPE Operation against a key holding the wrong kind of value",
        "ERR hash value is not an integer",
        "RDZV-FOREIGN half a document",
    ],
)
def test_what_somebody_else_has_stored_is_an_error_of_state(text):
    parser: Any = BaseParser
    assert isinstance(raised_for(parser.parse_error(text)), RendezvousStateError)


def test_a_bug_stays_what_it_is():
    with pytest.raises(KeyError):
        call("here", lambda: dict[str, int]()["missing"])


def test_what_a_clusters_client_has_wrapped_is_what_is_said():
    try:
        try:
            raise exceptions.NoPermissionError("no permissions to run the 'cluster|slots' command")
        except exceptions.ResponseError:
            raise exceptions.RedisClusterException("not enabled")  # noqa: B904 - as redis-py
    except exceptions.RedisClusterException as exc:
        assert "ACL SETUSER" in str(raised_for(exc))


def test_the_readme_names_the_commands_that_a_user_needs():
    readme = Path(__file__).parents[2] / "plugins" / "redis" / "README.md"
    assert f" {COMMANDS}\n" in readme.read_text()
