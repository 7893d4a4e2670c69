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
def doctor(
    backend: Annotated[str, typer.Option(help="The name of the backend.")],
    endpoint: Annotated[str, typer.Option(help="Where it is; as for a job.")] = "",
    conf: Annotated[
        Optional[list[str]],  # noqa: UP045 - as above
        typer.Option(help="Settings of the backend, k=v,...; may be given again."),
    ] = None,
    run_id: Annotated[
        str, typer.Option(help="The run, which is not touched; --peer needs it.")
    ] = "",
    local_addr: Annotated[
        str, typer.Option(help="The address that the others are to reach this node by.")
    ] = "",
    peer: Annotated[
        bool, typer.Option("--peer", help="Meet the doctor of another node, run at the same time.")
    ] = False,
    host: Annotated[
        bool,
        typer.Option("--host", help="If this node hosts the store and nobody does yet, do so now."),
    ] = False,
    port: Annotated[
        int,
        typer.Option(help="Where this node is to be reached; 0: a free port.", min=0, max=65535),
    ] = 0,
    limit: Annotated[float, typer.Option(help="Seconds that one step may take.", min=0.1)] = 5.0,
    wait: Annotated[float, typer.Option(help="Seconds to wait for --peer.", min=0)] = 60.0,
    tries: Annotated[int, typer.Option(help="How often to time an operation.", min=1)] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="Say it as JSON.")] = False,
) -> None:
    """Find out why a rendezvous would not work from this machine.

    Exit code 0: nothing is wrong but for warnings; 1: there are errors; 2: wrong usage.
    """
    from rdzv.doctor import Examination

    from .doctor import run
    from .settings import read_settings

    if peer and not run_id:
        typer.echo("--peer needs --run-id, the same on both nodes.", err=True)
        raise typer.Exit(2)
    try:
        settings = read_settings(conf or [])
    except ValueError as exc:
        typer.echo(str(exc), err=True)
        raise typer.Exit(2) from None
    what = Examination(
        backend,
        endpoint,
        settings,
        run_id or "rdzv-doctor",
        local_addr or None,
        limit=limit,
        tries=tries,
        host=host,
        peer=peer,
        wait=wait,
        port=port,
    )
    raise typer.Exit(run(what, as_json=as_json))


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


@app.command("new-plugin")
def new_plugin(
    name: Annotated[str, typer.Argument(help="The backend's name, such as 'cupboard'.")],
    directory: Annotated[
        Optional[Path],  # noqa: UP045 - as above
        typer.Option(help="The new folder to write it to; by default rdzv-NAME."),
    ] = None,
) -> None:
    """Write a distribution with a backend that works, to be made your own.

    Exit code 0: it is there; 2: the name or the folder cannot be had, and nothing was written.
    """
    from .new_plugin import UnusableNameError
    from .new_plugin import new_plugin as write

    try:
        written = write(name, directory)
    except (UnusableNameError, OSError) as exc:
        typer.echo(str(exc), err=True)
        raise typer.Exit(2) from None
    for path in written:
        typer.echo(path)
    readme = next(path for path in written if path.name == "README.md")
    typer.echo(f"It works as it is; {readme} says how to make it yours.")


@app.command()
def timeline(
    events: Annotated[
        list[Path], typer.Argument(help="Logs of events (RDZV_EVENTS), or folders of *.jsonl.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The page, as HTML.")],
    run: Annotated[
        Optional[str],  # noqa: UP045 - as above
        typer.Option(help="Only the run of this name."),
    ] = None,
) -> None:
    """Show what happened in a run, and where the seconds went, as one page without scripts.

    Exit code 0: all was read; 1: the page lacks lines that could not be read; 2: no page was made.
    """
    from .timeline import Usage
    from .timeline import run as make

    try:
        code = make(events, output, run)
    except Usage as exc:
        typer.echo(str(exc), err=True)
        raise typer.Exit(2) from None
    raise typer.Exit(code)


