"""The commands and their arguments. What they need is imported when they run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

__all__ = ["app"]

app = typer.Typer(
    help="Rendezvous of elastic PyTorch jobs.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)


def _missing(exc: ModuleNotFoundError) -> Exception:
    """Say what to install, where it is a package of the extras that is missing."""
    if str(exc.name).partition(".")[0] not in ("greenlet", "hypothesis", "pytest", "rich"):
        return exc
    typer.echo('This needs more packages: pip install "rdzv[testing,cli]"', err=True)
    return typer.Exit(2)


@app.callback()
def rdzv() -> None:
    """Rendezvous of elastic PyTorch jobs."""


@app.command()
def backends(
    name: Annotated[
        Optional[str],  # noqa: UP045 - as below
        typer.Argument(help="Instead of all: what one of them offers; imports it."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Say it as JSON.")] = False,
) -> None:
    """List the installed backends, or tell what one of them offers, promises and takes.

    Exit code 0: all is well; 1: something is wrong with one of them; 2: there is no such one.
    """
    from .backends import describe, show

    raise typer.Exit(show(as_json=as_json) if name is None else describe(name, as_json=as_json))


@app.command()
def conformance(
    backend: Annotated[str, typer.Argument(help="The name of an installed backend.")],
    endpoint: Annotated[str, typer.Option(help="Where its server is; as for a job.")],
    conf: Annotated[
        Optional[list[str]],  # noqa: UP045 - typer evaluates it, on Python 3.10 too
        typer.Option(help="Settings of the backend, k=v,...; may be given again."),
    ] = None,
    report: Annotated[
        Optional[Path],  # noqa: UP045 - as above
        typer.Option(help="Write the report here, as JSON."),
    ] = None,
    only: Annotated[
        Optional[list[str]],  # noqa: UP045 - as above
        typer.Option(help="A group of the contract, such as 'state'; may be given again."),
    ] = None,
    title: Annotated[str, typer.Option(help="What the report calls the backend.")] = "",
    limit: Annotated[
        float, typer.Option(help="Seconds after which what has to happen will not happen.", min=1)
    ] = 30.0,
    interval: Annotated[
        float, typer.Option(help="Seconds between the beats of nodes that are to die.", min=0.05)
    ] = 0.2,
) -> None:
    """Check a backend against a live server, and say which promises it keeps.

    Exit code 0: all that could be checked hold; 1: some are broken; 2: nothing could be checked.
    """
    try:
        from .conformance import Usage, run
    except ModuleNotFoundError as exc:
        raise _missing(exc) from exc
    try:
        code = run(backend, endpoint, conf or [], report, only or [], title, limit, interval)
    except Usage as exc:
        typer.echo(str(exc), err=True)
        raise typer.Exit(2) from None
    raise typer.Exit(code)


@app.command()
def simulate(
    seeds: Annotated[
        Optional[int],  # noqa: UP045 - as above
        typer.Option(help="How many seeds, from --from on.", min=1),
    ] = None,
    first: Annotated[int, typer.Option("--from", help="The first seed.", min=0)] = 0,
    last: Annotated[
        Optional[int],  # noqa: UP045 - as above
        typer.Option("--to", help="The last seed, instead of --seeds.", min=0),
    ] = None,
    jobs: Annotated[int, typer.Option(help="How many processes.", min=1)] = 1,
    results: Annotated[
        Optional[Path],  # noqa: UP045 - as above
        typer.Option(help="Append what was seen to this file (JSON lines)."),
    ] = None,
    scenario: Annotated[
        Optional[Path],  # noqa: UP045 - as above
        typer.Option(help="Instead: one scenario from a JSON file, with its history."),
    ] = None,
) -> None:
    """Simulate runs with faults, a random one for each seed, and check the protocol's promises.

    Exit code 0: all held; 1: one was broken; 2: nothing could be simulated.
    """
    try:
        from .simulate import Usage, run_range, run_scenario
    except ModuleNotFoundError as exc:
        raise _missing(exc) from exc
    try:
        if scenario is not None:
            code = run_scenario(scenario)
        else:
            end = first + (seeds or 100) - 1 if last is None else last
            code = run_range(first, end, jobs, results)
    except Usage as exc:
        typer.echo(str(exc), err=True)
        raise typer.Exit(2) from None
    raise typer.Exit(code)
