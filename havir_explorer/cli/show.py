"""What the commands share: how they report, what they print, and how an error becomes one sentence and an exit code."""

from __future__ import annotations

import errno
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from havir_explorer.errors import Cancelled, HavirError, OutputError, RequestError, reason

_Name = TypeVar("_Name", bound=str)
DEBUG = "HAVIR_DEBUG"
"""Environment variable: when set, errors come with their traceback."""

LOGGED = 60
"""Seconds between two lines of progress where stderr is no terminal."""
FILES = 4096
"""Files that a command may have open, where the system lets it."""
FINE, OURS, YOURS, STOPPED = 0, 1, 2, 130
"""Exit codes: done; our fault; the user's input or files; stopped by the user."""

_NO_ACCESS, _NO_ROOM, _DISK = (
    "change its permissions, or ask its owner to",
    "free some, then run the same command again",
    "the disk or the network failed: try again",
)
_MACHINE = {
    errno.EACCES: _NO_ACCESS,
    errno.EPERM: _NO_ACCESS,
    errno.EROFS: _NO_ACCESS,
    errno.ENOSPC: _NO_ROOM,
    errno.EDQUOT: _NO_ROOM,
    errno.EIO: _DISK,
    errno.ESTALE: _DISK,
    errno.EMFILE: "allow this shell more with: ulimit -n 4096",
}
"""What a machine says of itself wherever it happens, and what to do."""


def quiet() -> None:
    """Keep the libraries' own progress bars and advice off the terminal, before they are imported; what the user has set stands."""
    for name, value in (("HF_HUB_DISABLE_PROGRESS_BARS", "1"), ("TRANSFORMERS_VERBOSITY", "error"), ("DIFFUSERS_VERBOSITY", "error")):
        os.environ.setdefault(name, value)


def warn_in_words() -> None:
    """Print warnings as errors are, in one sentence; with ``HAVIR_DEBUG`` also the line that gave them."""

    def sentence(message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None) -> str:
        place = f" ({filename}:{lineno}, {category.__name__}{f': {line}' if line else ''})" if os.environ.get(DEBUG) else ""
        return f"havir: {message}{place}\n"

    warnings.formatwarning = sentence


