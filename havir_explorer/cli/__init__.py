"""The ``havir`` command: one module a command, put together in :mod:`~havir_explorer.cli.commands`."""

from havir_explorer.cli.commands import command, main

__all__ = ["command", "main"]