_Run = Annotated[str, typer.Argument(help="The run's name, as torchrun's --rdzv-id has it.")]
_Backend = Annotated[str, typer.Option(help="The backend, by its name in rdzv or in torchrun.")]
_Endpoint = Annotated[str, typer.Option(help="Where its server is; as for a job.")]
_Conf = Annotated[
    Optional[list[str]],  # noqa: UP045 - as above
    typer.Option(help="Settings of the backend, k=v,...; as for a job; may be given again."),
]
_Json = Annotated[bool, typer.Option("--json", help="Say it as JSON.")]
_Min = Annotated[Optional[int], typer.Option("--min", help="The fewest nodes of a round.")]  # noqa: UP045
_Max = Annotated[Optional[int], typer.Option("--max", help="The most nodes of a round.")]  # noqa: UP045
_Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


@app.command()
def status(
    run: _Run,
    backend: _Backend,
    endpoint: _Endpoint = "",
    conf: _Conf = None,
    as_json: _Json = False,
    observe: Annotated[
        Optional[float],  # noqa: UP045 - as above
        typer.Option(help="Seconds to look for signs of life; two intervals if not given.", min=0),
    ] = None,
) -> None:
    """Say what a run is doing: its nodes, its round, and what it waits for. Changes nothing.

    Exit code 0: done; 1: no such run; 2: wrong arguments; 3: trouble with the store.
    """
    try:
        from . import operate
        from . import status as commands
    except ModuleNotFoundError as exc:
        raise _missing(exc) from exc

    def command() -> int:
        way = operate.access(run, backend, endpoint, conf or [])
        return commands.status(way, observe, as_json=as_json)

    raise typer.Exit(operate.reported(command))


@app.command()
def watch(
    run: _Run,
    backend: _Backend,
    endpoint: _Endpoint = "",
    conf: _Conf = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Say it as JSON, one line whenever it changes.")
    ] = False,
) -> None:
    """Show what a run is doing as it goes on, until it is closed or Ctrl-C. Changes nothing.

    Exit codes as of status.
    """
    try:
        from . import operate
        from . import status as commands
    except ModuleNotFoundError as exc:
        raise _missing(exc) from exc

    def command() -> int:
        return commands.watch(operate.access(run, backend, endpoint, conf or []), as_json=as_json)

    raise typer.Exit(operate.reported(command))


@app.command()
def close(
    run: _Run, backend: _Backend, endpoint: _Endpoint = "", conf: _Conf = None, yes: _Yes = False
) -> None:
    """Close a run: nobody can join it any more. Workers that run go on; nodes that wait end.

    Exit code 0: it is closed; 1: no such run, or "no"; 2: wrong arguments; 3: store trouble.
    """
    from . import operate

    def command() -> int:
        way = operate.access(run, backend, endpoint, conf or [])
        _ask(f"Close the run '{operate.printable(run)}' for good?", yes=yes)
        return operate.close(way)

    raise typer.Exit(operate.reported(command))


@app.command()
def reset(
    run: _Run,
    backend: _Backend,
    endpoint: _Endpoint = "",
    conf: _Conf = None,
    low: _Min = None,
    high: _Max = None,
    force: Annotated[
        bool, typer.Option("--force", help="Even where nodes of it live: each of them fails.")
    ] = False,
    yes: _Yes = False,
) -> None:
    """Begin a run anew, so that its name can be used again after it was closed.

    Exit code 0: done; 1: no such run, nodes live, "no"; 2: wrong arguments; 3: store trouble.
    """
    from . import operate

    def command() -> int:
        way = operate.access(run, backend, endpoint, conf or [])
        _ask(f"Forget what there is of the run '{operate.printable(run)}'?", yes=yes)
        return operate.reset(way, low, high, force=force)

    raise typer.Exit(operate.reported(command))


@app.command()
def scale(
    run: _Run,
    backend: _Backend,
    endpoint: _Endpoint = "",
    conf: _Conf = None,
    low: _Min = None,
    high: _Max = None,
) -> None:
    """Change how few and how many nodes a run may have, while it runs.

    Exit code 0: done; 1: no such run, or closed; 2: wrong arguments; 3: trouble with the store.
    """
    from . import operate

    def command() -> int:
        return operate.scale(operate.access(run, backend, endpoint, conf or []), low, high)

    raise typer.Exit(operate.reported(command))


def _ask(question: str, *, yes: bool) -> None:
    if not yes and not typer.confirm(question):
        raise typer.Exit(1)
