"""Finding installed plugins by their metadata, and loading one of them.

Listing imports no plugin. Choosing a name imports the one module behind it and
asks it for its spec. Whatever is wrong with a plugin concerns that plugin alone:
choosing it raises a ``PluginError`` that says what to do, and nothing else does.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import logging
import sys
import threading
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import importlib_metadata
import pluggy
from packaging.markers import Marker, UndefinedComparison, UndefinedEnvironmentName
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from rdzv import API_VERSION, __version__, hookspecs
from rdzv.errors import (
    BrokenPluginError,
    DuplicateBackendError,
    DuplicateRankPolicyError,
    IncompatiblePluginError,
    UnknownBackendError,
    UnknownRankPolicyError,
)
from rdzv.ranks import RankPolicy
from rdzv.specs import BackendSpec, HandlerSpec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = [
    "BACKENDS",
    "EXTENSIONS",
    "OLDEST_API_VERSION",
    "InstalledBackend",
    "extensions",
    "installed",
    "load",
    "load_rank_policy",
    "problems",
]

BACKENDS = "rdzv.backends"
"""The entry-point group of the backends."""

EXTENSIONS = "rdzv.extensions"
"""The entry-point group of the extensions."""

OLDEST_API_VERSION = 1
"""The oldest plugin API whose plugins this core runs; the newest is ``rdzv.API_VERSION``."""

# For the advice given with an unknown name, and for nothing else. Only what this
# project has released: a name that is still free is nothing to recommend.
_OURS = {
    "c10d": "rdzv-c10d",
    "etcd": "rdzv-etcd",
    "etcd-legacy": "rdzv-etcd",
    "etcd-v2": "rdzv-etcd",
    "redis": "rdzv-redis",
    "static": "rdzv-c10d",
}

_CORE = "rdzv"

log = logging.getLogger(__name__)


@dataclass(frozen=True, order=True)
class InstalledBackend:
    """A name that an installed distribution offers, as its metadata has it.

    Attributes:
        name: The name to choose it by.
        module: What the entry point leads to, ``module`` or ``module:object``.
        distribution: The name of the distribution.
        version: Its version.
        summary: Its one-line description; empty where it gives none.
    """

    name: str
    module: str
    distribution: str
    version: str
    summary: str

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}"


@dataclass(frozen=True)
class _Found:
    """An entry, and what its distribution asks of others."""

    entry: InstalledBackend
    requires: tuple[str, ...]


def installed() -> list[InstalledBackend]:
    """List the backends of the installed distributions, sorted by name.

    No plugin is imported. A name that two distributions offer is listed twice.
    """
    return sorted(found.entry for found in _find(BACKENDS))


def problems() -> list[tuple[InstalledBackend, str]]:
    """List the installed backends, and what is wrong with each; an empty text where nothing is.

    No plugin is imported, so that what only its import would show is not found.
    """
    every = _find(BACKENDS)
    offers = Counter(found.entry.name for found in every)
    return sorted((found.entry, _problem(found, offers)) for found in every)


def _problem(found: _Found, offers: Counter[str]) -> str:
    entry = found.entry
    if offers[entry.name] > 1:
        return "offered by another distribution too: uninstall all but one"
    try:
        _check_core_range(found)
    except IncompatiblePluginError as error:
        return str(error)
    module = entry.module.partition(":")[0]
    if not _is_there(module):
        return f"its module {module} is missing: pip install --force-reinstall {entry.distribution}"
    return ""


def _is_there(module: str) -> bool:
    """Whether a module can be found, as far as this can be told without importing its package."""
    package, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return False
    if spec is None:
        return False
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    if not rest or not any(folder.is_dir() for folder in folders):
        return True  # In a zip file, say: nobody knows.
    places = [folder.joinpath(*rest) for folder in folders]
    return any(place.is_dir() or any(place.parent.glob(f"{place.name}.*")) for place in places)


_loaded: dict[str, BackendSpec | HandlerSpec] = {}
_loaded_lock = threading.Lock()


def load(name: str) -> BackendSpec | HandlerSpec:
    """Import the plugin that offers ``name`` and return what it says about it.

    Args:
        name: The name of a backend.

    Returns:
        The spec, the same object at every call.

    Raises:
        UnknownBackendError: No installed distribution offers it.
        DuplicateBackendError: More than one distribution offers it.
        IncompatiblePluginError: It was made for other versions of the core.
        BrokenPluginError: It cannot be imported, or answers something else than
            a spec of this name.
    """
    with _loaded_lock:
        if name in _loaded:
            return _loaded[name]
    # Not under the lock: importing takes Python's import locks, and a plugin may
    # itself call back. Two threads at once both ask; the first answer stays.
    spec = _ask(_choose(name))
    with _loaded_lock:
        return _loaded.setdefault(name, spec)


_extensions: pluggy.PluginManager | None = None
_extensions_lock = threading.RLock()


def extensions() -> pluggy.PluginManager:
    """Return the manager of the installed extensions, loading them at the first call.

    An extension that cannot be loaded is logged and left out.
    """
    global _extensions  # noqa: PLW0603 - once a process, under its lock
    with _extensions_lock:
        if _extensions is None:
            # Kept before anything is imported: an extension that asks in its turn
            # gets those loaded so far rather than an endless recursion.
            _extensions = _new_manager()
            for found in _find(EXTENSIONS):
                _add_extension(_extensions, found)
        return _extensions


def _add_extension(manager: pluggy.PluginManager, found: _Found) -> None:
    entry = found.entry
    try:
        _check_core_range(found)
        plugin = _import(entry)
        _check_api(entry, plugin)
        # Tried on a manager of its own first: a bad one cannot be taken back
        # out of a manager half way through its registration.
        _manager_with(plugin)
        name = f"{entry.distribution}:{entry.name}"
        if not manager.is_registered(plugin):
            manager.register(plugin, name=name)
    except Exception as error:  # whatever a stranger's code raises must cost no job
        log.warning("The rdzv extension '%s' of %s is left out: %s", entry.name, entry, error)
        log.debug("Its traceback:", exc_info=True)


def load_rank_policy(name: str, built_in: Iterable[str] = ()) -> RankPolicy:
    """Return the rank policy ``name`` of the installed extensions.

    An extension that cannot be asked, or answers something else than policies, is
    logged and left out.

    Args:
        name: The policy's name.
        built_in: Names that need no extension, for the error.

    Raises:
        UnknownRankPolicyError: No extension offers it.
        DuplicateRankPolicyError: More than one extension offers it.
    """
    offers: list[tuple[str, RankPolicy]] = []
    for implementation in extensions().hook.rdzv_rank_policies.get_hookimpls():
        who = implementation.plugin_name
        try:
            answer: Any = implementation.function()
            policies = list(answer)
            wrong = next((each for each in policies if not isinstance(each, RankPolicy)), None)
            if wrong is not None:
                raise TypeError(f"a {type(wrong).__name__} where a RankPolicy is wanted")
        except (Exception, SystemExit) as error:  # a stranger's code may raise anything
            log.warning("The rank policies of the rdzv extension '%s' are left out: %s: %s",
                        who, type(error).__name__, error)  # fmt: skip
            log.debug("Its traceback:", exc_info=True)
        else:
            offers += [(who, policy) for policy in policies]
    found = [(who, policy) for who, policy in offers if policy.name == name]
    if len(found) > 1:
        raise DuplicateRankPolicyError(
            f"The rank policy '{name}' is offered by {' and '.join(who for who, _ in found)} "
            "(distribution:extension). The nodes of a job could choose different ones, so none "
            "is chosen: uninstall all but one."
        )
    if not found:
        known = sorted({*built_in, *(policy.name for _, policy in offers)})
        near = difflib.get_close_matches(name, known, n=1)
        raise UnknownRankPolicyError(
            f"There is no rank policy {name!r} on this node (known: {', '.join(known)})."
            + (f" Did you mean '{near[0]}'?" if near else "")
            + " Install the distribution that offers it on every node of the run (one with an "
            f"entry point of the group {EXTENSIONS}), or choose another rank_policy. An extension "
            "that is installed and could not be loaded is named in the log."
        )
    return found[0][1]


def _find(group: str) -> list[_Found]:
    """Return the entries of a group, by the metadata on ``sys.path``."""
    seen: set[tuple[str, str]] = set()
    result: list[_Found] = []
    for distribution in importlib_metadata.distributions():
        for found in _entries(distribution, group):
            # The same distribution may stand on the path twice; the first is the
            # one that Python imports. Entries are told apart by their name.
            key = (canonicalize_name(found.entry.distribution), found.entry.name)
            if key not in seen:
                seen.add(key)
                result.append(found)
    return result


def _entries(distribution: Any, group: str) -> Iterator[_Found]:
    try:
        # Reading this one file for every distribution is quick; parsing it, and
        # the metadata beside it, is worth it only where the group occurs.
        text = distribution.read_text("entry_points.txt") or ""
        if group not in text:
            return
        entries = list(distribution.entry_points.select(group=group))
        metadata = distribution.metadata
        name, version, summary = (metadata.get(field) for field in ("Name", "Version", "Summary"))
        requires = tuple(distribution.requires or ())
    except Exception:  # any file of any distribution may be damaged in any way
        log.debug("The metadata of a distribution cannot be read", exc_info=True)
        return
    for entry in entries:
        yield _Found(
            InstalledBackend(
                name=entry.name,
                module=entry.value,
                distribution=name or "(a distribution without a name)",
                version=version or "(no version)",
                summary=summary or "",
            ),
            requires,
        )


def _choose(name: str) -> _Found:
    every = _find(BACKENDS)
    offers = [found for found in every if found.entry.name == name]
    if not offers:
        raise _unknown(name, sorted({found.entry.name for found in every}))
    if len(offers) > 1:
        who = " and ".join(str(entry) for entry in sorted(found.entry for found in offers))
        raise DuplicateBackendError(
            f"The rendezvous backend '{name}' is offered by {who}. The nodes of a job could "
            "choose different ones, so none is chosen: uninstall all but one."
        )
    return offers[0]


def _unknown(name: str, names: list[str]) -> UnknownBackendError:
    parts = [f"There is no rendezvous backend '{name}' installed"]
    parts.append(f" (installed: {', '.join(names)})." if names else "; no backend is.")
    near = difflib.get_close_matches(name.lower(), {*names, *_OURS}, n=1)
    wanted = name if name in _OURS else near[0] if near else None
    if wanted is not None and wanted != name:
        parts.append(f" Did you mean '{wanted}'?")
    if wanted in _OURS and wanted not in names:
        parts.append(f" It comes with: pip install {_OURS[wanted]}")
    elif wanted is None:
        parts.append(" Install the plugin that offers it, or choose another backend.")
    return UnknownBackendError("".join(parts))


def _check_core_range(found: _Found) -> None:
    entry = found.entry
    for text in found.requires:
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            log.debug("%s requires %r, which cannot be read", entry, text)
            continue
        if canonicalize_name(requirement.name) != _CORE:
            continue
        # Requirements of an extra were not asked for, as far as anybody can tell.
        if not _applies(requirement.marker):
            continue
        if not requirement.specifier.contains(Version(__version__), prereleases=True):
            raise IncompatiblePluginError(
                f"The plugin '{entry.name}' of {entry} is made for {_CORE} "
                f"{requirement.specifier}, and {_CORE} {__version__} is running. Install versions "
                f"that fit each other: pip install --upgrade {entry.distribution} {_CORE}"
            )


def _applies(marker: Marker | None) -> bool:
    try:
        return marker is None or marker.evaluate({"extra": ""})
    except (UndefinedComparison, UndefinedEnvironmentName, InvalidVersion):
        return False  # It compares what cannot be compared: nobody knows what it asks for.


def _import(entry: InstalledBackend) -> object:
    module, _, attribute = entry.module.partition(":")
    try:
        plugin: object = importlib.import_module(module)
        for part in attribute.split(".") if attribute else ():
            plugin = getattr(plugin, part)
        return plugin
    except ModuleNotFoundError as error:
        raise BrokenPluginError(
            f"The plugin '{entry.name}' of {entry} cannot be imported: "
            + _explain_missing(entry, module, error)
        ) from error
    # A plugin's module may raise anything, and may even try to end the process.
    except (Exception, SystemExit) as error:
        raise BrokenPluginError(
            f"The plugin '{entry.name}' of {entry} cannot be imported: "
            f"{type(error).__name__}: {error}. Install another version of it "
            f"(pip install --upgrade {entry.distribution}) or tell its authors."
        ) from error


def _check_api(entry: InstalledBackend, plugin: object) -> None:
    """Refuse a plugin that says by ``rdzv_api`` that it is made for another plugin API."""
    # An entry may lead to an object in a module; either may say it.
    module = sys.modules.get(entry.module.partition(":")[0])
    made_for = getattr(plugin, "rdzv_api", getattr(module, "rdzv_api", 1))
    if not isinstance(made_for, int) or isinstance(made_for, bool) or made_for < 1:
        raise BrokenPluginError(
            f"The plugin '{entry.name}' of {entry} gives rdzv_api = {made_for!r}, which is no "
            "version of the plugin API. Its authors should give a whole number from 1 on."
        )
    if OLDEST_API_VERSION <= made_for <= API_VERSION:
        return
    runs = (
        f"version {API_VERSION}"
        if OLDEST_API_VERSION == API_VERSION
        else f"versions {OLDEST_API_VERSION} to {API_VERSION}"
    )
    old = _CORE if made_for > API_VERSION else entry.distribution
    raise IncompatiblePluginError(
        f"The plugin '{entry.name}' of {entry} is made for version {made_for} of rdzv's plugin "
        f"API, and {_CORE} {__version__} runs plugins of {runs}. Install a newer {old}: pip "
        f"install --upgrade {old}"
    )


def _explain_missing(entry: InstalledBackend, module: str, error: ModuleNotFoundError) -> str:
    missing = error.name or ""
    package = module.partition(".")[0]
    if missing and (missing == package or missing.startswith(f"{package}.")):
        return (
            f"its own module '{missing}' is missing, so its installation is damaged. Repair it: "
            f"pip install --force-reinstall --no-deps {entry.distribution}"
        )
    return (
        f"{error}, which {entry.distribution} needs and which is not installed here. Install what "
        f"it needs: pip install --upgrade {entry.distribution}"
    )


def _new_manager() -> pluggy.PluginManager:
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    return manager


def _manager_with(plugin: object) -> pluggy.PluginManager:
    manager = _new_manager()
    manager.register(plugin)
    manager.check_pending()
    return manager


def _ask(found: _Found) -> BackendSpec | HandlerSpec:
    _check_core_range(found)
    entry = found.entry
    plugin = _import(entry)
    _check_api(entry, plugin)
    try:
        hook = _manager_with(plugin).hook
        spec: object = hook.rdzv_backend(name=entry.name)
        if spec is None:
            spec = hook.rdzv_handler(name=entry.name)
    except Exception as error:  # a plugin's hook may raise anything
        raise BrokenPluginError(
            f"The plugin '{entry.name}' of {entry} failed when it was asked for the backend: "
            f"{type(error).__name__}: {error}. Install another version of it "
            f"(pip install --upgrade {entry.distribution}) or tell its authors."
        ) from error
    if spec is None:
        raise BrokenPluginError(
            f"{entry} lists the rendezvous backend '{entry.name}' in its metadata, but neither "
            f"rdzv_backend nor rdzv_handler of '{entry.module}' knows it. Its authors should make "
            "one of them return a spec, marked with @rdzv.hookimpl."
        )
    if not isinstance(spec, (BackendSpec, HandlerSpec)):
        raise BrokenPluginError(
            f"The plugin '{entry.name}' of {entry} returned a {type(spec).__name__} where a "
            "BackendSpec or a HandlerSpec is wanted. Its authors should correct that."
        )
    if spec.name != entry.name:
        raise BrokenPluginError(
            f"The plugin '{entry.name}' of {entry} returned the spec of '{spec.name}'. Its "
            "authors should return one with the name asked for, for an alias too."
        )
    return spec
