"""Files at an address, fetched whole into a folder of bounded size.

A read that takes too long is an error like any other, so nothing waits for ever; what fails is tried again, some times and after a while.
"""

import hashlib
import http.client
import os
import selectors
import shlex
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from filelock import FileLock, Timeout

from crossvit.data.shards.index import SUFFIX, ShardIndex, index_of, index_places
from crossvit.errors import UserError
from crossvit.redaction import redact

_CHUNK = 2**20
_AGAIN = (408, 425, 429)  # besides 500 and above: another try may help
_PIPE = "pipe:"
_UNFINISHED = (".part", ".try")


class Remote(NamedTuple):
    """A file at an address, and what is known of it."""

    url: str
    samples: int
    size: int | None = None  # bytes
    sha256: str | None = None

    @property
    def shown(self) -> str:
        """For messages: without a query, which may hold a signature, and without passwords."""
        return redact(self.url if self.url.startswith(_PIPE) else self.url.partition("?")[0])

    @property
    def name(self) -> str:
        """Its name without folders."""
        return self.url if self.url.startswith(_PIPE) else Path(urllib.parse.urlsplit(self.url).path).name


class FetchError(Exception):
    """Why a file could not be had, in a few words and without secrets. `final`: another try would not help."""

    def __init__(self, reason: str, final: bool = False) -> None:
        super().__init__(redact(reason))
        self.final = final


class Opened:
    """A tar that stays readable after its file is gone.

    Args:
        tar: the file.
        lacking: why its end is lacking; "" where it is whole.

    Raises:
        OSError: the tar cannot be read, or its index cannot be written.
    """

    def __init__(self, tar: Path, lacking: str = "") -> None:
        self.index: ShardIndex = index_of(tar, tar.parent)
        self.lacking = lacking
        self.index.offsets  # noqa: B018 (maps the file)
        self.file = os.open(tar, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "file"):
            os.close(self.file)


class Fetcher:
    """How files are fetched.

    Args:
        timeout: seconds that one read may take.
        retries: further tries after the first.
        backoff: seconds before the second try; the wait doubles with each.
        commands: for each scheme but http and https a command that writes a file at `{url}` to its standard output.

    Raises:
        UserError: a value out of range.
    """

    def __init__(self, timeout: float, retries: int, backoff: float, commands: Mapping[str, str]) -> None:
        if timeout <= 0 or retries < 0 or backoff < 0:
            raise UserError(
                f"data.timeout={timeout} must be more than 0, data.retries={retries} and data.backoff={backoff} not negative."
            )
        for scheme, command in commands.items():
            if "{url}" not in command:
                raise UserError(f"data.commands.{scheme}={command} must name {{url}}.")
        self.timeout = timeout
        self.retries = retries
        self.backoff = backoff
        self.commands = dict(commands)

    def check(self, url: str) -> None:
        """Raises UserError for an address that cannot be fetched from."""
        scheme = urllib.parse.urlsplit(url).scheme
        if not url.startswith(_PIPE) and scheme not in ("http", "https", *self.commands):
            known = ", ".join(["http", "https", "pipe", *self.commands])
            raise UserError(
                f"{url or 'data.root'} is no address of a kind that is known ({known}): data.commands.<kind> names "
                "a command that writes {url} to its output; shards in a folder are read by data=shards."
            )

    def fetch(self, remote: Remote, path: Path) -> None:
        """Write the file to `path`. Where no try succeeds, the longest that came is left there.

        Raises:
            FetchError: why the last try failed.
            OSError: the disk.
        """
        part = path.with_name(f"{path.name}.try")
        wait = self.backoff
        try:
            for attempt in range(self.retries + 1):
                try:
                    self._try(remote, part)
                    os.replace(part, path)
                    return
                except FetchError as error:
                    if part.stat().st_size >= (path.stat().st_size if path.exists() else 0):
                        os.replace(part, path)
                    if error.final or attempt == self.retries:
                        raise
                time.sleep(wait)
                wait *= 2
        finally:
            part.unlink(missing_ok=True)

    def _try(self, remote: Remote, part: Path) -> None:
        digest, length = hashlib.sha256(), 0
        with open(part, "wb") as file, closing(self._chunks(remote.url)) as chunks:
            for chunk in chunks:
                file.write(chunk)
                digest.update(chunk)
                length += len(chunk)
                if remote.size is not None and length > remote.size:
                    break
        if remote.size is not None and length != remote.size:
            raise FetchError(f"{'more than ' * (length > remote.size)}{length:,} of {remote.size:,} bytes came")
        if remote.sha256 is not None and digest.hexdigest() != remote.sha256:
            os.truncate(part, 0)  # which of its bytes are wrong is not known
            raise FetchError("its SHA-256 is not that of the manifest")

    def _chunks(self, url: str) -> Iterator[bytes]:
        if url.startswith(_PIPE):
            return self._output(url.removeprefix(_PIPE), shell=True)
        scheme = urllib.parse.urlsplit(url).scheme
        if scheme in self.commands:
            return self._output(
                [word.replace("{url}", url) for word in shlex.split(self.commands[scheme])], shell=False
            )
        return self._body(url)

    def _body(self, url: str) -> Iterator[bytes]:
        length = 0
        try:
            with urllib.request.urlopen(url, timeout=self.timeout) as response:  # the limit holds for each read
                expected = response.headers.get("Content-Length")
                while chunk := response.read1(_CHUNK):
                    length += len(chunk)
                    yield chunk
        except urllib.error.HTTPError as error:
            final = error.code < 500 and error.code not in _AGAIN
            raise FetchError(f"the server says {error.code} {error.reason}", final) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise FetchError(self._reason(error)) from None
        if expected is not None and expected.isdigit() and length < int(expected):
            raise FetchError(f"cut off: {length:,} of {int(expected):,} bytes came")

    def _output(self, command: str | list[str], shell: bool) -> Iterator[bytes]:
        with tempfile.TemporaryFile() as complaints:
            try:
                process = subprocess.Popen(
                    command,
                    shell=shell,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=complaints,
                    start_new_session=True,  # so that all it has started can be ended
                )
            except OSError as error:
                raise FetchError(f"{error.filename}: {error.strerror}", final=True) from None
            try:
                yield from self._read(process.stdout)
                status = process.wait(self.timeout)
            except (TimeoutError, subprocess.TimeoutExpired) as error:
                raise FetchError(self._reason(error)) from None
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.stdout.close()
                process.wait()
            if status:
                complaints.seek(0)
                last = complaints.read(_CHUNK).decode(errors="replace").strip().rpartition("\n")[2]
                raise FetchError(f"the command ends with status {status}{': ' * bool(last)}{last}")

    def _read(self, pipe: BinaryIO) -> Iterator[bytes]:
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            while True:
                if not selector.select(self.timeout):
                    raise TimeoutError
                chunk = os.read(pipe.fileno(), _CHUNK)
                if not chunk:
                    return
                yield chunk

    def _reason(self, error: Exception) -> str:
        inner = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(inner, TimeoutError | subprocess.TimeoutExpired):
            return f"nothing came for {self.timeout:g} s"
        return str(inner) or type(inner).__name__


