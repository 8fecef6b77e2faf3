"""Programs that are killed, or whose service is, while they work: under_fire.py KIND ADDRESS PORT [UDP_PORT|COUNT
[PATIENCE]].

Kinds: prefork (six children accept on one listener and echo; those that die are replaced), udp (echoes datagrams),
client (asks an echo server again and again on a kept connection, on short ones and by datagrams, and compares every
byte), doors (two children open and close listeners and UDP sockets at COUNT ports, echo what comes, and are replaced
when they die). Errors are told as `error WHERE NAME`; a client's full turns as `turn NUMBER`, not more than fifty a second.
A datagram that is not answered in PATIENCE seconds (0.1) is `lost NUMBER`, and sent again.
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
PATIENCE = float(sys.argv[5]) if len(sys.argv) > 5 else 0.1
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
    keep_children(CHILDREN, lambda: echo_all(accepting))


def udp():
    # With this it is attached to every server, wherever its home and that of its port are: what servers have can be
    # compared from one of its lives to the next.
    socket.create_server((ADDRESS, 0)).close()
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


class Doors:
    """Listeners and UDP sockets that come and go, all waited for at once. Both children open the same listeners."""

    CHANGES_S = 0.02

    def __init__(self, count):
        self.count, self.changes, self.told, self.step = count, 0, 0, "socket"
        self.waiting = select.epoll()
        self.listeners, self.datagrams, self.connections = {}, {}, {}

    def open(self, kind, port):
        one = socket.socket(socket.AF_INET, kind)
        try:
            self.step = "option"
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            self.step = "bind"
            one.bind((ADDRESS, port))
            if kind == socket.SOCK_STREAM:
                self.step = "listen"
                one.listen(16)
            self.step = "register"
            one.setblocking(False)
            self.waiting.register(one, select.EPOLLIN)
        except OSError:
            one.close()
            raise
        return one

    def change(self):
        port = PORT + random.randrange(self.count)
        kind = random.choice((socket.SOCK_STREAM, socket.SOCK_DGRAM))
        of_kind = self.listeners if kind == socket.SOCK_STREAM else self.datagrams
        for fd, one in list(of_kind.items()):
            if one.getsockname()[1] == port:
                del of_kind[fd]
                one.close()
                break
        else:
            one = self.open(kind, port)
            of_kind[one.fileno()] = one
        self.changes += 1

    def serve(self, fd):
        if fd in self.listeners:
            connection, _ = self.listeners[fd].accept()
            connection.setblocking(False)
            self.connections[connection.fileno()] = connection
            self.waiting.register(connection, select.EPOLLIN)
        elif fd in self.datagrams:
            block, sender = self.datagrams[fd].recvfrom(1 << 16)
            self.datagrams[fd].sendto(block, sender)
        elif fd in self.connections:
            block = self.connections[fd].recv(1 << 16)
            # A peer says no more than a buffer takes.
            if not block or self.connections[fd].send(block) < len(block):
                self.connections.pop(fd).close()

    def drop(self, fd):
        for of_kind in (self.listeners, self.datagrams, self.connections):
            if fd in of_kind:
                of_kind.pop(fd).close()

    def run(self):
        due = time.monotonic()
        while True:
            for fd, _ in self.waiting.poll(0.005):
                try:
                    self.serve(fd)
                except BlockingIOError:
                    pass
                except OSError as error:
                    # Peers end as they like; that of a listener or a UDP socket is told.
                    if fd not in self.connections:
                        tell("error", "door", name(error))
                    self.drop(fd)
            now = time.monotonic()
            if now < due:
                continue
            due = now + random.random() * self.CHANGES_S
            try:
                self.change()
            except OSError as error:
                tell("error", self.step, name(error))
            if now - self.told > 0.02:
                self.told = now
                tell("turn", self.changes)


def keep_children(count, work):
    """Those that die are replaced; one that ends by itself ends all."""
    children = set()

    def start():
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            work()
            os._exit(OVER)
        children.add(child)

    def end(*_):
        for child in children:
            os.kill(child, signal.SIGTERM)
        os._exit(0)

    for _ in range(count):
        start()
    signal.signal(signal.SIGTERM, end)
    tell("ready")
    while True:
        child, status = os.wait()
        children.discard(child)
        if os.WIFEXITED(status):
            end()
        start()


def doors():
    keep_children(2, lambda: Doors(int(sys.argv[4])).run())


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
        end = time.monotonic() + PATIENCE
        # What was asked twice is answered twice: the second one comes while the next is waited for.
        while select.select([one], [], [], max(0, end - time.monotonic()))[0]:
            got = one.recv(1 << 16)
            expect("datagram", contents(int.from_bytes(got[:8], "big"), len(got)), got)
            if got[:8] == block[:8]:
                expect("datagram", block, got)
                return
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
            if datagrams is None or number % ROUNDS == 0:
                if datagrams is not None:
                    datagrams.close()
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


{"prefork": prefork, "udp": udp, "client": client, "doors": doors}[KIND]()
