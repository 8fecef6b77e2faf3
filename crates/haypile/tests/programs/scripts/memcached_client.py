"""A memcached client that checks every byte: memcached_client.py ADDRESS PORT."""

import hashlib
import random
import socket
import sys
import threading
import time

ADDRESS, PORT = sys.argv[1], int(sys.argv[2])
FAMILY = socket.AF_INET6 if ":" in ADDRESS else socket.AF_INET
LIMIT = 20.0
SIZES = [0, 1, 2, 100, 1447, 1448, 1449, 4096, 16_384, 65_536, 300_000, 1_000_000]


def value_of(key, size):
    return random.Random(key).randbytes(size)


def talk(number, failures):
    """Stores and fetches values of every size on one connection, first one by one, then pipelined."""
    try:
        with socket.create_connection((ADDRESS, PORT), LIMIT) as one, one.makefile("rb") as answers:
            for size in SIZES:
                key = f"key{number}-{size}"
                value = value_of(key, size)
                one.sendall(f"set {key} 0 0 {size}\r\n".encode() + value + b"\r\n")
                assert answers.readline() == b"STORED\r\n"
            asked = b"".join(b"get key%d-%d\r\n" % (number, size) for size in SIZES)
            one.sendall(asked)
            for size in SIZES:
                key = f"key{number}-{size}"
                head = answers.readline().split()
                assert head == [b"VALUE", key.encode(), b"0", str(size).encode()], head
                got = answers.read(size)
                assert hashlib.md5(got).digest() == hashlib.md5(value_of(key, size)).digest(), key
                assert answers.readline() == b"\r\n" and answers.readline() == b"END\r\n"
    except (OSError, AssertionError) as error:
        failures.append(f"client {number}: {type(error).__name__} {error}")


def rate():
    """Small questions on one connection for half a second."""
    count = 0
    with socket.create_connection((ADDRESS, PORT), LIMIT) as one, one.makefile("rb") as answers:
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            one.sendall(b"incr none 1\r\n")
            assert answers.readline() == b"NOT_FOUND\r\n"
            count += 1
    return count * 2


def main():
    failures = []
    clients = [threading.Thread(target=talk, args=(number, failures)) for number in range(8)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    if failures:
        sys.exit("\n".join(failures))
    print(f"{8 * len(SIZES)} values, all the same; {rate()} questions a second")


main()
