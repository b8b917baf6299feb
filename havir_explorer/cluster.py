"""Who can do the work: worker processes beside this one, the workers of a Dask scheduler, or SLURM jobs; how they are started and reached."""

from __future__ import annotations

import gc
import os
import signal
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from havir_explorer import __version__, slurm
from havir_explorer.errors import ClusterUnavailable, RequestError
from havir_explorer.paths import cache_folder
from havir_explorer.slurm import QUIET, THREADS, Slurm

if TYPE_CHECKING:
    from distributed import Client, Security, SpecCluster

ANSWER = 10
"""Seconds in which a scheduler must answer."""
LOSSES = 3
"""Workers that one task may cost; with the next it is given up."""
_MEMORY = 0.9
"""Part of the machine's memory that local workers may use together."""
_RETURN = "1 hour"
"""In which a local worker that was lost may come back. Its process is started again at once, but on a busy machine that takes a while, and Dask,
which waits 15 s, would then leave its place empty: with one worker that is waiting for ever."""


@dataclass(frozen=True)
class Certificates:
    """Files in PEM form that prove to scheduler and workers who we are, and to us who they are.

    Parameters
    ----------
    authority, certificate, key : Path
    """

    authority: Path
    certificate: Path
    key: Path


@dataclass(frozen=True)
class Where:
    """Where tasks are done; in this process unless one of the others is given.

    Parameters
    ----------
    workers : int
        Worker processes to start on this machine; one a GPU where it has any.
    scheduler : str
        Address of a running Dask scheduler, ``tcp://host:8786`` or ``tls://host:8786``.
    slurm : Slurm, optional
    certificates : Certificates, optional
        Encrypts everything between this process, scheduler and workers.

    Raises
    ------
    RequestError
        Two places at once, or a negative number of workers.
    """

    workers: int = 0
    scheduler: str = ""
    slurm: Slurm | None = None
    certificates: Certificates | None = None

    def __post_init__(self) -> None:
        if self.workers < 0:
            msg = f"--workers must be 0 (this process) or more; got {self.workers}"
            raise RequestError(msg)
        if bool(self.workers) + bool(self.scheduler) + bool(self.slurm) > 1:
            msg = "--workers, --scheduler and --slurm are three places to work; choose one of them"
            raise RequestError(msg)
        if self.certificates and self.here:
            msg = "certificates protect what goes between processes; give them with --workers, --scheduler or --slurm"
            raise RequestError(msg)

    @property
    def here(self) -> bool:
        """True when this process does the work itself."""
        return not (self.workers or self.scheduler or self.slurm)

    @property
    def hands(self) -> int:
        """Workers that are known to come, 1 at least."""
        return self.workers or (self.slurm.jobs if self.slurm else 1)

    def like_here(self, device: str) -> bool:
        """Whether workers are known to draw on the same kind of device as this process, which has ``device``."""
        return self.here or bool(self.workers) or (self.slurm is not None and bool(self.slurm.gpus) == device.startswith("cuda"))

    def side_by_side(self, device: str) -> int:
        """How many pictures are drawn at the same speed as one, where ``device`` is this process's: worker processes share one CPU."""
        return 1 if self.here or (self.workers and device == "cpu") else self.hands

    def __str__(self) -> str:
        if self.slurm:
            return f"{self.slurm.jobs} SLURM job{'s' * (self.slurm.jobs > 1)}"
        if self.scheduler:
            return f"the workers of {self.scheduler}"
        return f"{self.workers} worker process{'es' * (self.workers > 1)}" if self.workers else "this process"


HERE = Where()


def ready(where: Where) -> None:
    """Make sure that what a place needs is on this machine, before anything is loaded for it.

    Raises
    ------
    ClusterUnavailable
        No Dask, or no SLURM.
    RequestError
        The certificates cannot be used.
    """
    if where.here:
        return
    if find_spec("distributed") is None:
        msg = "working in several processes needs Dask, which is not installed; install it with: pip install 'havir_explorer[cluster]'"
        raise ClusterUnavailable(msg)
    if where.slurm:
        slurm.installed()
    if where.certificates:
        security(where.certificates)


