"""SLURM jobs as workers: what each asks for, whether SLURM takes it, and whether any is left."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from havir_explorer.errors import ClusterUnavailable, RequestError
from havir_explorer.paths import cache_folder

if TYPE_CHECKING:
    from dask_jobqueue import SLURMCluster
    from distributed import Security

LOGS = "slurm"
"""Folder of the jobs' logs, in the cache folder."""
NAME = "havir"
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Environment variables that say how many threads a worker computes with."""
QUIET = {"distributed.worker.memory.target": False, "distributed.worker.memory.spill": False, "distributed.worker.memory.pause": False}
"""Dask's settings of every worker: a model that fills the memory is no reason to wait."""
ANSWER = 60
"""Seconds in which SLURM's own commands must answer; a busy controller takes some."""
_MEMORY = re.compile(r"\d+(\.\d+)?\s?[kmgt]i?b?", re.IGNORECASE)
_WALLTIME = re.compile(r"(\d+-)?\d+(:\d{1,2}){0,2}")


@dataclass(frozen=True)
class Slurm:
    """What to ask of SLURM for each job; a job is one worker.

    Parameters
    ----------
    jobs : int
    partition, account : str
        The cluster's own when empty.
    walltime : str
        ``HH:MM:SS``, ``D-HH:MM:SS`` or minutes.
    memory : str
        Such as ``24GB``.
    cores, gpus : int
        A worker draws on one GPU; more than one a job stay idle.
    extra : tuple of str
        More directives, such as ``--qos=long``.

    Raises
    ------
    RequestError
        A number is too small, or a memory or time is not written as above.
    """

    jobs: int = 2
    partition: str = ""
    account: str = ""
    walltime: str = "02:00:00"
    memory: str = "24GB"
    cores: int = 4
    gpus: int = 0
    extra: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, least in (("jobs", 1), ("cores", 1), ("gpus", 0)):
            if getattr(self, name) < least:
                msg = f"--slurm-{name} must be {least} or more; got {getattr(self, name)}"
                raise RequestError(msg)
        for option, value, form, example in (("memory", self.memory, _MEMORY, "24GB"), ("time", self.walltime, _WALLTIME, "02:00:00")):
            if not form.fullmatch(value):
                msg = f"--slurm-{option} takes a {option} such as {example}; got {value!r}"
                raise RequestError(msg)


def installed() -> None:
    """Raise ClusterUnavailable when this machine has no SLURM to submit to."""
    if shutil.which("sbatch") is None:
        msg = "SLURM jobs are submitted with sbatch, which is not on this machine; run this on the cluster's login node, or use --workers or --scheduler"
        raise ClusterUnavailable(msg)


def slurm_cluster(asked: Slurm, protection: Security | None = None) -> SLURMCluster:
    """Return a cluster whose workers are SLURM jobs; none is submitted yet.

    Each job runs one worker with one task at a time; its threads are the job's cores. The jobs' logs go to ``slurm`` in the cache folder.

    Raises
    ------
    ClusterUnavailable
        This machine has no SLURM to submit to.
    """
    installed()
    from dask_jobqueue import SLURMCluster

    return SLURMCluster(
        cores=1,
        processes=1,
        job_cpu=asked.cores,
        memory=asked.memory,
        queue=asked.partition or None,
        account=asked.account or None,
        walltime=asked.walltime,
        job_name=NAME,
        log_directory=str(cache_folder() / LOGS),
        job_extra_directives=[*([f"--gres=gpu:{asked.gpus}"] * bool(asked.gpus)), *asked.extra],
        job_script_prologue=[
            *(f"export {name}={asked.cores}" for name in THREADS),
            *(f"export DASK_{name.upper().replace('.', '__')}=False" for name in QUIET),
        ],
        security=protection,
        scheduler_options={"dashboard": False, "dashboard_address": ":0"},
    )


def submit(cluster: SLURMCluster, jobs: int) -> None:
    """Keep so many jobs running, once SLURM has said that it would take one; a job that ends is replaced.

    Raises
    ------
    ClusterUnavailable
        SLURM refuses such jobs. Without asking first they would be refused one after another where nobody sees it.
    """
    asked = _asked("sbatch", "--test-only", script=cluster.job_script())
    if asked.returncode:
        why = (asked.stderr.strip() or asked.stdout.strip() or f"exit code {asked.returncode}").splitlines()[-1]
        msg = f"SLURM does not take such a job ({why}); change the --slurm-… options"
        raise ClusterUnavailable(msg)
    cluster.adapt(minimum_jobs=jobs, maximum_jobs=jobs)


def any_left(cluster: SLURMCluster) -> bool:
    """True while a job of this cluster waits or runs, or SLURM does not answer."""
    numbers = {job.job_id for job in cluster.workers.values()}
    asked = _asked("squeue", "--noheader", "--name", NAME, "--format=%i")
    return asked.returncode != 0 or not numbers.isdisjoint(asked.stdout.split())


def _asked(*words: str, script: str = "") -> subprocess.CompletedProcess[str]:
    """Ask one of SLURM's commands."""
    return subprocess.run(words, input=script, capture_output=True, text=True, timeout=ANSWER, check=False)  # noqa: S603 - SLURM's commands, our words
