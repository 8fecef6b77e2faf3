"""A hostile application: uses Haypile's sockets and writes random bytes over all the memory that it shares with the
service, again and again. Words: seed, rounds, address and port of a server to talk to. It may well crash itself."""

import os
import random
import socket
import sys

seed, rounds, address, port = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
chance = random.Random(seed)


def shared_memory():
    """Start and length of every mapping that is shared and writable."""
    with open("/proc/self/maps") as maps:
        for line in maps:
            place, rights, _, _, _, *name = line.split()
            if rights.startswith("rw-s") and name and "memfd:" in name[0]:
                start, end = (int(half, 16) for half in place.split("-"))
                yield start, end - start


def make_sockets():
    listener = socket.socket()
    listener.bind((address, 0))
    listener.listen(16)
    listener.setblocking(False)
    sockets = [listener]
    for _ in range(20):
        one = socket.create_connection((address, port), 5)
        one.setblocking(False)
        sockets.append(one)
    return sockets


def poke(one):
    """Makes the library and the service look at what was written."""
    try:
        chance.choice([
            lambda: one.send(b"GET /page HTTP/1.1\r\nHost: x\r\n\r\n"),
            lambda: one.recv(100_000),
            lambda: one.accept(),
            lambda: one.shutdown(socket.SHUT_WR),
            lambda: one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
        ])()
    except OSError:
        pass


sockets = make_sockets()
memory = os.open("/proc/self/mem", os.O_RDWR)
regions = list(shared_memory())
if not regions:
    sys.exit("no shared memory found")
print("scribbling", flush=True)
for number in range(rounds):
    start, length = chance.choice(regions)
    # Most of what matters lies at the front of a region; the rest is sparse.
    reach = min(length, chance.choice([512, 4096, 65_536, 1 << 20, length]))
    size = chance.choice([1, 4, 8, 64, 512])
    offset = chance.randrange(0, max(1, reach - size)) & ~(min(size, 8) - 1)
    bits = chance.choice([bytes(size), b"\xff" * size, chance.randbytes(size)])
    try:
        os.pwrite(memory, bits, start + offset)
    except OSError:
        pass
    poke(chance.choice(sockets))
