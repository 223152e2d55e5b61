"""Links: sockets between the shards of a run, over which they exchange what they have computed.

Within a machine they are Unix sockets in a folder that is this user's alone, else TCP; either end
proves that it knows the key of the group, which the shards were given through Ray. A round of two
shards takes 10 microseconds that way, where gloo takes 500 and a call of an actor 1,000.
"""

import hmac
import secrets
import shutil
import socket
import struct
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import numpy as np

MEETS_WITHIN = 60.0  # seconds for all of a group to be linked
PROVES_WITHIN = 5.0  # seconds for one who has connected to prove itself
VISITORS = 64  # who prove themselves at a time
NONCE, PROOF = 32, 32  # bytes
INLINE = 64 * 1024  # bytes that a socket's buffer takes while the other end sends as well
LOOK = 0.02  # seconds until it is looked who has proved itself
LONGEST = 90  # characters of a folder in which a Unix socket has its path
PREFIX = struct.Struct("!QQ")  # bytes of a message's head and of its body
RANK = struct.Struct("!I")
Address = str | tuple[str, int]  # of a Unix socket, or host and port


class PeersLost(Exception):
    """A shard of the group is gone, or the group is left."""


class Message(NamedTuple):
    """What a shard sends to all others: a few words, and numbers."""

    head: bytes
    body: np.ndarray | bytearray


@dataclass
class Traffic:
    """What has passed over the links of an actor, of all its groups."""

    sent: int = 0  # bytes
    waited: float = 0.0  # seconds in which it sent and waited for others


class Door:
    """Where a shard waits for those of higher rank."""

    def __init__(self, host: str | None) -> None:
        """`host`: the address that others reach this machine by; None: they are on it.

        Raises:
            PeersLost: this machine does not listen there.
        """
        self._folder = None
        if host is None and (folder := _folder()):
            self._folder = folder
            self.address: Address = str(folder / "door")
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.bind(self.address)
            self._socket.listen()
            return
        host = host or "127.0.0.1"
        try:
            family = socket.getaddrinfo(host, None)[0][0]
            self._socket = socket.create_server((host, 0), family=family)
        except OSError as error:
            raise PeersLost(f"no socket on {host}: {error}") from None
        self.address = host, self._socket.getsockname()[1]

    def close(self) -> None:
        """Let nobody in any more; from any thread: who waits at it fails."""
        with suppress(OSError):  # it is closed
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)

    def meet(self, rank: int, addresses: list[Address], key: bytes) -> "Links":
        """Connect to those of lower rank, wait for those of higher, and close the door.

        Raises:
            PeersLost: not all are there in time.
        """
        end = time.monotonic() + MEETS_WITHIN
        met: dict[int, socket.socket] = {}
        try:
            for other in range(rank):
                met[other] = _connected(addresses[other], rank, key)
            visitors = self._visitors(key, end)
            while len(met) < len(addresses) - 1:
                who, visitor = next(visitors)
                if rank < who < len(addresses) and who not in met:
                    met[who] = visitor
                else:
                    visitor.close()
        except OSError as error:
            for each in met.values():
                each.close()
            missing = sorted({*range(len(addresses))} - {rank, *met})
            names = ", ".join(str(addresses[other]) for other in missing)
            raise PeersLost(f"no link to {names}: {error}") from None
        finally:
            self.close()
        return Links(rank, met)

    def _visitors(self, key: bytes, end: float) -> Iterator[tuple[int, socket.socket]]:
        """Who comes and proves to know the key; one who takes its time keeps nobody waiting."""
        proving: dict[Future[int | None], socket.socket] = {}
        pool = ThreadPoolExecutor(VISITORS, thread_name_prefix="door")
        self._socket.settimeout(LOOK)
        try:
            while True:
                try:
                    visitor = self._socket.accept()[0]
                    proving[pool.submit(_admitted, visitor, key)] = visitor
                except TimeoutError:
                    if time.monotonic() > end:
                        raise
                for done in [each for each in proving if each.done()]:
                    visitor, who = proving.pop(done), done.result()
                    if who is not None:
                        yield who, visitor
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _folder() -> Path | None:
    """One for a Unix socket, which is this user's alone; None where its path would be too long."""
    try:
        folder = Path(tempfile.mkdtemp(prefix="maml_dist-"))
    except OSError:
        return None
    if len(str(folder)) < LONGEST:
        return folder
    folder.rmdir()
    return None


