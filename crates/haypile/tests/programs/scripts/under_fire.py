"""Programs that are killed, or whose service is, while they work: under_fire.py KIND ADDRESS PORT [UDP_PORT].

Kinds: prefork (six children accept on one listener and echo; those that die are replaced), udp (echoes datagrams),
client (asks an echo server again and again on a kept connection, on short ones and by datagrams, and compares every
byte). Errors are told as `error WHERE NAME`; a client's full turns as `turn NUMBER`, not more than fifty a second.
What ends a program that is not killed: `over WHERE NAME`, or `wrong ...` for bytes that nobody has sent.
"""

import errno
import faulthandler
import os
import random
import select
import signal
import socket
import sys
import time

KIND, ADDRESS, PORT = sys.argv[1], sys.argv[2], int(sys.argv[3])
CHILDREN = 6
OVER = 3
ROUNDS = 20


# A test that fails asks where everybody is.
faulthandler.register(signal.SIGUSR1)


def tell(*words):
    os.write(1, (" ".join(str(word) for word in words) + "\n").encode())


def name(error):
    if isinstance(error, TimeoutError):
        return "TIMEOUT"
    return errno.errorcode.get(error.errno, str(error)) if error.errno else type(error).__name__


def echo_all(accepting):
    while True:
        try:
            connection, _ = accepting.accept()
        except OSError as error:
            tell("over accept", name(error))
            os._exit(OVER)
        with connection:
            try:
                while block := connection.recv(1 << 16):
                    connection.sendall(block)
            except ConnectionError as error:
                tell("error echo", name(error))


def prefork():
    accepting = socket.create_server((ADDRESS, PORT), backlog=64)
    children = set()

    def start():
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            echo_all(accepting)
        children.add(child)

    def end(*_):
        for child in children:
            os.kill(child, signal.SIGTERM)
        os._exit(0)

    for _ in range(CHILDREN):
        start()
    signal.signal(signal.SIGTERM, end)
    tell("ready")
    while True:
        child, status = os.wait()
        children.discard(child)
        if os.WIFEXITED(status):
            end()
        start()


def udp():
    one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    one.bind((ADDRESS, PORT))
    tell("ready")
    while True:
        try:
            block, sender = one.recvfrom(1 << 16)
            one.sendto(block, sender)
        except OSError as error:
            tell("over udp", name(error))
            return


def contents(number, length):
    seed = number.to_bytes(8, "big")
    return (seed * (length // 8 + 1))[:length]


def expect(where, wanted, got):
    if wanted != got:
        tell("wrong", where, len(wanted), len(got))
        os._exit(1)


def exchange(connection, block):
    connection.sendall(block)
    got = b""
    while len(got) < len(block):
        part = connection.recv(1 << 16)
        if not part:
            raise ConnectionResetError(errno.ECONNRESET, "early end")
        got += part
    expect("stream", block, got)


def connect():
    connection = socket.create_connection((ADDRESS, PORT), timeout=50)
    # Blocked for ever but for what the service says: nobody else ends the wait.
    connection.settimeout(None)
    return connection


def ask_by_datagrams(one, number):
    """Until an answer comes; those to earlier questions are checked, too."""
    block = contents(number, 8 + random.randrange(3000))
    for _ in range(500):
        one.send(block)
        ready, _, _ = select.select([one], [], [], 0.1)
        while ready:
            got = one.recv(1 << 16)
            expect("datagram", contents(int.from_bytes(got[:8], "big"), len(got)), got)
            if got[:8] == block[:8]:
                expect("datagram", block, got)
                return
            ready, _, _ = select.select([one], [], [], 0)
        tell("lost", number)
    raise TimeoutError


def client():
    kept, datagrams, number, told = None, None, 0, 0
    where = "start"
    while True:
        number += 1
        try:
            where = "kept"
            if kept is None or number % ROUNDS == 0:
                if kept is not None:
                    kept.close()
                kept = connect()
            exchange(kept, contents(number, random.randrange(1, 20000)))
            if number % 4 == 0:
                where = "short"
                with connect() as short:
                    exchange(short, contents(number, random.randrange(1, 3000)))
            where = "datagram"
            if datagrams is None:
                datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                datagrams.connect((ADDRESS, int(sys.argv[4])))
            ask_by_datagrams(datagrams, number)
        except OSError as error:
            tell("error", where, name(error))
            for one in (kept, datagrams):
                if one is not None:
                    one.close()
            kept = datagrams = None
            time.sleep(0.01)
            continue
        now = time.monotonic()
        if now - told > 0.02:
            told = now
            tell("turn", number)


{"prefork": prefork, "udp": udp, "client": client}[KIND]()
