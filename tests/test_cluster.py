"""Many tasks on several workers: each done once in the result, whatever is lost on the way; and the sweep that needs them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
from certificates import write_certificates
from cluster_tasks import Sum, add, refuse, setting

from havir_explorer import cluster, slurm, spread
from havir_explorer.cli import command
from havir_explorer.cluster import Where, connected
from havir_explorer.errors import ClusterUnavailable, RequestError
from havir_explorer.slurm import Slurm
from havir_explorer.spread import each

TWO = Where(workers=2)


def done(work, tasks, where):
    with connected(where) as client:
        return list(each(work, tasks, client))


@pytest.mark.parametrize("where", [Where(), TWO], ids=str)
def test_every_task_is_done_once(tmp_path, where):
    tasks = [Sum(number, tmp_path) for number in range(90)]  # more than are handed out at once
    found = done(add, tasks, where)
    assert sorted((place, total) for place, (total, _) in found) == [(n, n + 1) for n in range(90)]
    assert all((tmp_path / str(n)).read_text() == "." for n in range(90))
    by = {process for _, (_, process) in found}
    assert (os.getpid() in by, len(by)) == ((False, 2) if where.workers else (True, 1))


def test_a_worker_killed_in_the_middle_costs_no_task_and_doubles_none(tmp_path):
    tasks = [Sum(number, tmp_path, deaths=number == 5) for number in range(12)]
    before = dict(os.environ)
    found = done(add, tasks, TWO)
    assert (tmp_path / "5").read_text() == "..", "the task was begun twice"
    assert sorted((place, total) for place, (total, _) in found) == [(n, n + 1) for n in range(12)]
    assert dict(os.environ) == before


def test_workers_that_do_not_end_in_time_hide_no_fault(tmp_path):
    def close():
        raise TimeoutError

    with pytest.raises(RequestError, match="there is no number 7"), cluster._ended(SimpleNamespace(close=close)):
        list(each(refuse, [Sum(7, tmp_path)]))


@pytest.mark.timeout(60)
def test_a_worker_that_comes_back_late_is_waited_for(tmp_path):
    import dask

    with dask.config.set({"distributed.deploy.lost-worker-timeout": "1 ms"}):
        assert [total for _, (total, _) in done(add, [Sum(1, tmp_path, deaths=1)], Where(workers=1))] == [2]


def test_a_scheduler_that_is_lost_is_said(tmp_path):
    file = tmp_path / "scheduler.json"
    both = ["--no-dashboard", "--scheduler-file", str(file)]
    known = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    scheduler = subprocess.Popen([sys.executable, "-m", "distributed.cli.dask_scheduler", "--port", "0", *both], stderr=subprocess.DEVNULL, env=known)
    worker = [sys.executable, "-m", "distributed.cli.dask_worker", "--no-nanny", "--nthreads", "1", "--death-timeout", "5", *both]
    with subprocess.Popen(worker, stderr=subprocess.DEVNULL, env=known) as hand:
        while not file.exists():
            time.sleep(0.05)
        try:
            with connected(Where(scheduler=json.loads(file.read_text())["address"])) as client:
                results = each(add, [Sum(number, tmp_path, seconds=number) for number in range(4)], client)
                assert next(results)[0] == 0
                scheduler.kill()
                with pytest.raises(ClusterUnavailable, match="the scheduler went away while tasks were running"):
                    list(results)
        finally:
            scheduler.kill()
            scheduler.wait()
            hand.terminate()


def test_a_scheduler_whose_workers_left_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(spread, "PATIENCE", 0.5)
    with connected(Where(workers=1)) as ours, connected(Where(scheduler=ours.scheduler.address)) as client:
        results = each(add, [Sum(number, tmp_path, seconds=0.1) for number in range(20)], client)
        next(results)
        ours.cluster.scale(0)
        with pytest.raises(ClusterUnavailable, match=r"has no worker any more; start some with: dask worker .* what is finished stays"):
            list(results)


def test_ctrl_c_is_left_to_the_process_that_started_the_workers(tmp_path):
    tasks = [Sum(number, tmp_path, interrupted=True) for number in range(3)]
    assert sorted(place for place, _ in done(add, tasks, Where(workers=1))) == [0, 1, 2]
    assert {(tmp_path / str(n)).read_text() for n in range(3)} == {"."}


def test_a_task_that_kills_every_worker_is_given_up_with_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "LOSSES", 1)
    with pytest.raises(ClusterUnavailable, match="2 workers were lost one after another with the same task"):
        done(add, [Sum(1, tmp_path, deaths=99)], Where(workers=1))
    assert (tmp_path / "1").read_text() == ".."


def test_a_mistake_found_by_a_worker_is_said_as_it_is_here(tmp_path):
    with pytest.raises(RequestError, match="there is no number 7"):
        done(refuse, [Sum(7, tmp_path)], Where(workers=1))


def test_each_worker_has_its_share_of_the_cores_and_no_card_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("dask.system.CPU_COUNT", 6)
    assert done(setting, [Sum(0, tmp_path)], TWO) == [(0, ("3", None))]


def test_each_gpu_gets_a_worker_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "_gpus", lambda: ["2", "GPU-5f3"])
    with pytest.raises(RequestError, match="this machine has 2 GPUs and each worker takes one"):
        done(setting, [Sum(0, tmp_path)], Where(workers=3))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    tasks = [Sum(number, tmp_path, seconds=0.5) for number in range(4)]
    assert {card for _, (_, card) in done(setting, tasks, TWO)} == {"2", "GPU-5f3"}


@pytest.mark.slow
def test_what_goes_between_the_processes_is_encrypted_with_the_users_certificates(tmp_path):
    files = write_certificates(tmp_path)
    with connected(Where(workers=1, certificates=files)) as client:
        assert client.scheduler.address.startswith("tls://")
        assert [total for _, (total, _) in each(add, [Sum(3, tmp_path)], client)] == [4]
        stranger = write_certificates(tmp_path / "stranger")
        address = client.scheduler.address
        for wrong in (None, stranger):
            with pytest.raises(ClusterUnavailable, match="no Dask scheduler answers at tls://"):
                done(add, [Sum(3, tmp_path)], Where(scheduler=address, certificates=wrong))
        assert [total for _, (total, _) in done(add, [Sum(4, tmp_path)], Where(scheduler=address, certificates=files))] == [5]


def test_certificates_that_cannot_be_used_are_said_so(tmp_path):
    files = write_certificates(tmp_path)
    with pytest.raises(RequestError, match=r"the key for TLS is not there: no file .*absent\.pem"):
        cluster.security(replace(files, key=tmp_path / "absent.pem"))
    files.authority.write_text("not a certificate")
    with pytest.raises(RequestError, match="must be PEM files that fit together"):
        cluster.security(files)
    other = write_certificates(tmp_path / "other")
    with pytest.raises(RequestError, match="must be PEM files that fit together"):
        cluster.security(replace(other, key=files.key))


@pytest.mark.slow
@pytest.mark.usefixtures("cache", "as_many_threads_as_a_worker")
def test_an_evaluation_shared_out_has_the_rows_of_one_that_is_not(tmp_path):
    tables = [tmp_path / "alone.parquet", tmp_path / "shared.parquet"]
    for path, place in zip(tables, ([], ["--workers", "2"]), strict=True):  # 21 images are two chunks
        assert command(["evaluate", "--limit", "21", "--conditions", "full", "--rows", str(path), *place]) == 0
    alone, shared = (pd.read_parquet(path) for path in tables)
    assert len(shared) == 21
    assert shared.equals(alone)


def test_an_evaluation_starts_no_worker_for_what_cannot_be(capsys, monkeypatch):
    started = []
    monkeypatch.setattr(cluster, "_local", lambda *asked: started.append(asked))
    assert command(["evaluate", "--limit", "1", "--workers", "2"]) == 2
    assert "at least 2" in capsys.readouterr().err
    assert started == []


def test_a_scheduler_that_does_not_answer_is_said_and_costs_2(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "ANSWER", 0.5)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: nobody else gets the port
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        assert command(["sweep", "--scheduler", address, "--out", str(tmp_path / "s")]) == 2
    assert f"no Dask scheduler answers at {address}" in capsys.readouterr().err
    assert command(["sweep", "--scheduler", "nonsense://here", "--out", str(tmp_path / "s")]) == 2
    assert "no Dask scheduler answers at nonsense://here" in capsys.readouterr().err


def test_workers_must_be_there_and_run_the_same_software(tmp_path, monkeypatch):
    with connected(Where(workers=1)) as client:
        address = client.scheduler.address
        monkeypatch.setattr(cluster, "__version__", "0.0.7")
        with pytest.raises(ClusterUnavailable, match=r"run havir_explorer .*, this is 0\.0\.7; install the same one there"):
            done(add, [Sum(1, tmp_path)], Where(scheduler=address))
        client.cluster.scale(0)
        client.cluster.sync(client.cluster._correct_state)
        monkeypatch.setattr(cluster, "ANSWER", 0.5)
        with pytest.raises(ClusterUnavailable, match=f"the scheduler at {address} has no worker; start some with: dask worker"):
            done(add, [Sum(1, tmp_path)], Where(scheduler=address))


def test_a_slurm_job_is_one_worker_with_what_was_asked_for(own_cache, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    asked = Slurm(jobs=3, partition="gpu", account="vision", walltime="04:00:00", memory="40GB", cores=8, gpus=1, extra=("--qos=long",))
    with slurm.slurm_cluster(asked) as made:
        script = made.job_script().splitlines()
    directives = {line.removeprefix("#SBATCH ") for line in script if line.startswith("#SBATCH")}
    assert directives >= {"-J havir", "-p gpu", "-A vision", "-n 1", "--cpus-per-task=8", "--mem=38G", "-t 04:00:00", "--gres=gpu:1", "--qos=long"}
    assert f"-e {own_cache / 'slurm'}/havir-%J.err" in directives
    assert "export OMP_NUM_THREADS=8" in script
    assert "export DASK_DISTRIBUTED__WORKER__MEMORY__PAUSE=False" in script
    assert f"{sys.executable} -m distributed.cli.dask_worker" in script[-1]
    assert "--nthreads 1 " in script[-1]
    with slurm.slurm_cluster(Slurm()) as made:
        assert not [line for line in made.job_script().splitlines() if line.startswith(("#SBATCH -p", "#SBATCH -A", "#SBATCH --gres"))]


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """Write commands of SLURM's that say what they are told to."""

    def write(**scripts):
        for name, script in scripts.items():
            (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
            (tmp_path / name).chmod(0o700)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    return write


def test_a_job_that_slurm_refuses_is_said_at_once(own_cache, commands, tmp_path):
    commands(sbatch="echo 'allocation failure: Invalid partition name specified' >&2; exit 1")
    with pytest.raises(ClusterUnavailable, match=r"SLURM does not take such a job \(allocation failure: Invalid partition name specified\)"):
        done(add, [Sum(1, tmp_path)], Where(slurm=Slurm(partition="gpus")))


@pytest.mark.timeout(60)
def test_jobs_that_end_before_their_workers_come_are_said(own_cache, commands, tmp_path, monkeypatch):
    monkeypatch.setattr(spread, "PATIENCE", 3)
    commands(sbatch=f"cat >/dev/null; echo $1 >>{tmp_path}/asked; echo Submitted batch job 7", squeue="echo 8", scancel="exit 0")
    with pytest.raises(ClusterUnavailable, match=f"no SLURM job is left and no worker came of them; look into their logs in {own_cache / 'slurm'}"):
        done(add, [Sum(1, tmp_path)], Where(slurm=Slurm(jobs=1)))
    assert (tmp_path / "asked").read_text().splitlines()[0] == "--test-only"


def test_a_job_that_waits_or_a_slurm_that_does_not_answer_is_waited_for(commands):
    made = SimpleNamespace(workers={0: SimpleNamespace(job_id="7"), 1: SimpleNamespace(job_id=None)})
    commands(squeue="echo 6; echo 7")
    assert slurm.any_left(made)
    commands(squeue="echo 6")
    assert not slurm.any_left(made)
    commands(squeue="exit 1")
    assert slurm.any_left(made)


def test_workers_without_a_number_are_two(tmp_path, monkeypatch, capsys):
    started = []

    def start(workers, _protection):
        started.append(workers)
        msg = "no more than that"
        raise ClusterUnavailable(msg)

    monkeypatch.setattr(cluster, "_local", start)
    for asked in (["--workers"], ["--workers", "--seeds", "0"], ["--workers", "3"], ["--workers=1"]):
        assert command(["sweep", "--steps", "1", "--out", str(tmp_path / "s"), *asked]) == 2
    assert started == [2, 2, 3, 1]


def test_what_a_place_lacks_is_said_before_anything_is_read(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert command(["evaluate", "--dataset", "nowhere", "--workers"]) == 2
    assert "needs Dask, which is not installed" in capsys.readouterr().err


def test_without_slurm_or_dask_it_is_said_what_is_missing(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda _name: None)
    with pytest.raises(ClusterUnavailable, match="submitted with sbatch, which is not on this machine"):
        done(add, [], Where(slurm=Slurm()))
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ClusterUnavailable, match=r"needs Dask, which is not installed; install it with: pip install 'havir_explorer\[cluster\]'"):
        done(add, [], TWO)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--workers", "2", "--slurm"], "--workers, --scheduler and --slurm are three places to work; choose one"),
        (["--workers", "-1"], "--workers must be 0 (this process) or more; got -1"),
        (["--slurm-gpus", "1"], "describe SLURM jobs; give --slurm with them"),
        (["--slurm", "--slurm-jobs", "0"], "--slurm-jobs must be 1 or more; got 0"),
        (["--slurm", "--slurm-memory", "lots"], "--slurm-memory takes a memory such as 24GB; got 'lots'"),
        (["--slurm", "--slurm-time", "soon"], "--slurm-time takes a time such as 02:00:00; got 'soon'"),
        (["--workers", "2", "--tls-ca", "ca.pem"], "--tls-ca, --tls-cert and --tls-key go together"),
        (["--tls-ca", "ca.pem", "--tls-cert", "c.pem", "--tls-key", "k.pem"], "certificates protect what goes between processes"),
    ],
)
def test_places_that_cannot_be_are_refused(capsys, arguments, words):
    assert command(["sweep", "--out", "nowhere", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_dask_waits_until_it_is_asked_for():
    names = "dask", "distributed", "dask_jobqueue"
    code = f"import sys, havir_explorer.cli, havir_explorer.cluster, havir_explorer.spread; print([name for name in {names} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120).stdout.strip() == "[]"
