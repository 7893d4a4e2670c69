"""Targets: what people and other distributions write: endpoints, settings, metadata."""

from __future__ import annotations

import contextlib
import math
import socket
import threading
from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from unittest import mock

import importlib_metadata
from torch.distributed.elastic.rendezvous.utils import _parse_rendezvous_config

from rdzv import RendezvousParameters, plugins
from rdzv.endpoint import matches_machine, names_secret, parse_rendezvous_endpoint, redact
from rdzv.errors import PluginError
from rdzv.registry import check_parameters
from rdzv.specs import ENGINE_PARAMETERS
from rdzv_c10d.plugin import rdzv_backend, rdzv_handler
from rdzv_c10d.static import create_rdzv_handler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fuzz.source import Source

__all__ = ["endpoint", "metadata", "secrets_hidden", "settings"]

SECRET = "hunter2hunter2"
"""Stands in texts where a secret does, and nowhere else."""

_PORT = 29400
_PARTS = (
    *("[", "]", ":", "::", "::1", "fe80::1", "%eth0", "host", "a.b-c", "1.2.3.4", "0", "29400"),
    *("65535", "65536", "99999", "-1", "@", "/", "://", "user:word@", " ", "\t", ",", "x" * 300),
    *("http://", "\u0663", "\uff11", "\x00", "[::1]:1", "localhost", ".", "..", "_", "\ud800"),
)


def _written(source: Source, parts: tuple[str, ...], most: int) -> str:
    return "".join(
        source.pick(parts) if source.number(0, 5) else source.text(4) for _ in source.times(most)
    )


def endpoint(source: Source) -> None:
    """Any text is a host and a port that can be written down again, or a ValueError."""
    text = _written(source, _PARTS, 5)
    matches_machine_answers(text)
    names_secret(text)
    try:
        host, port = parse_rendezvous_endpoint(text, _PORT)
    except ValueError as exc:
        assert "endpoint" in str(exc)
        assert "write" in str(exc)
        return
    assert host
    assert 0 <= port <= 65535
    again = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    assert parse_rendezvous_endpoint(again, _PORT + 1) == (host, port)
    matches_machine_answers(host)


def matches_machine_answers(host: str) -> None:
    """Whether it is this machine's is yes or no; no name service is asked."""
    real = socket.getaddrinfo

    def numeric(name: Any, port: Any, **kwargs: Any) -> Any:
        return real(name, port, **kwargs, flags=socket.AI_NUMERICHOST)

    with mock.patch.object(socket, "getaddrinfo", numeric):
        assert matches_machine(host) in (True, False)


_SCHEMES = ("redis://", "etcd+grpc://", "//", "")
_AROUND = ("", "x", "@", "/", ",", ":", "%", "!", "#", "?", "=", ".", "-", "\u00e9", "$&")
_NAMES = ("password", "redis_password", "ssl-key", "token", "API.key", "Secret", "db_PW")
_TEXT = ("see ", "host:1 ", "a=b,", "'", "(", "<", "=", " ", "", "redis://other:1,", "key ")


def secrets_hidden(source: Source) -> None:
    """A secret that stands where secrets do is not in what is shown."""
    before, after = source.pick(_TEXT), source.pick(("", " there", "?x=y", "/0", ",host2:1"))
    if source.flag():
        name, end = source.pick(_NAMES), source.pick(("", "&a=b", ";", ", x", "'", ")", " x"))
        assert names_secret(name)
        text = f"{before}{source.pick(('', '?', '&', ' '))}{name}={SECRET}{end}"
    else:
        word = source.pick(_AROUND) + SECRET + source.pick(_AROUND)
        user = source.pick(("user", "", "a.b", "u%40v", "\u00fc"))
        text = f"{before}{source.pick(_SCHEMES)}{user}:{word}@host:6379{after}"
        _not_in_errors(text)
    shown = redact(text)
    assert SECRET not in shown, f"{text!r} is shown as {shown!r}"
    assert redact(shown).count("***") >= 1


def _not_in_errors(text: str) -> None:
    try:
        parse_rendezvous_endpoint(text, _PORT)
    except ValueError as exc:
        assert SECRET not in str(exc), f"{text!r}: {exc}"
    params = RendezvousParameters("c10d", text, "run", 1, 1, password=SECRET, url=text)
    assert SECRET not in repr(params)


_KEYS = (
    *(parameter.name for parameter in ENGINE_PARAMETERS),
    *("heartbeat", "timeout", "store_type", "is_host", "read_timeout", "rank", "password", "x"),
    *("join_timout", "", " ", "backend.name", "join_timeout "),
)
_VALUES = (
    *("1", "0", "-1", "0.5", "30", "30s", "1e300", "1e9", "1e10", "inf", "nan", "-0", "1_000"),
    *("\u0663", "\uff11", "true", "False", " yes ", "T", "tcp", "file", "FILE", "1" * 5000, "\x00"),
    *("=", ",", "a=b", "1,2", "'", '"', "\ud800", "0x10", "1e-400", "", " "),
)
_OBJECTS: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 3, 2**63, 10**400, 0.5, -0.0, 1e300, math.inf, math.nan),
    *(timedelta(seconds=3), timedelta.max, timedelta(-1), Decimal("NaN"), Decimal("sNaN")),
    *(Decimal("1e999"), 1j, b"1", [], {}, (), "3", object, "nan"),
)


