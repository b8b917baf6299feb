"""The public bucket: listed and read in ranges, without credentials; what a server or a network answers becomes one sentence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any
from urllib.parse import urlsplit

import s3fs
from aiohttp import ClientError as TransportError
from botocore.exceptions import BotoCoreError, ClientError

from havir_explorer.errors import DataMissing, RequestError, SourceUnavailable

BUCKET = "natural-scenes-dataset"
REGION = "us-east-2"
RETRIES = 5
"""How often a request that the network broke is repeated at once, the pauses growing from a tenth of a second."""
CONNECTIONS = 16
HEADER_BLOCK = 2**16

Span = tuple[int, int]
"""First byte and the byte after the last."""


class Interrupted(SourceUnavailable):
    """The network broke, or the server was busy; another try may do."""


@dataclass(frozen=True)
class Remote:
    """An object as the bucket lists it.

    Parameters
    ----------
    key : str
    size : int
        Bytes.
    etag : str
        Without quotes; another one means another content.
    """

    key: str
    size: int
    etag: str


class Bucket:
    """The Natural Scenes Dataset's bucket, or a mirror of it, read anonymously.

    Parameters
    ----------
    endpoint : str
        Address of another S3 server that holds the same bucket; empty for the public one.

    Raises
    ------
    RequestError
        ``endpoint`` is not a web address.
    """

    def __init__(self, endpoint: str = "") -> None:
        if endpoint and (urlsplit(endpoint).scheme not in {"http", "https"} or not urlsplit(endpoint).netloc):
            msg = f"--endpoint takes the address of an S3 server, such as http://localhost:9000; got {endpoint!r}"
            raise RequestError(msg)
        self.name = f"{BUCKET} at {endpoint}" if endpoint else f"s3://{BUCKET}"
        self._files = s3fs.S3FileSystem(
            anon=True,
            endpoint_url=endpoint or None,
            client_kwargs={"region_name": REGION},
            config_kwargs={"retries": {"max_attempts": 0}, "max_pool_connections": CONNECTIONS, "s3": {"addressing_style": "path" if endpoint else "auto"}},
            use_listings_cache=False,
        )
        self._files.retries = RETRIES

    def listing(self, keys: Sequence[str]) -> dict[str, Remote]:
        """Look up objects, one request a folder.

        Parameters
        ----------
        keys : sequence of str

        Returns
        -------
        dict
            Key to object, of those that are there.

        Raises
        ------
        SourceUnavailable
            The server does not answer, or does not let its bucket be listed.
        """
        folders = list(dict.fromkeys(key.rpartition("/")[0] for key in keys))
        with ThreadPoolExecutor(max(1, min(CONNECTIONS, len(folders))), thread_name_prefix="havir-list") as pool:
            found = [remote for remotes in pool.map(self._folder, folders) for remote in remotes]
        wanted = set(keys)
        return {remote.key: remote for remote in found if remote.key in wanted}

    def _folder(self, folder: str) -> list[Remote]:
        try:
            with self._speaking(f"the list of {folder or 'its root'}, which tells sizes and checksums"):
                entries = self._files.ls(f"{BUCKET}/{folder}".rstrip("/"), detail=True)
        except DataMissing:
            return []
        return [_remote(entry) for entry in entries if entry["type"] == "file"]

    def read(self, remote: Remote, spans: Sequence[Span]) -> list[bytes]:
        """Read ranges of an object side by side.

        Raises
        ------
        DataMissing, SourceUnavailable
            The object is gone; it may not be read, the network broke, or less came than was asked for.
        """
        with self._speaking(remote.key):
            path = f"{BUCKET}/{remote.key}"
            found = self._files.cat_ranges([path] * len(spans), [start for start, _ in spans], [stop for _, stop in spans], on_error="raise")
        for content, (start, stop) in zip(found, spans, strict=True):
            if len(content) != stop - start:
                msg = f"{self.name} sent {len(content):,} of {stop - start:,} bytes of {remote.key}; run the same command again to go on"
                raise Interrupted(msg)
        return [bytes(content) for content in found]

    def unchanged(self, remote: Remote) -> bool:
        """Ask whether the object still is the one that was listed; raises as :meth:`read`."""
        with self._speaking(remote.key):
            now = _remote(self._files.info(f"{BUCKET}/{remote.key}", refresh=True))
        return now == remote

    @contextmanager
    def opened(self, remote: Remote) -> Iterator[IO[bytes]]:
        """Open an object as a file whose small blocks are kept, for reading its header here and there; raises as :meth:`read`."""
        with (
            self._speaking(remote.key),
            self._files.open(f"{BUCKET}/{remote.key}", "rb", cache_type="blockcache", block_size=HEADER_BLOCK, cache_options={"maxblocks": 4096}) as file,
        ):
            yield file

    @contextmanager
    def _speaking(self, what: str) -> Iterator[None]:
        try:
            yield
        except (DataMissing, SourceUnavailable):
            raise
        except FileNotFoundError as error:
            msg = f"{self.name} holds no {what}; choose another subject or session, or report that the data set has moved"
            raise DataMissing(msg) from error
        except PermissionError as error:
            msg = f"{self.name} denies access to {what}; it is public, so a proxy or the server given with --endpoint is in the way: ask whoever runs it"
            raise SourceUnavailable(msg) from error
        except (OSError, BotoCoreError, ClientError, TransportError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            msg = f"{self.name} cannot be read ({what}: {reason}); check the network and run the same command again: what has come so far is kept"
            raise Interrupted(msg) from error


def _remote(entry: dict[str, Any]) -> Remote:
    return Remote(str(entry["name"]).removeprefix(f"{BUCKET}/"), int(entry["size"]), str(entry["ETag"]).strip('"'))
