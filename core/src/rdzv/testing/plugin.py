"""What the kit adds to pytest: a limit for each contract test, honest outcomes, and the report.

It is loaded by its entry point wherever pytest runs, and does nothing to tests that
are not of the contract.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator

    from rdzv.specs import BackendSpec
    from rdzv.testing.contract import Deployment
    from rdzv.testing.report import Outcome, Report

__all__ = ["reports"]

_KEY = "rdzv_contract"
_LIMITS = 4
"""A contract test may take this many times the deployment's limit."""

_SEEN = pytest.StashKey[dict[str, dict[str, Any]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--rdzv-report``."""
    parser.getgroup("rdzv").addoption(
        "--rdzv-report",
        metavar="FOLDER",
        help="Write what the conformance kit found, a file for each backend, into this folder.",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Gather what the contract tests of this session say."""
    config.pluginmanager.register(_Gatherer(config), "rdzv-gatherer")


def reports(config: pytest.Config) -> list[Report]:
    """The reports on all contract classes that have run so far in this session."""
    from rdzv import __version__
    from rdzv.testing.contract import BackendContract
    from rdzv.testing.report import Report

    order = [promise.id for promise in BackendContract.promises().values()]

    return [
        Report(
            title=seen["title"],
            backend=seen["backend"],
            summary=seen["summary"],
            capabilities=tuple(seen["capabilities"]),
            rdzv=__version__,
            results=tuple(seen["results"][each] for each in order if each in seen["results"]),
        )
        for seen in config.stash[_SEEN].values()
    ]


# ---------------------------------------------------------------- collecting


def _contract(cls: object) -> Any:
    """The class as a contract, if it is one; its module is loaded only where one is."""
    base = sys.modules.get("rdzv.testing.contract.base")
    return cls if base and isinstance(cls, type) and issubclass(cls, base.Contract) else None


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(collector: pytest.Collector, name: str, obj: object) -> None:
    """Look once more for contract tests that were overridden after the class was made."""
    del collector, name
    contract = _contract(obj)
    if contract is not None:
        from rdzv.testing.contract.base import protect

        protect(contract)


# ---------------------------------------------------------------- running


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a contract test where it can be left behind: a wrong backend may hang."""
    deployment: Any = pyfuncitem.funcargs.get("deployment")
    if _contract(pyfuncitem.cls) is None or deployment is None:
        return None
    from rdzv.testing.contract.harness import background, finished

    _ = deployment.spec  # Where there is no such backend, this is how the test fails.
    names = pyfuncitem._fixtureinfo.argnames  # noqa: SLF001 - as pytest's own implementation
    arguments = {name: pyfuncitem.funcargs[name] for name in names}
    test = background(lambda: pyfuncitem.obj(**arguments))
    finished(test, _LIMITS * deployment.limit, "The test")
    return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note what a contract test says, in a form that goes through pytest-xdist."""
    report = yield
    contract = _contract(getattr(item, "cls", None))
    if contract is None or not isinstance(item, pytest.Function):
        return report
    promise = contract.promises().get(item.originalname)
    if promise is None:
        return report
    from rdzv.testing.contract import NotOfferedError

    deployment = _deployment(item)
    spec = _spec(deployment) if deployment else None
    error = call.excinfo.value if call.excinfo else None
    report.user_properties.append(
        (
            _KEY,
            {
                "class": item.nodeid.rpartition("::")[0],
                "title": deployment.name if deployment else contract.__name__,
                "backend": spec.name if spec else "",
                "summary": spec.summary if spec else "",
                "capabilities": sorted(spec.capabilities) if spec else [],
                "promise": promise.id,
                "sentence": promise.sentence,
                "offered": not isinstance(error, NotOfferedError),
                "why": _why(error),
            },
        )
    )
    return report


def _deployment(item: pytest.Function) -> Deployment | None:
    """The deployment that the fixture has given, if it has."""
    from rdzv.testing.contract import Deployment

    given = item.funcargs.get("deployment")
    return given if isinstance(given, Deployment) else None


def _spec(deployment: Deployment) -> BackendSpec | None:
    """What the backend says of itself, if it can; why it cannot is how its tests fail."""
    try:
        return deployment.spec
    except Exception:  # noqa: BLE001 - whatever a plugin raises
        return None


def _why(error: BaseException | None) -> str:
    if error is None:
        return ""
    from rdzv.testing.contract.base import BrokenPromiseError

    text = str(error) or type(error).__name__
    plain = isinstance(error, (BrokenPromiseError, pytest.skip.Exception))
    return text if plain else f"{type(error).__name__}: {text}"


def _noted(report: pytest.TestReport) -> dict[str, Any] | None:
    found: Any = dict(report.user_properties).get(_KEY)
    return found if isinstance(found, dict) else None


@pytest.hookimpl(tryfirst=True)
def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, Any] | None:
    """Count what was not checked under its own name: it is no success, and no skipped test."""
    noted = _noted(report) if isinstance(report, pytest.TestReport) else None
    if noted is None or not report.skipped or hasattr(report, "wasxfail"):
        return None
    what = "not checked" if noted["offered"] else "not offered"
    return what, "?" if noted["offered"] else "-", (what.upper(), {"yellow": noted["offered"]})


def _judged(report: pytest.TestReport, noted: dict[str, Any]) -> tuple[Outcome | None, str]:
    from rdzv.testing.report import Outcome

    if hasattr(report, "wasxfail") and report.skipped:
        return Outcome.EXPECTED, str(report.wasxfail).removeprefix("reason: ")
    if report.failed:
        why = noted["why"] or str(report.longrepr)
        return Outcome.BROKEN, why if report.when == "call" else f"in {report.when}: {why}"
    if report.skipped:
        offered = noted["offered"]
        return (Outcome.NOT_CHECKED if offered else Outcome.NOT_OFFERED), noted["why"]
    return (Outcome.HELD, "") if report.when == "call" else (None, "")


class _Gatherer:
    """Keeps what the contract tests of one session have said, and writes it down."""

    def __init__(self, config: pytest.Config) -> None:
        config.stash[_SEEN] = {}
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        noted = _noted(report)
        if noted is None:
            return
        from rdzv.testing.report import Outcome, Result

        outcome, why = _judged(report, noted)
        seen = self._config.stash[_SEEN].setdefault(noted["class"], {"results": {}})
        results = seen["results"]
        if noted["backend"] or "title" not in seen:
            told = ("title", "backend", "summary", "capabilities")
            seen.update({key: noted[key] for key in told})
        before = results.get(noted["promise"])
        if outcome is not None and (before is None or outcome is Outcome.BROKEN):
            results[noted["promise"]] = Result(noted["promise"], noted["sentence"], outcome, why)

    def pytest_sessionfinish(self) -> None:
        folder = self._config.getoption("--rdzv-report")
        if folder is None or hasattr(self._config, "workerinput"):
            return
        for report in reports(self._config):
            path = Path(folder) / f"{_file_name(report.title)}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(report.to_json())


def _file_name(title: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in title.lower()).split())


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say what was not checked, of which class, and why."""
    found: dict[str, dict[str, list[str]]] = {}
    for report in terminalreporter.stats.get("not checked", []):
        noted = _noted(report)
        if noted is not None:
            whys = found.setdefault(noted["class"], {})
            whys.setdefault(noted["why"], []).append(noted["promise"])
    if found:
        terminalreporter.section("promises that were not checked")
    for name, whys in found.items():
        terminalreporter.line(name)
        for why, promises in whys.items():
            terminalreporter.line(f"  {why}\n    {', '.join(dict.fromkeys(promises))}")