def settings(source: Source) -> None:
    """Any settings are read as what they say, or a ValueError that names the setting."""
    text = ",".join(
        source.pick(_KEYS) + source.pick(("=", "=", "=", "", "==")) + _value(source)
        for _ in source.times(4)
    )
    try:
        config: dict[str, Any] = dict(_parse_rendezvous_config(text))
    except ValueError:
        return
    for _ in source.times(2):
        config[source.pick(_KEYS)] = source.pick(_OBJECTS)
    numbers = [source.pick((1, 1, 2, 0, -1, True, "1", 1.0, None, 2**63)) for _ in range(2)]
    where = source.pick(("", "host:1", "host", "h:99999", None, 7))
    with contextlib.suppress(ValueError):
        params = RendezvousParameters("static", where, "run", *numbers, **config)  # type: ignore[arg-type]
        repr(params)
        for key in config:
            _read_as_all_types(params, key)
        for spec in (rdzv_backend("c10d"), rdzv_handler("static")):
            assert spec is not None
            with contextlib.suppress(ValueError):
                check_parameters(spec, params)
        create_rdzv_handler(params)


def _value(source: Source) -> str:
    return source.pick(_VALUES) if source.number(0, 3) else source.text(6)


def _read_as_all_types(params: RendezvousParameters, key: str) -> None:
    reads: dict[Any, Callable[[str], Any]] = {
        bool: params.get_as_bool,
        int: params.get_as_int,
        float: params.get_as_float,
        "seconds": params.get_as_seconds,
    }
    for kind, read in reads.items():
        try:
            value = read(key)
        except ValueError as exc:
            assert repr(key) in str(exc) or f"'{key}'" in str(exc)
            continue
        if value is None:
            assert params.get(key) is None
            continue
        if kind == "seconds":
            assert value >= 0
            # What every user of it does: a wait, and a timedelta.
            assert timedelta(seconds=value) >= timedelta(0)
            assert value <= threading.TIMEOUT_MAX
        else:
            assert type(value) is kind
        written = RendezvousParameters("static", "", "run", 1, 1, again=str(value))
        assert getattr(written, read.__name__)("again") == value


class _Distribution(importlib_metadata.Distribution):
    """Metadata of a distribution as a stranger wrote it."""

    def __init__(self, files: dict[str, str | None]) -> None:
        self._files = files

    def read_text(self, filename: Any) -> str | None:
        return self._files.get(str(filename))

    def locate_file(self, path: Any) -> Any:
        raise FileNotFoundError(path)


_ENTRY = (
    *("[rdzv.backends]\n", "[rdzv.extensions]\n", "[", "]", "\n", "=", " = ", "name", "name"),
    *("fuzz_no_such_module", "fuzz_no_such_module:object.part", ":", "..x", "x:", "a b", "\x00"),
    *("\ud800", "[extra]", ";", "#", "name = fuzz_no_such_module\n"),
)
_META = (
    *("Name: dist\n", "Name: other\n", "Name: \n", "Version: 1.0\n", "Version: x\n", "\n", ":"),
    *(
        "Summary: text\n",
        "Requires-Dist: rdzv>=99\n",
        "Requires-Dist: rdzv\n",
        "Requires-Dist: (\n",
    ),
    *("Requires-Dist: rdzv; extra == 'x'\n", "Requires-Dist: rdzv ; python_version ~= 'a'\n"),
    *("Requires-Dist: rdzv; os_name > 'a' and platform_release >= '1'\n", "\ud800", "\x00"),
    *(
        "Requires-Dist: rdzv @ file:///x\n",
        "Requires-Dist: rdzv===x\n",
        "Requires-Dist: rdzv; '1' ~= '2'\n",
    ),
)


def metadata(source: Source) -> None:
    """Whatever distributions say of themselves, listing works and choosing is a plugin error."""
    found = [
        _Distribution(
            {
                "entry_points.txt": source.pick(
                    ("[rdzv.backends]\nname = fuzz_no_such_module\n", "[rdzv.backends]\n", "")
                )
                + _written(source, _ENTRY, 6),
                "METADATA": source.pick(("Name: dist\n", "")) + _written(source, _META, 6),
            }
        )
        for _ in source.times(3)
    ]
    with _installed(found):
        names = [one.name for one in plugins.installed()]
        assert names == sorted(names)
        for name in [*names, "name", "absent"]:
            try:
                plugins.load(name)
            except PluginError as exc:
                assert str(exc)
            else:
                raise AssertionError(f"there is no such plugin, and it was loaded: {name!r}")


@contextlib.contextmanager
def _installed(found: list[_Distribution]) -> Iterator[None]:
    with (
        mock.patch.object(importlib_metadata, "distributions", lambda: iter(found)),  # noqa: PT008
        mock.patch.object(plugins, "_loaded", {}),
    ):
        yield
