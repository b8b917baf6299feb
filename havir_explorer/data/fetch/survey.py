"""What an order comes to: what the bucket holds of it, what of that is in the folder already, and how much is still to come."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from havir_explorer.data import prepared
from havir_explorer.data.design import DESIGN
from havir_explorer.data.fetch import folder, pictures
from havir_explorer.data.fetch.bucket import Bucket, Remote
from havir_explorer.data.fetch.keys import BRICK_KEY, PICTURE_BYTES, Group, Order, Wanted, betas_key, most_pictures, plan
from havir_explorer.data.fetch.transfer import whole
from havir_explorer.errors import DataMissing


@dataclass(frozen=True)
class Item:
    """An object that is fetched whole.

    Parameters
    ----------
    group : str
    remote : Remote
    state : {'here', 'unchecked', 'lacking'}
        Fetched and checked before, or in the prepared store; of the right size but never checked; not or not wholly there.
    left : int
        Bytes still to come.
    """

    group: Group
    remote: Remote
    state: Literal["here", "unchecked", "lacking"]
    left: int


@dataclass(frozen=True)
class Some:
    """Pictures that are fetched out of the brick.

    Parameters
    ----------
    remote : Remote
        The brick.
    count : int
        Pictures the order comes to; the most it can come to where ``exact`` is False.
    lacking : int
        Of those, how many are not here.
    exact : bool
        False as long as the experiment's design is not here.
    """

    remote: Remote
    count: int
    lacking: int
    exact: bool


@dataclass(frozen=True)
class Survey:
    """What an order comes to in a folder.

    Parameters
    ----------
    order : Order
    root : Path
    items : tuple of Item
    some : Some, optional
        With ``images`` shared or needed.
    absent : tuple of str
        What the bucket lacks and the reader can do without.
    """

    order: Order
    root: Path
    items: tuple[Item, ...]
    some: Some | None
    absent: tuple[str, ...]

    @property
    def left(self) -> int:
        """Bytes still to come; with pictures that may be compressed in the bucket, at most."""
        return sum(item.left for item in self.items) + (self.some.lacking * PICTURE_BYTES if self.some else 0)

    @property
    def complete(self) -> bool:
        """True when there is nothing to do."""
        return all(item.state == "here" for item in self.items) and not (self.some and self.some.lacking)

    @property
    def room(self) -> int:
        """Bytes of disk needed meanwhile: pictures are written twice, first as they come and then into the local brick."""
        if self.some is None or not self.some.lacking:
            return self.left
        old = self.root / BRICK_KEY
        return self.left + self.some.lacking * PICTURE_BYTES + (old.stat().st_size if old.is_file() else 0)


def survey(bucket: Bucket, order: Order, root: Path) -> Survey:
    """Look what the bucket holds of an order, and what of it is in the folder.

    Raises
    ------
    DataMissing
        The bucket lacks something that a reader needs.
    SourceUnavailable
        It cannot be listed.
    """
    wanted = plan(order)
    found = bucket.listing([one.key for one in wanted])
    families = {one.family for one in wanted if one.family and one.key not in found}
    lacking = [one.key for one in wanted if one.key not in found and not one.optional]
    if lacking:
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        msg = f"{bucket.name} holds no {lacking[0]}{more}; choose another subject, session or preparation, or report that the data set has moved"
        raise DataMissing(msg)
    arrivals = folder.read_arrivals(root)
    there = [one for one in wanted if one.key in found and one.family not in families]
    stored = _prepared(order, root)
    files = [one for one in there if one.group != "pictures" or order.images == "all"]
    items = tuple(_item(one, found[one.key], root, arrivals.get(one.key), prepared=one.key in stored) for one in files)
    some = _some(found[BRICK_KEY], order, root) if order.images in {"shared", "needed"} else None
    alone = [one.key for one in wanted if one.key not in found and not one.family and one.group != "design"]
    return Survey(order, root, items, some, (*sorted(families), *alone))


def _prepared(order: Order, root: Path) -> set[str]:
    """Return the keys of sessions that the prepared store holds: their files may have been deleted."""
    return {betas_key(subject, order, number) for subject in order.subjects for number in prepared.sessions(root, subject, order.preparation)}


def _item(wanted: Wanted, remote: Remote, root: Path, arrival: folder.Arrival | None, *, prepared: bool) -> Item:
    file = root / remote.key
    deleted = prepared and not file.exists() and (arrival is None or arrival.etag == remote.etag)
    if deleted or folder.arrived(file, remote, arrival):
        return Item(wanted.group, remote, "here", 0)
    if file.is_file() and file.stat().st_size == remote.size:
        return Item(wanted.group, remote, "unchecked", 0)
    return Item(wanted.group, remote, "lacking", whole(remote, root).left)


def _some(remote: Remote, order: Order, root: Path) -> Some:
    if not (root / DESIGN).is_file():
        most = most_pictures(order)
        return Some(remote, most, most, exact=False)
    ids = pictures.wanted(root, order)
    return Some(remote, len(ids), len(pictures.lacking(root / BRICK_KEY, remote, ids)), exact=True)
