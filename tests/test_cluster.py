"""Many tasks on several workers: each done once in the result, whatever is lost on the way; and the sweep that needs them."""

from __future__ import annotations

import os

import pytest
from cluster_tasks import Sum, add, refuse

from havir_explorer import cluster
from havir_explorer.cluster import Where, connected
from havir_explorer.errors import ClusterUnavailable, RequestError
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


def test_a_task_that_kills_every_worker_is_given_up_with_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "LOSSES", 1)
    with pytest.raises(ClusterUnavailable, match="2 workers were lost one after another with the same task"):
        done(add, [Sum(1, tmp_path, deaths=99)], Where(workers=1))
    assert (tmp_path / "1").read_text() == ".."


def test_a_mistake_found_by_a_worker_is_said_as_it_is_here(tmp_path):
    with pytest.raises(RequestError, match="there is no number 7"):
        done(refuse, [Sum(7, tmp_path)], Where(workers=1))
