"""Echo servers of every make: echo_server.py KIND ADDRESS PORT.

Each sends back what it gets and closes when its peer has. Kinds: fork, thread, select, poll, epoll, edge (epoll,
edge-triggered), asyncio, blocking (prefork: four children accept on one inherited listener), inetd (a child program
with the connection as its standard input and output), exec (the connection survives exec by its number), pass (a
second process gets the connection by SCM_RIGHTS).
"""

import asyncio
import os
import select
import signal
import socket
import socketserver
import subprocess
import sys

KIND, ADDRESS, PORT = sys.argv[1], sys.argv[2], int(sys.argv[3])
FAMILY = socket.AF_INET6 if ":" in ADDRESS else socket.AF_INET
BLOCK = 1 << 16


def listener():
    one = socket.socket(FAMILY, socket.SOCK_STREAM)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    one.bind((ADDRESS, PORT))
    one.listen(64)
    return one


def ready():
    print("ready", flush=True)


def echo(connection):
    while True:
        block = connection.recv(BLOCK)
        if not block:
            return
        connection.sendall(block)


class Handler(socketserver.BaseRequestHandler):
    """Echoes one connection."""

    def handle(self):
        echo(self.request)


def by_socketserver(mixin):
    class Server(mixin, socketserver.TCPServer):
        """A server of the wanted mix."""

        address_family = FAMILY
        allow_reuse_address = True
        request_queue_size = 64

    with Server((ADDRESS, PORT), Handler) as server:
        ready()
        server.serve_forever(poll_interval=60)


class Selecting:
    """One loop for select and poll."""

    def __init__(self, poller):
        self.poller = poller
        self.waiting = {}

    def wait(self):
        wanted = [(number, bool(out)) for number, (_, out) in self.waiting.items()]
        if self.poller is None:
            readers = [number for number, writes in wanted if not writes]
            writers = [number for number, writes in wanted if writes]
            readable, writable, _ = select.select(readers, writers, [])
            return readable + writable
        for number, writes in wanted:
            self.poller.register(number, select.POLLOUT if writes else select.POLLIN)
        ready_now = [number for number, _ in self.poller.poll()]
        return ready_now

    def serve(self):
        accepting = listener()
        accepting.setblocking(False)
        self.waiting[accepting.fileno()] = (accepting, b"")
        ready()
        while True:
            for number in self.wait():
                if number == accepting.fileno():
                    self.accept(accepting)
                else:
                    self.turn(number)

    def accept(self, accepting):
        try:
            connection, _ = accepting.accept()
        except BlockingIOError:
            return
        connection.setblocking(False)
        self.waiting[connection.fileno()] = (connection, b"")

    def turn(self, number):
        connection, out = self.waiting[number]
        try:
            if out:
                out = out[connection.send(out):]
            else:
                out = connection.recv(BLOCK)
                if not out:
                    raise ConnectionResetError
            self.waiting[number] = (connection, out)
        except BlockingIOError:
            pass
        except ConnectionError:
            del self.waiting[number]
            if self.poller is not None:
                self.poller.unregister(number)
            connection.close()


def by_epoll(edge):
    poller, accepting, known = select.epoll(), listener(), {}
    accepting.setblocking(False)
    mode = select.EPOLLET if edge else 0
    poller.register(accepting, select.EPOLLIN | mode)
    ready()
    while True:
        for number, _ in poller.poll():
            if number == accepting.fileno():
                accept_all(poller, accepting, known, mode)
            elif not epoll_turn(number, known, edge, poller, mode):
                connection, _ = known.pop(number)
                connection.close()


def accept_all(poller, accepting, known, mode):
    while True:
        try:
            connection, _ = accepting.accept()
        except BlockingIOError:
            return
        connection.setblocking(False)
        known[connection.fileno()] = (connection, b"")
        poller.register(connection, select.EPOLLIN | (select.EPOLLOUT if mode else 0) | mode)


def epoll_turn(number, known, edge, poller, mode):
    """Moves bytes of one connection; false when it has ended."""
    while True:
        connection, out = known[number]
        try:
            if out:
                out = out[connection.send(out):]
            else:
                out = connection.recv(BLOCK)
                if not out:
                    return False
            known[number] = (connection, out)
        except BlockingIOError:
            return True
        except ConnectionError:
            return False
        if not edge:
            poller.modify(number, select.EPOLLOUT if out else select.EPOLLIN)
            return True


def by_asyncio():
    async def converse(reader, writer):
        while block := await reader.read(BLOCK):
            writer.write(block)
            await writer.drain()
        writer.close()

    async def main():
        server = await asyncio.start_server(converse, ADDRESS, PORT)
        ready()
        await server.serve_forever()

    asyncio.run(main())


def by_prefork():
    accepting = listener()
    children = []
    for _ in range(4):
        child = os.fork()
        if child == 0:
            while True:
                connection, _ = accepting.accept()
                with connection:
                    echo(connection)
        children.append(child)
    accepting.close()
    signal.signal(signal.SIGTERM, lambda *_: [os.kill(child, signal.SIGTERM) for child in children])
    ready()
    for child in children:
        os.waitpid(child, 0)


def by_inetd():
    accepting = listener()
    ready()
    children = []
    while True:
        connection, _ = accepting.accept()
        children.append(subprocess.Popen(["cat"], stdin=connection, stdout=connection))
        connection.close()
        children = [child for child in children if child.poll() is None]


CONTINUED = """
import os, socket, sys
connection = socket.socket(fileno=int(sys.argv[1]))
while block := connection.recv(65536):
    connection.sendall(block)
"""


def by_exec():
    accepting = listener()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    ready()
    while True:
        connection, _ = accepting.accept()
        if os.fork() == 0:
            accepting.close()
            os.set_inheritable(connection.fileno(), True)
            os.execv(sys.executable, [sys.executable, "-c", CONTINUED, str(connection.fileno())])
        connection.close()


def by_passing():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    if os.fork() == 0:
        ours.close()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        while True:
            _, numbers, _, _ = socket.recv_fds(theirs, 1, 1)
            connection = socket.socket(fileno=numbers[0])
            if os.fork() == 0:
                echo(connection)
                os._exit(0)
            connection.close()
    theirs.close()
    accepting = listener()
    ready()
    while True:
        connection, _ = accepting.accept()
        socket.send_fds(ours, [b"x"], [connection.fileno()])
        connection.close()


def main():
    kinds = {
        "fork": lambda: by_socketserver(socketserver.ForkingMixIn),
        "thread": lambda: by_socketserver(socketserver.ThreadingMixIn),
        "select": lambda: Selecting(None).serve(),
        "poll": lambda: Selecting(select.poll()).serve(),
        "epoll": lambda: by_epoll(edge=False),
        "edge": lambda: by_epoll(edge=True),
        "asyncio": by_asyncio,
        "prefork": by_prefork,
        "inetd": by_inetd,
        "exec": by_exec,
        "pass": by_passing,
    }
    kinds[KIND]()


main()