def open_more_files() -> None:
    """Let this process open as many files as eight subjects' sessions are: macOS allows 256 unless asked."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def console(*, to_stderr: bool = False) -> Console:
    """A console on the current stdout or stderr; words are never broken by highlighting."""
    return Console(stderr=to_stderr, highlight=False, soft_wrap=True)


def emit(values: object) -> None:
    """Print JSON on stdout, and nothing else, so that the output can be piped."""
    sys.stdout.write(json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool = True) -> None:
    """Print a table; every column but the first is flushed right where it holds numbers."""
    if title:
        console().print(title)
    grid = Table()
    for place, name in enumerate(columns):
        grid.add_column(name, justify="right" if place and numbers else "left", overflow="fold")
    for row in rows:
        grid.add_row(*row)
    Console(highlight=False).print(grid)


def guarded(work: Callable[[], int]) -> int:
    """Run a command and return its exit code; errors become one sentence on stderr.

    Parameters
    ----------
    work : callable
        Returns an exit code or raises.

    Returns
    -------
    int
        0 fine, 1 our fault, 2 the user's input or files, 130 stopped by the user.
    """
    try:
        return work()
    except SystemExit as leave:  # how typer ends help, usage errors (2) and Ctrl-C
        if leave.code == STOPPED:
            return _say("stopped", STOPPED)
        return leave.code if isinstance(leave.code, int) else FINE if leave.code is None else OURS
    except (Cancelled, KeyboardInterrupt):
        return _say("stopped", STOPPED)
    except HavirError as fault:
        return _say(str(fault), YOURS)
    except Exception as fault:  # noqa: BLE001 - the last line of defence
        if isinstance(fault, OSError) and fault.errno in _MACHINE:
            return _say(f"{os.strerror(fault.errno)}{f': {fault.filename}' if fault.filename else ''}; {_MACHINE[fault.errno]}", YOURS)
        return _say(f"unexpected {type(fault).__name__}: {fault or 'no message'}; this is a bug: run again with {DEBUG}=1 to see where", OURS)


def _say(sentence: str, code: int) -> int:
    if os.environ.get(DEBUG):
        console(to_stderr=True).print_exception()
    sys.stderr.write(f"havir: {' '.join(sentence.split())}\n")
    return code


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[float, str], None]]:
    """Show a bar on stderr and yield the function that moves it: share done in [0, 1] and a line of text; in a log file, a line now and then."""
    screen = console(to_stderr=True)
    if not screen.is_terminal:
        yield _now_and_then(screen)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"), TimeRemainingColumn())
    with Progress(*columns, console=screen, transient=True) as bars:
        bar = bars.add_task(title, total=1.0)
        yield lambda share, line: bars.update(bar, completed=share, description=line)


def _now_and_then(screen: Console) -> Callable[[float, str], None]:
    """Return what prints a line whenever :data:`LOGGED` seconds have gone by."""
    last = time.monotonic()

    def show(share: float, line: str) -> None:
        nonlocal last
        if time.monotonic() - last >= LOGGED:
            last = time.monotonic()
            screen.print(f"{100 * share:.0f} %: {line}")

    return show


def can_write(path: Path, *endings: str) -> Path:
    """Return the path once it is known that a file can be written there, before minutes go into what belongs in it.

    Parameters
    ----------
    path : Path
    *endings : str
        What the name may end in.

    Raises
    ------
    OutputError
        The folder is missing or not writable, the path is a folder, or its name ends otherwise.
    """
    folder = path.parent
    if path.is_dir():
        msg = f"cannot write {path}: it is a folder; give the name of a file in it"
        raise OutputError(msg)
    if not folder.is_dir():
        msg = f"cannot write {path}: the folder {folder} does not exist; make it first, or write somewhere else"
        raise OutputError(msg)
    if not os.access(folder, os.W_OK):
        msg = f"cannot write {path}: no permission to write in {folder}; write somewhere else"
        raise OutputError(msg)
    if path.suffix.lower() not in endings:
        msg = f"cannot write {path}: its name must end in {' or '.join(endings)}, which says how it is written"
        raise OutputError(msg)
    return path


def make_folder(folder: Path, option: str) -> Path:
    """Return the folder, made where it is missing, once it is known that files can be written in it; ``option`` names it.

    Raises
    ------
    OutputError
        It cannot be made, or not be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        msg = f"cannot make the folder of {option}, {folder}: {reason(fault)}"
        raise OutputError(msg) from fault
    if not os.access(folder, os.W_OK):
        msg = f"cannot write in the folder {folder}: it is not allowed there; give another one with {option}"
        raise OutputError(msg)
    return folder


def write(path: Path, save: Callable[[Path], object]) -> Path:
    """Save under a temporary name, then rename, so that a file is either whole or absent.

    Raises
    ------
    OutputError
        The disk is full or the place cannot be written.
    """
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        save(part)
        part.replace(path)
    except OSError as fault:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        msg = f"cannot write {path}: {reason(fault)}"
        raise OutputError(msg) from fault
    return path


def duration(seconds: float) -> str:
    """Return a time in words, 1 s at least."""
    return f"{max(seconds, 1):.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:,.1f} h"


def size(count: float) -> str:
    """Return a number of bytes in words."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.0f} kB"


def names(text: str | None) -> tuple[str, ...]:
    """Split ``"FFA-1, FFA-2"`` into names."""
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())


def numbers(text: str, option: str) -> tuple[int, ...]:
    """Split ``"1-3,7"`` into the whole numbers it names, in order and once each.

    Raises
    ------
    RequestError
        It is empty, not of that form, a range runs backwards, or it names more than a million.
    """
    found: dict[int, None] = {}
    for piece in names(text):
        first, _, last = piece.partition("-")
        bounds = [int(bound) if bound.isdecimal() and len(bound) < 10 else -1 for bound in (first.strip(), (last or first).strip())]
        if min(bounds) < 0 or bounds[1] < bounds[0] or bounds[1] - bounds[0] >= 10**6:
            msg = f"{option} takes numbers and ranges such as 0-99 or 1,4-6; got {piece!r}"
            raise RequestError(msg)
        found.update(dict.fromkeys(range(bounds[0], bounds[1] + 1)))
    if not found:
        msg = f"{option} names no number; give some, such as 1 or 1-3,7"
        raise RequestError(msg)
    return tuple(found)


def one_of(option: str, asked: str, known: tuple[_Name, ...]) -> _Name:
    """Return the value of an option that takes one of a few names.

    Raises
    ------
    RequestError
        It is none of them.
    """
    for name in known:
        if asked == name:
            return name
    msg = f"{option} takes {' or '.join(known)}; got {asked!r}"
    raise RequestError(msg)
