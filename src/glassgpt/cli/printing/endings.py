"""What every verb that trains prints at its end: why the run ended, and the next commands."""

import sys
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from glassgpt.training.loop import Result


def exit_unless_finished(result: "Result", resume: str) -> None:
    """Exit if the run was interrupted, with its signal's code; or if this is not the main process, which prints.

    Args:
        result: of the run.
        resume: the command that resumes it.
    """
    if result.interrupted_by is None and result.is_main_process:
        return
    if result.interrupted_by is not None and result.is_main_process:
        print(
            f"\nStopped by {result.interrupted_by.name} after step {result.step}; everything is saved.\n"
            f"Resume with:  {resume}",
            file=sys.stderr,
        )
    raise typer.Exit(128 + result.interrupted_by if result.interrupted_by else 0)


def how_it_ended(result: "Result", resume: str) -> str:
    """Say why a run that was not interrupted has ended."""
    reasons = {
        "finished": f"finished {result.step:,} steps",
        "patience": f"stopped at step {result.step:,}: the validation loss no longer improves",
        "time": f"time budget reached at step {result.step:,} (resume with: {resume})",
    }
    return reasons[result.reason]


def print_next(commands: dict[str, str]) -> None:
    """Print the next commands, each with its purpose. Long lines are not broken, so that they can be copied."""
    print("Next:")
    width = max(map(len, commands))
    for command, purpose in commands.items():
        print(f"  {command:<{width}}   {purpose}")
