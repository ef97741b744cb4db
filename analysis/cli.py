"""The ``conductance`` command."""

import warnings
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer

from conductance.errors import ConvergenceWarning

app = typer.Typer(
    help="Which hidden units of a PyTorch model carry a prediction.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command; what the console script calls."""
    app()


def _show_version(wanted: bool) -> None:
    if not wanted:
        return
    try:
        version = metadata.version("conductance")
    except metadata.PackageNotFoundError:
        version = "(not installed)"
    typer.echo(f"conductance {version}")
    raise typer.Exit


def _tolerance(value: float) -> float:
    if not 0 < value < 1:
        msg = f"{value} is not between 0 and 1; 1e-2 is one percent."
        raise typer.BadParameter(msg)
    return value


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Which hidden units of a PyTorch model carry a prediction."""


@app.command()
def demo(
    output: Annotated[
        Path, typer.Option(file_okay=False, writable=True, help="Folder for the report; made if absent.")
    ] = Path("conductance-demo"),
    images: Annotated[int, typer.Option(min=1, max=500, help="Number of test digits explained.")] = 100,
    rtol: Annotated[float, typer.Option(callback=_tolerance, help="Tolerance: estimated Σ|error| / Σ|C|.")] = 1e-2,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the split and of the training.")] = 0,
    progress: Annotated[bool, typer.Option("--progress/--no-progress", help="Show progress bars.")] = True,
) -> None:
    """Train a small network on handwritten digits, explain it, and write a report."""
    try:
        # Here, for the import takes seconds in which it may be interrupted, too.
        from conductance.analysis.demo import run_demo

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the line below says it
            run = run_demo(output, images=images, rtol=rtol, seed=seed, progress=progress)
    except KeyboardInterrupt:
        typer.echo("Interrupted: no report was written. Fewer images (--images 20) take less time.", err=True)
        raise typer.Exit(130) from None
    except (ImportError, OSError) as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(1) from error
    converged = int(run.result.converged.sum())
    typer.echo(f"{run.accuracy:.1%} of test digits are recognised; {converged} of {images} explanations converged.")
    if converged < images:
        typer.echo("The report counts the others by cause; a larger --rtol is easier to reach.")
    typer.echo(f"Done in {run.seconds:.0f} s. Open the report in a browser:")
    typer.echo(str(run.report))