class Cache:
    """Tars from elsewhere in a folder that all processes of a machine share: each is fetched by one of them.

    Args:
        folder: holds `<hash>-<name>` with its index.
        limit: bytes of all tars; those used longest ago go first. None: no limit.
        fetcher: see Fetcher.
    """

    def __init__(self, folder: Path, limit: int | None, fetcher: Fetcher) -> None:
        self.folder = folder
        self.limit = limit
        self.fetcher = fetcher

    def path(self, remote: Remote) -> Path:
        """Where a tar lies once it is here; another size or hash in the manifest is another file."""
        known = f"{remote.url}\0{remote.size}\0{remote.sha256}"
        name = "".join(c if c.isalnum() or c in "-_." else "_" for c in remote.name)[-60:]
        return self.folder / f"{hashlib.sha256(known.encode('utf-8', 'surrogateescape')).hexdigest()[:16]}-{name}"

    def open(self, remote: Remote) -> Opened:
        """The tar, fetched where it is not here; of one that cannot be had whole, what came.

        Raises:
            FetchError: nothing of it could be had.
            OSError: the folder or the disk.
        """
        path = self.path(remote)
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(_lock(path)):
            if path.is_file():
                os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))  # used now; the index knows the other time
                return Opened(path)
            with _temporary(path) as part:
                try:
                    self.fetcher.fetch(remote, part)
                except FetchError as error:
                    if not part.is_file() or not part.stat().st_size:
                        raise
                    return Opened(part, str(error))
                os.replace(part, path)
            opened = Opened(path)
        self._make_room(path)
        return opened

    def _make_room(self, newest: Path) -> None:
        if self.limit is None:
            return
        with FileLock(_lock(self.folder / "room")):
            found = []
            for path in self.folder.iterdir():
                if path.suffix in _UNFINISHED:
                    _discard(path)
                if path.suffix in (SUFFIX, ".lock", *_UNFINISHED):
                    continue
                with suppress(FileNotFoundError):
                    state = path.stat()
                    found.append((state.st_atime_ns, state.st_size, path))
            total = sum(size for _, size, _ in found)
            for _, size, path in sorted(found):
                if total <= self.limit:
                    return
                if path != newest and _remove(path):
                    total -= size


def fetched_text(fetcher: Fetcher, url: str) -> str:
    """The content of a small file. Raises FetchError."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        fetcher.fetch(Remote(url, 0), path)
        return path.read_text(encoding="utf-8", errors="surrogateescape")


def _remove(path: Path) -> bool:
    """Whether a tar could be removed: one that is just being opened stays."""
    try:
        with FileLock(_lock(path), timeout=0):
            for file in (path, _index(path)):
                file.unlink(missing_ok=True)
    except Timeout:
        return False
    return True


def _discard(path: Path) -> None:
    """Remove what a process that was ended left unfinished."""
    tar = path.with_name(path.name.removesuffix(".try").removesuffix(".part"))
    with suppress(Timeout), FileLock(_lock(tar), timeout=0):
        path.unlink(missing_ok=True)


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A name beside `path`; what lies there at the end goes, with its index."""
    part = path.with_name(f"{path.name}.part")
    try:
        part.unlink(missing_ok=True)  # of a process that was killed
        yield part
    finally:
        for file in (part, _index(part)):
            file.unlink(missing_ok=True)


def _index(path: Path) -> Path:
    return index_places(path, path.parent)[0]


def _lock(path: Path) -> Path:
    return path.with_name(f"{path.name}.lock")
