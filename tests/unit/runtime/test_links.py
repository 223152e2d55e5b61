"""Links between shards: what passes, and who is let in."""

import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pytest

from maml_dist.runtime import links
from maml_dist.runtime.links import INLINE, Door, Message, PeersLost
from tests.linked import KEY, at_once, linked


@pytest.mark.parametrize("host", [None, "127.0.0.1"])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_all_hear_all_in_the_order_of_ranks(size, host):
    members = linked(size, host)
    for numbers in (0, 7, INLINE // 4 - 10, INLINE, 2_000_000):

        def say(member, numbers=numbers):
            body = np.full(numbers, member.rank, np.float32)
            return member.all_gather(Message(f"I am {member.rank}".encode(), body))

        for heard in at_once(members, say):
            assert [message.head for message in heard] == [b"I am %d" % r for r in range(size)]
            for rank, message in enumerate(heard):
                got = np.frombuffer(message.body, np.float32)
                assert len(got) == numbers and (got == rank).all()
    for member in members:
        member.close()


def test_each_is_sent_its_own():
    members = linked(3, None)

    def say(member):
        others = {rank: Message(b"", np.array([member.rank, rank])) for rank in range(3)}
        del others[member.rank]
        return member.exchange(others, of=others)

    for rank, heard in enumerate(at_once(members, say)):
        got = {other: np.frombuffer(message.body, int).tolist() for other, message in heard.items()}
        assert got == {other: [other, rank] for other in range(3) if other != rank}


@pytest.mark.parametrize("numbers", [1, 3_000_000])
def test_whoever_waits_for_one_who_leaves_is_told(numbers):
    members = linked(3)
    threading.Timer(0.2, members[2].close).start()
    with ThreadPoolExecutor(2) as pool:
        told = [pool.submit(one.all_gather, Message(b"", np.zeros(numbers))) for one in members[:2]]
        for each in told:
            with pytest.raises(PeersLost, match="a shard of the group is gone"):
                each.result()


def test_one_who_waits_itself_can_be_made_to_leave():
    members = linked(2)
    threading.Timer(0.2, members[0].close).start()
    with pytest.raises(PeersLost):
        members[0].all_gather(Message(b"", np.zeros(1)))


def test_one_who_has_left_while_it_computed_sends_nothing_more():
    """What is large goes by a thread, of which there is none any more."""
    members = linked(3)
    members[0].close()
    with pytest.raises(PeersLost):
        members[0].all_gather(Message(b"", np.zeros(INLINE)))


def test_a_door_where_nobody_listens_is_no_error_of_the_system():
    with pytest.raises(PeersLost, match="no socket on 203.0.113.1"):
        Door("203.0.113.1")


def test_a_folder_whose_path_is_too_long_is_not_needed(tmp_path, monkeypatch):
    for folder in (tmp_path / ("x" * 100), tmp_path / "there is none"):
        if "x" in folder.name:
            folder.mkdir()
        monkeypatch.setattr("tempfile.tempdir", str(folder))
        door = Door(None)
        assert door.address[0] == "127.0.0.1"
        door.close()


def test_one_who_dribbles_keeps_nobody_waiting(monkeypatch):
    """A byte now and then is no proof: all of it is to be there in time."""
    monkeypatch.setattr(links, "PROVES_WITHIN", 0.5)
    doors = [Door("127.0.0.1") for _ in range(2)]
    addresses = [door.address for door in doors]
    dribbling = [socket.create_connection(addresses[0]) for _ in range(12)]
    ended = threading.Event()

    def dribble():
        while not ended.wait(0.1):
            for each in dribbling:
                with suppress(OSError):
                    each.send(b"x")

    thread = threading.Thread(target=dribble)
    thread.start()
    with ThreadPoolExecutor(2) as pool:
        met = [pool.submit(doors[rank].meet, rank, addresses, KEY) for rank in (0, 1)]
        assert [each.result(timeout=10).size for each in met] == [2, 2]
    ended.set()
    thread.join()


def test_a_stranger_is_not_let_in_nor_waited_for(monkeypatch):
    monkeypatch.setattr(links, "PROVES_WITHIN", 0.3)
    monkeypatch.setattr(links, "MEETS_WITHIN", 10.0)
    doors = [Door("127.0.0.1") for _ in range(2)]
    addresses = [door.address for door in doors]
    silent = socket.create_connection(addresses[0])
    wrong = socket.create_connection(addresses[0])
    wrong.sendall(b"x" * 500)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(doors[0].meet, 0, addresses, KEY)
        members = [pool.submit(doors[1].meet, 1, addresses, KEY).result(), first.result()]
    assert [sorted(member._sockets) for member in members] == [[0], [1]]
    wrong.settimeout(2)
    silent.settimeout(2)
    wrong.recv(32)
    silent.recv(32)
    for stranger in (silent, wrong):  # they were asked to prove themselves, and turned away
        with suppress(ConnectionResetError):
            assert stranger.recv(1) == b""


def test_one_with_another_key_is_not_let_in(monkeypatch):
    monkeypatch.setattr(links, "MEETS_WITHIN", 1.0)
    with pytest.raises(PeersLost, match="no link to"):
        linked(2, keys=[KEY, b"another"])


def test_a_door_knows_whom_it_opens_to():
    """An impostor in a shard's place, that does not know the key, is told nothing."""
    impostor = socket.create_server(("127.0.0.1", 0))
    address = impostor.getsockname()[:2]
    door = Door("127.0.0.1")

    def pretend():
        visitor = impostor.accept()[0]
        visitor.sendall(b"n" * 32)
        visitor.recv(200)
        visitor.sendall(b"p" * 32)

    thread = threading.Thread(target=pretend)
    thread.start()
    with pytest.raises(PeersLost, match="does not know the key"):
        door.meet(1, [address, door.address], KEY)
    thread.join()
