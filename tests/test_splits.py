"""The literature's test sets by their rules, on a design small enough to count by hand."""

from __future__ import annotations

import numpy as np
import pytest

from havir_explorer.data.design import SESSIONS, Design
from havir_explorer.data.splits import split_pictures
from havir_explorer.errors import RequestError

SHARED = 10


@pytest.fixture(scope="module")
def design() -> Design:
    """Subjects see the shared pictures under the same numbers; the first three of these fall due late."""
    rng = np.random.default_rng(3)
    n_images, n_trials = 10_000, 30_000
    late = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2])
    rest = rng.permutation(np.repeat(np.arange(3, n_images), 3))
    cut = {31: late[:1], 35: late[1:3], 38: late[3:]}  # picture 0: once in session 31; 1 and 2 after the 37th
    ordering, used = [], 0
    for session in range(1, 41):
        extra = cut.get(session, late[:0])
        ordering += [extra, rest[used : used + 750 - len(extra)]]
        used += 750 - len(extra)
    own = np.arange(SHARED, n_images)
    images = np.stack([np.concatenate([np.arange(SHARED) * 7, 100 + own + k * n_images]) for k in range(8)])
    design = Design(np.concatenate(ordering), images, np.arange(SHARED)[::-1] * 7)
    assert len(design.ordering) == n_trials
    return design


def test_all_shared_pictures_come_from_the_designs_list(design):
    assert split_pictures(design, "subj05", "shared1000").tolist() == list(range(0, 70, 7))


def test_the_older_set_leaves_out_what_came_after_the_37th_session(design):
    assert split_pictures(design, "subj01", "shared982").tolist() == [0, *range(21, 70, 7)]


def test_the_special_set_is_what_everyone_saw_three_times(design):
    expected = set(range(0, 70, 7))
    for number, sessions in enumerate(SESSIONS):
        ids = design.nsd_ids(f"subj{number + 1:02d}")[: sessions * 750].tolist()
        expected = {nsd_id for nsd_id in expected if ids.count(nsd_id) == 3}
    found = split_pictures(design, "subj01", "special515").tolist()
    assert found == sorted(expected)
    assert 0 < len(found) < SHARED - 2
    assert split_pictures(design, "subj08", "special515").tolist() == found


def test_an_unknown_split_lists_the_known(design):
    with pytest.raises(RequestError, match=r"no split is called 'test'; nearest: shared1000, shared982, special515"):
        split_pictures(design, "subj01", "test")