@contextmanager
def connected(where: Where) -> Iterator[Client | None]:
    """Connect to the workers of a place, having started them where that is ours to do; both end here. None when this process is the place.

    Raises
    ------
    ClusterUnavailable
        No Dask here, no answer from the scheduler, no worker, other software on the workers, or SLURM takes no such job.
    RequestError
        The certificates cannot be used, or there are more local workers than GPUs.
    """
    if where.here:
        yield None
        return
    ready(where)
    import dask
    from dask.system import CPU_COUNT
    from distributed import Client

    protection = security(where.certificates) if where.certificates else None
    threads = {f"distributed.nanny.pre-spawn-environ.{name}": max(1, CPU_COUNT // where.hands) for name in THREADS}
    lost = {"distributed.scheduler.allowed-failures": LOSSES} | ({"distributed.deploy.lost-worker-timeout": _RETURN} if where.workers else {})
    with _own_environment(), dask.config.set({**QUIET, **threads, **lost}):
        if where.scheduler:
            with _reached(where.scheduler, protection) as client:
                yield client
            return
        with _ended(slurm.slurm_cluster(where.slurm, protection) if where.slurm else _local(where.workers, protection)) as cluster:
            if where.slurm:
                slurm.submit(cluster, where.slurm.jobs)
            with Client(cluster, security=protection, set_as_default=False) as client:
                yield client


@contextmanager
def _ended(cluster: SpecCluster) -> Iterator[SpecCluster]:
    """End a cluster's workers; one that does not end in time is no news beside what came of the work."""
    try:
        yield cluster
    finally:
        with suppress(Exception):
            cluster.close()


def watch(client: Client) -> None:
    """Make sure that somebody is left to do the work; to be asked when nothing has come back for a while.

    Raises
    ------
    ClusterUnavailable
        There is no worker, and none will come.
    """
    from dask_jobqueue import SLURMCluster

    if client.nthreads():
        return
    again = "and run the same command again: what is finished stays"
    if client.cluster is None:
        address = client.scheduler.address
        msg = f"the scheduler at {address} has no worker any more; start some with: dask worker {address} --nthreads 1, {again}"
        raise ClusterUnavailable(msg)
    if isinstance(client.cluster, SLURMCluster) and not slurm.any_left(client.cluster):
        msg = f"no SLURM job is left and no worker came of them; look into their logs in {cache_folder() / slurm.LOGS}, {again}"
        raise ClusterUnavailable(msg)


@contextmanager
def _own_environment() -> Iterator[None]:
    """Take back what starting workers leaves in this process's environment."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


@contextmanager
def _reached(address: str, protection: Security | None) -> Iterator[Client]:
    """Connect to a scheduler that others started, once its workers are known to run what we run."""
    from distributed import Client

    client, why = None, ""
    try:
        client = Client(address, security=protection, timeout=ANSWER, set_as_default=False)
    except (OSError, ValueError, TypeError, RuntimeError) as fault:
        why = _first_line(fault)
    if client is None:
        gc.collect()  # what is left of it ends here: found later, in the thread of another client's loop, it would wait for that loop and stop it
        msg = f"no Dask scheduler answers at {address} ({why}); check the address, and the certificates if it asks for them"
        raise ClusterUnavailable(msg)
    with client:
        _same_software(client, address)
        yield client


def _same_software(client: Client, address: str) -> None:
    try:
        client.wait_for_workers(1, timeout=ANSWER)
    except TimeoutError as nobody:
        msg = f"the scheduler at {address} has no worker; start some with: dask worker {address} --nthreads 1"
        raise ClusterUnavailable(msg) from nobody
    try:
        found = {client.run_on_scheduler(version), *client.run(version).values()}  # the scheduler reads the tasks too
    except Exception as fault:
        msg = f"the scheduler at {address} or a worker cannot load havir_explorer ({_first_line(fault)}); install havir_explorer {__version__} where they run"
        raise ClusterUnavailable(msg) from fault
    if found != {__version__}:
        msg = f"the scheduler at {address} and its workers run havir_explorer {', '.join(sorted(found))}, this is {__version__}; install the same one there"
        raise ClusterUnavailable(msg)


def version() -> str:
    """Return the version of havir_explorer that runs here."""
    return __version__


def _first_line(fault: BaseException) -> str:
    return (str(fault) or type(fault).__name__).splitlines()[0]


def _local(workers: int, protection: Security | None) -> SpecCluster:
    """Start worker processes on this machine, each with its share of cores and memory, and a GPU of its own where there are any."""
    from distributed import Nanny, Scheduler, SpecCluster
    from distributed.system import MEMORY_LIMIT

    devices = _gpus()
    if devices and workers > len(devices):
        msg = f"this machine has {len(devices)} GPU{'s' * (len(devices) > 1)} and each worker takes one; ask for that many workers, or set HAVIR_DEVICE=cpu"
        raise RequestError(msg)
    network = {"host": "127.0.0.1", "protocol": "tls://" if protection else "tcp://", "security": protection}
    memory = int(MEMORY_LIMIT * _MEMORY / workers)
    options = {**network, "nthreads": 1, "memory_limit": memory, "silence_logs": "CRITICAL", "dashboard": False, "preload": [__name__]}
    cards = [{"CUDA_VISIBLE_DEVICES": card, "HAVIR_DEVICE": "cuda"} for card in devices] or [{}] * workers
    crew = {place: {"cls": Nanny, "options": {**options, "env": cards[place]}} for place in range(workers)}
    scheduler = {"cls": Scheduler, "options": {**network, "dashboard": False, "dashboard_address": "127.0.0.1:0"}}
    return SpecCluster(crew, scheduler, security=protection, silence_logs="CRITICAL")


def dask_setup(_worker: object) -> None:
    """Leave Ctrl-C to the process that started the workers; Dask calls this in each of them as it starts."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _gpus() -> list[str]:
    """The GPUs that this process may use, by the names CUDA knows them by; none when the CPU was chosen."""
    import torch

    from havir_explorer.diffuse import device

    if device.device().type != "cuda":
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return visible.split(",") if visible else [str(index) for index in range(torch.cuda.device_count())]


def security(files: Certificates) -> Security:
    """Return what Dask encrypts with.

    Raises
    ------
    RequestError
        A file is absent, or the three do not fit together.
    """
    from distributed import Security

    for role in ("authority", "certificate", "key"):
        if not (path := getattr(files, role)).is_file():
            msg = f"the {role} for TLS is not there: no file {path}; give the PEM files with --tls-ca, --tls-cert and --tls-key"
            raise RequestError(msg)
    ours = {f"tls_{role}_{kind}": str(path) for role in ("client", "scheduler", "worker") for kind, path in (("cert", files.certificate), ("key", files.key))}
    made = Security(require_encryption=True, tls_ca_file=str(files.authority), **ours)
    try:
        for role in ("client", "scheduler", "worker"):
            made.get_connection_args(role)
    except (ssl.SSLError, OSError, ValueError) as fault:
        three = f"{files.authority}, {files.certificate} and {files.key}"
        msg = f"the certificates cannot be used ({_first_line(fault)}): {three} must be PEM files that fit together"
        raise RequestError(msg) from fault
    return made
