"""The options that say where a command does its work, for the commands that can share it out."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from havir_explorer.cluster import Certificates, Where, ready
from havir_explorer.errors import RequestError
from havir_explorer.slurm import Slurm

_S = Slurm()
LOCAL = 2
"""Worker processes of a ``--workers`` without its number."""


class Placed(TyperCommand):
    """A command whose ``--workers`` may stand alone."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - click's context, which typer brings along
        """Read the command line with the number that ``--workers`` stands for put in."""
        ends = [*args[1:], "--"]
        alone = [word == "--workers" and following.startswith("--") for word, following in zip(args, ends, strict=True)] if args else []
        return super().parse_args(ctx, [f"{word}={LOCAL}" if bare else word for word, bare in zip(args, alone, strict=True)])


def placed(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of :func:`where`; it gets what they say as its argument ``where``."""
    own, shared = (inspect.signature(function, eval_str=True) for function in (command, where))

    @functools.wraps(command)
    def placed_command(**options: Any) -> None:  # noqa: ANN401 - each value has its option's type
        place = where(**{name: options.pop(name) for name in shared.parameters})
        command(**options, where=place)

    parameters = [*(p for p in own.parameters.values() if p.name != "where"), *shared.parameters.values()]
    placed_command.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined] # what typer reads
    placed_command.__annotations__ = {p.name: p.annotation for p in parameters}
    return placed_command


def where(
    *,
    workers: Annotated[int, typer.Option("--workers", help=f"Worker processes to start on this machine, {LOCAL} without a number; one a GPU.")] = 0,
    scheduler: Annotated[str, typer.Option("--scheduler", help="A running Dask scheduler whose workers do the work, e.g. tcp://host:8786.")] = "",
    slurm: Annotated[bool, typer.Option("--slurm", help="Submit the workers as SLURM jobs.")] = False,
    slurm_jobs: Annotated[int, typer.Option("--slurm-jobs", help="Jobs to keep running, a worker each.")] = _S.jobs,
    slurm_partition: Annotated[str, typer.Option("--slurm-partition", help="The cluster's own when left out.")] = _S.partition,
    slurm_account: Annotated[str, typer.Option("--slurm-account", help="The user's own when left out.")] = _S.account,
    slurm_time: Annotated[str, typer.Option("--slurm-time", help="Of one job, HH:MM:SS; a job that ends is replaced.")] = _S.walltime,
    slurm_memory: Annotated[str, typer.Option("--slurm-memory", help="Of one job.")] = _S.memory,
    slurm_cores: Annotated[int, typer.Option("--slurm-cores", help="Of one job.")] = _S.cores,
    slurm_gpus: Annotated[int, typer.Option("--slurm-gpus", help="Of one job: 0 or 1.")] = _S.gpus,
    slurm_extra: Annotated[list[str] | None, typer.Option("--slurm-extra", help="One more directive, --slurm-extra=--qos=long; repeatable.")] = None,
    tls_ca: Annotated[Path | None, typer.Option("--tls-ca", help="Certificate authority, PEM: encrypts what goes between the processes.")] = None,
    tls_cert: Annotated[Path | None, typer.Option("--tls-cert", help="Our certificate, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option("--tls-key", help="Its key, PEM.")] = None,
) -> Where:
    """Return the place that the options name.

    Raises
    ------
    RequestError
        Two places at once, or some of the certificate's files but not all, or files that cannot be used.
    ClusterUnavailable
        No Dask or SLURM on this machine.
    """
    job = Slurm(slurm_jobs, slurm_partition, slurm_account, slurm_time, slurm_memory, slurm_cores, slurm_gpus, tuple(slurm_extra or ()))
    if job != _S and not slurm:
        msg = "the --slurm-… options describe SLURM jobs; give --slurm with them"
        raise RequestError(msg)
    place = Where(workers, scheduler, job if slurm else None, _certificates(tls_ca, tls_cert, tls_key))
    ready(place)
    return place


def _certificates(authority: Path | None, certificate: Path | None, key: Path | None) -> Certificates | None:
    if authority and certificate and key:
        return Certificates(authority, certificate, key)
    if authority or certificate or key:
        msg = "--tls-ca, --tls-cert and --tls-key go together: the authority, our certificate, and its key"
        raise RequestError(msg)
    return None
