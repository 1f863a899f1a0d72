"""``gliaflow dead``: list, show, replay and delete dead letters."""

from __future__ import annotations

import sys
from collections import Counter
from typing import Annotated

import typer

from gliaflow_cli import flags
from gliaflow_cli.terminal import console

app = typer.Typer(
    help="Dead letters: messages that a stage could not work on, each with its reason.", no_args_is_help=True
)


@app.command("list")
def list_letters(broker: flags.Broker = None) -> None:
    """Print one line for each dead letter: id, time, stage, scan, submission, reason."""
    from gliaflow_client.dead_letters import count_waiting, dead_letters
    from gliaflow_runner.broker import open_broker
    from gliaflow_runtime.settings import load_settings

    settings = load_settings({"broker": broker})
    with open_broker(settings) as connection, dead_letters(connection) as letters:
        # copies: a stage that ended after it wrote the dead letter and before it acknowledged the message
        copies = Counter((letter.queue.name, letter.id, letter.delivery.body) for letter in letters)
        count = len(copies)
        for letter in letters:
            if not (times := copies.pop((letter.queue.name, letter.id, letter.delivery.body), 0)):
                continue
            scan = letter.scan or "?"
            submission = f" of {letter.origin.submission}" if letter.origin.submission else ""
            queue = letter.queue.name.removeprefix("gliaflow.")
            line = f"{letter.id[:12]:12}  {letter.died:19}  {queue:12}  {scan}{submission}: {letter.reason}"
            line += f" ({times} copies)" if times > 1 else ""
            console.print(line, soft_wrap=True)
        hidden = count_waiting(connection)
    if hidden:
        console.print(f"and {hidden} more, which are listed once these are replayed or deleted")
    console.print(f"{count + hidden} dead letters on {settings.broker.split('@')[-1]}")


@app.command("show")
def show_letter(
    message: Annotated[str, typer.Argument(help="The message's id, or the start of it.", metavar="ID")],
    broker: flags.Broker = None,
) -> None:
    """Print everything that is known about a dead letter."""
    from gliaflow_client.dead_letters import choose, dead_letters
    from gliaflow_runner.broker import open_broker
    from gliaflow_runtime.settings import load_settings

    with open_broker(load_settings({"broker": broker})) as connection, dead_letters(connection) as letters:
        for letter in choose(letters, [message]):
            console.print(f"{letter.id} in {letter.queue.name}", style="bold")
            console.print(f"reason: {letter.reason}", soft_wrap=True)
            console.print(f"bytes: {len(letter.delivery.body)}")
            for name, value in letter.delivery.headers.items():
                console.print(f"header {name}: {value}", soft_wrap=True)
            console.print(*letter.content(), sep="\n", soft_wrap=True)


@app.command("replay")
def replay_letters(
    messages: Annotated[list[str] | None, typer.Argument(help="Ids, or the start of them.", metavar="ID")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every dead letter.")] = False,
    broker: flags.Broker = None,
) -> None:
    """Send dead letters back to the stage that gave them up, once the cause is fixed."""
    from gliaflow_client.dead_letters import choose, count_waiting, dead_letters
    from gliaflow_proto import ProtocolError
    from gliaflow_runner.broker import open_broker
    from gliaflow_runtime.errors import UsageError
    from gliaflow_runtime.settings import load_settings

    if bool(messages) == every:
        raise UsageError("name the dead letters to replay by their ids, or all of them with --all")
    settings = load_settings({"broker": broker})
    if settings.broker.startswith("memory:"):
        raise UsageError(
            "memory:// has no stages that keep running: submit the scans again, and delete the dead letters with "
            "gliaflow dead delete"
        )
    with open_broker(settings) as connection, dead_letters(connection) as letters:
        total = count_waiting(connection) + len(letters)
        chosen = letters if every else choose(letters, messages or [])
        refused = 0
        for letter in chosen:
            try:
                letter.replay(connection)
            except ProtocolError as error:
                refused += 1
                console.print(f"{letter.id} is not replayed: {error}", soft_wrap=True)
    console.print(f"{len(chosen) - refused} of {total} sent back to their queues")
    if refused:
        console.print(
            f"{refused} refused: their senders had no right to send such messages. Submit the scans again as a user "
            "with the right, or delete these dead letters: gliaflow dead delete ID"
        )
    console.print("answers go to the submissions that sent the scans; where those have ended, submit the scans again")
    if refused:
        raise typer.Exit(1)


@app.command("delete")
def delete_letters(
    messages: Annotated[list[str] | None, typer.Argument(help="Ids, or the start of them.", metavar="ID")] = None,
    stage: Annotated[str | None, typer.Option("--stage", help="All of one stage, for example preprocessor.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every dead letter.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask first.")] = False,
    broker: flags.Broker = None,
) -> None:
    """Delete dead letters for good."""
    from gliaflow_client.dead_letters import choose, count_waiting, dead_letters, delete_all, queues_of
    from gliaflow_proto.routing import ALL_QUEUES
    from gliaflow_runner.broker import open_broker
    from gliaflow_runtime.errors import UsageError
    from gliaflow_runtime.settings import load_settings

    if bool(messages) + (stage is not None) + every != 1:
        raise UsageError("name the dead letters to delete by their ids, or by --stage, or all of them with --all")
    queues = queues_of(stage) if stage is not None else ALL_QUEUES
    with open_broker(load_settings({"broker": broker})) as connection:
        if messages:
            with dead_letters(connection) as letters:
                chosen = choose(letters, messages)
                _confirm(len(chosen), yes)
                for letter in chosen:
                    letter.delete()
            deleted = len(chosen)
        else:
            _confirm(count_waiting(connection, queues), yes)
            deleted = delete_all(connection, queues)
    console.print(f"{deleted} dead letters deleted")


def is_interactive() -> bool:
    """Whether a person can answer a question."""
    return sys.stdin.isatty()


def _confirm(count: int, yes: bool) -> None:
    """Ask before a deletion. Raises UsageError: no person can answer."""
    from gliaflow_runtime.errors import UsageError

    if yes or not count:
        return
    if not is_interactive():
        raise UsageError(f"this deletes {count} dead letters for good: add --yes")
    typer.confirm(f"Delete {count} dead letters for good?", abort=True)