class Links:
    """The sockets of a shard to all others of its group."""

    def __init__(self, rank: int, sockets: Mapping[int, socket.socket]) -> None:
        self.rank, self.size = rank, len(sockets) + 1
        self.traffic = Traffic()
        self._sockets = dict(sorted(sockets.items()))
        for each in self._sockets.values():
            each.settimeout(None)
            each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * INLINE)
            if each.family != socket.AF_UNIX:
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._senders = ThreadPoolExecutor(max(1, len(sockets)), thread_name_prefix="links")

    def all_gather(self, mine: Message) -> list[Message]:
        """What each has to say, in the order of ranks.

        Raises:
            PeersLost: somebody is gone.
        """
        others = dict.fromkeys(self._sockets, mine)
        got = self.exchange(others, of=others)
        return [mine if rank == self.rank else got[rank] for rank in range(self.size)]

    def exchange(
        self,
        given: Mapping[int, Message],
        *,
        of: Iterable[int],
        into: Mapping[int, memoryview] = MappingProxyType({}),
    ) -> dict[int, Message]:
        """Send some of the others a message; returns what some of them send.

        `into`: where bodies go of which the size is known.

        Raises:
            PeersLost: somebody is gone.
        """
        began, sent = time.monotonic(), 0
        try:
            sending = []
            for rank, message in given.items():
                body = bytes_of(message.body)
                head = PREFIX.pack(len(message.head), len(body)) + message.head
                sent += len(head) + len(body)
                if len(head) + len(body) <= INLINE:
                    self._sockets[rank].sendall(b"".join((head, body)))
                else:  # both ends send at once: neither buffer may have to take it all
                    sending.append(self._senders.submit(_sent, self._sockets[rank], head, body))
            got = {rank: _received(self._sockets[rank], into.get(rank)) for rank in of}
            for each in sending:
                each.result()
        except (OSError, RuntimeError) as error:  # RuntimeError: this one has left meanwhile
            self.close()
            raise PeersLost(f"a shard of the group is gone ({error})") from None
        self.traffic.sent += sent
        self.traffic.waited += time.monotonic() - began
        return got

    def close(self) -> None:
        """Leave: whoever waits for this shard fails, and so does this one where it waits itself."""
        for each in self._sockets.values():
            try:
                each.shutdown(socket.SHUT_RDWR)
            except OSError:  # it is closed
                continue
        self._senders.shutdown(wait=False)


def bytes_of(numbers: np.ndarray | bytearray) -> memoryview:
    """Those that lie in one piece, where they are."""
    if not len(numbers):
        return memoryview(bytearray())
    return memoryview(cast(Any, numbers)).cast("B")


def _sent(to: socket.socket, head: bytes, body: memoryview) -> None:
    to.sendall(head)
    to.sendall(body)


def _received(by: socket.socket, into: memoryview | None) -> Message:
    words, numbers = PREFIX.unpack(_read(by, PREFIX.size))
    head = bytes(_read(by, words))
    if into is None:
        return Message(head, _read(by, numbers))
    if len(into) != numbers:
        raise ConnectionError(f"{numbers} bytes, not {len(into)}")
    _fill(by, into)
    return Message(head, bytearray())


def _read(by: socket.socket, size: int, *, until: float | None = None) -> bytearray:
    """So many bytes, `until` then."""
    buffer = bytearray(size)
    _fill(by, memoryview(buffer), until=until)
    return buffer


def _fill(by: socket.socket, view: memoryview, *, until: float | None = None) -> None:
    got = 0
    while got < len(view):
        if until is not None:
            by.settimeout(max(0.001, until - time.monotonic()))
        count = by.recv_into(view[got:], 0, socket.MSG_WAITALL)
        if not count:
            raise ConnectionError("its socket is closed")
        got += count


def _connected(address: Address, rank: int, key: bytes) -> socket.socket:
    """A socket to one of lower rank, who has proved to know the key, as this one has."""
    if isinstance(address, str):
        made = socket.socket(socket.AF_UNIX)
        made.settimeout(MEETS_WITHIN)
        made.connect(address)
    else:
        made = socket.create_connection(address, timeout=MEETS_WITHIN)
    theirs, mine, who = bytes(_read(made, NONCE)), secrets.token_bytes(NONCE), RANK.pack(rank)
    made.sendall(mine + who + _proof(key, b"comes", theirs, mine, who))
    if not hmac.compare_digest(bytes(_read(made, PROOF)), _proof(key, b"is here", theirs, mine)):
        raise ConnectionError("who answers does not know the key")
    return made


def _admitted(visitor: socket.socket, key: bytes) -> int | None:
    """The rank of one who has connected; None, and turned away, where it does not know the key."""
    visitor.settimeout(PROVES_WITHIN)
    until = time.monotonic() + PROVES_WITHIN
    mine = secrets.token_bytes(NONCE)
    try:
        visitor.sendall(mine)
        said = bytes(_read(visitor, NONCE + RANK.size + PROOF, until=until))
        theirs, who, proof = said[:NONCE], said[NONCE:-PROOF], said[-PROOF:]
        if hmac.compare_digest(proof, _proof(key, b"comes", mine, theirs, who)):
            visitor.sendall(_proof(key, b"is here", mine, theirs))
            return int(RANK.unpack(who)[0])
    except OSError:
        pass
    visitor.close()
    return None


def _proof(key: bytes, *said: bytes) -> bytes:
    return hmac.digest(key, b"".join(said), "sha256")
