"""From the name of a backend to a handler: what a launcher calls."""

from __future__ import annotations

import difflib

from rdzv.api import (
    RendezvousHandler,
    RendezvousHandlerRegistry,
    RendezvousParameters,
    rendezvous_handler_registry,
)
from rdzv.endpoint import names_secret
from rdzv.specs import ENGINE_PARAMETERS, BackendSpec, HandlerSpec, Parameter

__all__ = [
    "RendezvousHandlerRegistry",
    "check_parameters",
    "create_from_plugin",
    "get_rendezvous_handler",
    "rendezvous_handler_registry",
]

# torchrun adds this one to the settings of every backend.
_ALWAYS_ACCEPTED = frozenset({"timeout"})


def get_rendezvous_handler(params: RendezvousParameters) -> RendezvousHandler:
    """Make the handler of the backend that ``params`` names.

    A backend that was registered by hand in ``rendezvous_handler_registry`` comes
    first, then the installed plugins.

    Args:
        params: The backend, the endpoint, the run and the settings.

    Returns:
        A handler whose ``get_backend()`` is ``params.backend``.

    Raises:
        PluginError: The backend is not installed, or its plugin is broken. It is
            a ``ValueError`` as well.
        ValueError: A setting or the endpoint is wrong.
        RendezvousError: The backend cannot be used now, such as a
            ``RendezvousConnectionError``.
        RuntimeError: The plugin made a handler that calls itself by another name.
    """
    return rendezvous_handler_registry.create_handler(params)


def create_from_plugin(params: RendezvousParameters) -> RendezvousHandler:
    """Make a handler with the installed plugin that ``params`` names.

    Raises:
        PluginError: The backend is not installed, or its plugin is broken.
        ValueError: A setting or the endpoint is wrong.
        RendezvousError: The backend cannot be used now.
    """
    # Imported here so that a program without plugins does not load pluggy.
    from rdzv.plugins import load

    spec = load(params.backend)
    check_parameters(spec, params)
    if isinstance(spec, HandlerSpec):
        return spec.create(params)

    from rdzv.dynamic_rendezvous import create_handler
    from rdzv.dynamic_rendezvous.ranking import Ranking

    Ranking.of(params)  # What is wrong there is told before anything is connected.
    backend, store = spec.create(params)
    return create_handler(store, backend, params)


def check_parameters(spec: BackendSpec | HandlerSpec, params: RendezvousParameters) -> None:
    """Check the settings in ``params`` against those that the backend declares.

    A setting that is ``None`` counts as not given. ``timeout`` is always
    accepted, since torchrun adds it to every backend's settings.

    Raises:
        ValueError: A setting is unknown, given under two of its names, or its
            value is of the wrong type or unit.
    """
    declared = spec.parameters
    if isinstance(spec, BackendSpec):
        declared += ENGINE_PARAMETERS
    by_name = {name: one for one in declared for name in (one.name, *one.aliases)}
    given: dict[str, str] = {}
    for key, value in params.config.items():
        parameter = by_name.get(key)
        if parameter is None:
            if key not in _ALWAYS_ACCEPTED:
                raise _unknown(key, spec.name, sorted({*by_name, *_ALWAYS_ACCEPTED}))
        elif value is not None:
            other = given.setdefault(parameter.name, key)
            if other != key:
                raise ValueError(
                    f"The rendezvous settings '{other}' and '{key}' of the backend "
                    f"'{params.backend}' are the same one; give only one of them."
                )
            _check_value(parameter, key, params)


def _unknown(key: str, backend: str, known: list[str]) -> ValueError:
    near = difflib.get_close_matches(key, known, n=1)
    return ValueError(
        f"The rendezvous backend '{backend}' has no setting '{key}'."
        + (f" Did you mean '{near[0]}'?" if near else "")
        + f" It has: {', '.join(known)}."
    )


def _check_value(parameter: Parameter, key: str, params: RendezvousParameters) -> None:
    try:
        if parameter.type == "bool":
            params.get_as_bool(key)
        elif parameter.type == "int":
            params.get_as_int(key)
        elif parameter.type == "float":
            params.get_as_float(key)
        elif parameter.type == "seconds":
            params.get_as_seconds(key)
        else:
            _check_text(parameter, key, params)
    except ValueError:
        if not parameter.secret or names_secret(key):
            raise
        # The name does not tell that it is a secret, so the value stands in there.
        raise ValueError(
            f"The rendezvous setting '{key}' of the backend '{params.backend}' must be of the "
            f"type '{parameter.type}'."
        ) from None


def _check_text(parameter: Parameter, key: str, params: RendezvousParameters) -> None:
    value = params.get(key)
    wanted = f"one of {', '.join(parameter.choices)}" if parameter.choices else "a text"
    accepted = isinstance(value, str) and (
        not parameter.choices or value.strip().lower() in parameter.choices
    )
    if not accepted:
        shown = "'***'" if names_secret(key) else repr(value)
        raise ValueError(
            f"The rendezvous setting '{key}' of the backend '{params.backend}' is {shown}; it "
            f"must be {wanted}."
        )
