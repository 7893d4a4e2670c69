"""What all groups of the contract share: how a promise is stated, found, and protected."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from .deployment import Deployment
from .harness import Run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["BrokenPromiseError", "Contract", "Promise", "protect", "require"]

_KIT = __name__.rpartition(".")[0]


class BrokenPromiseError(AssertionError):
    """The backend does not do what the contract says; the message says what it did."""


def require(condition: object, why: str) -> None:
    """Break the promise under test, with ``why``, unless the condition holds."""
    if not condition:
        raise BrokenPromiseError(why)


@dataclass(frozen=True)
class Promise:
    """One test of the contract, as the report names it."""

    id: str
    sentence: str

    @property
    def group(self) -> str:
        """The group of the contract that it belongs to."""
        return self.id.partition(".")[0]


class Contract:
    """The base of all groups. A test is a promise: the first line of its docstring says it."""

    group: ClassVar[str] = ""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        protect(cls)

    @classmethod
    def promises(cls) -> dict[str, Promise]:
        """The promises by the names of their tests, in the order of the groups."""
        found: dict[str, Promise] = {}
        for base in cls.__mro__:
            if not (issubclass(base, Contract) and _is_kit(base)):
                continue
            for name, test in vars(base).items():
                if name.startswith("test_"):
                    sentence = (test.__doc__ or "").partition("\n")[0]
                    label = f"{base.group}.{name.removeprefix('test_')}"
                    found.setdefault(name, Promise(label, sentence))
        return found

    @pytest.fixture
    def deployment(self) -> Deployment:
        """Where the backend is; a subclass defines it."""
        raise NotImplementedError(
            "Define a fixture 'deployment' in this class that returns or yields an "
            "rdzv.testing.contract.Deployment."
        )

    @pytest.fixture
    def run(self, deployment: Deployment) -> Iterator[Run]:
        """A run that nothing else uses."""
        if not isinstance(deployment, Deployment):
            raise TypeError(
                f"The fixture 'deployment' gives a {type(deployment).__name__}, no Deployment."
            )
        made = Run(deployment)
        yield made
        made.end()


def _is_kit(cls: type) -> bool:
    return cls.__module__.startswith(f"{_KIT}.") or cls.__module__ == _KIT


def protect(cls: type[Contract]) -> None:
    """Put a failing test in the place of each contract test that a subclass overrides.

    Left alone are those that are marked ``xfail`` with a reason; such a mark
    becomes a strict one, so that a test that passes after all is a failure.
    """
    if _is_kit(cls):
        return
    for name in cls.promises():
        test = getattr(cls, name)
        owner = next(base for base in cls.__mro__ if name in vars(base))
        if _is_kit(owner):
            continue
        reason = _reason(test)
        if reason is None:
            setattr(cls, name, _refusal(owner.__qualname__, name))
        else:
            test.pytestmark = [_strict(mark) for mark in test.pytestmark]


def _reason(test: object) -> str | None:
    for mark in getattr(test, "pytestmark", []):
        conditional = mark.args or "condition" in mark.kwargs
        if mark.name == "xfail" and mark.kwargs.get("reason") and not conditional:
            return str(mark.kwargs["reason"])
    return None


def _strict(mark: pytest.Mark) -> pytest.Mark:
    if mark.name != "xfail":
        return mark
    expected: pytest.Mark = pytest.mark.xfail(**{**mark.kwargs, "strict": True}).mark
    return expected


def _refusal(owner: str, name: str) -> Callable[[Any], None]:
    def refused(_: Any) -> None:
        raise BrokenPromiseError(
            f"{owner} overrides the contract test {name}. A promise that the backend does not "
            "keep is marked: put @pytest.mark.xfail(reason='...') on the override (without a "
            "condition), and have it call super()."
        )

    refused.__name__ = name
    return refused
