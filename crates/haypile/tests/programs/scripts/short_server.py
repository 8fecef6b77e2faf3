"""Short HTTP answers by several processes: short_server.py KIND ADDRESS PORT CHILDREN.

KIND is `prefork` (children made once, which all accept on the listener that they have inherited), `forking`
(socketserver's: a child for each connection, CHILDREN of them at a time at most) or `passing` (children made once, which
are sent their connections over unix sockets, and wait on these alone). The answer to `GET /N` is N
bytes of a pattern, and the end.
"""

import os
import signal
import socket
import socketserver
import sys

PATTERN = bytes(at * 7 % 251 for at in range(251))


class Answer(socketserver.StreamRequestHandler):
    def handle(self):
        _, path, _ = self.rfile.readline().split()
        while self.rfile.readline().strip():
            pass
        length = int(path[1:])
        head = b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % length
        self.wfile.write(head + (PATTERN * (length // len(PATTERN) + 1))[:length])


class Prefork(socketserver.TCPServer):
    """Every process of it accepts and answers one connection after the other."""

    allow_reuse_address = True
    request_queue_size = 1024

    def serve_in(self, children):
        for _ in range(children):
            if os.fork() == 0:
                while True:
                    self.handle_request()
        print("ready", flush=True)
        while True:
            signal.pause()


class Forking(socketserver.ForkingTCPServer):
    allow_reuse_address = True
    request_queue_size = 1024

    def serve_in(self, children):
        self.max_children = children
        print("ready", flush=True)
        self.serve_forever()


class Passing(socketserver.TCPServer):
    """One process accepts, others answer."""

    allow_reuse_address = True
    request_queue_size = 1024

    def serve_in(self, children):
        ends = []
        for _ in range(children):
            here, there = socket.socketpair()
            if os.fork() == 0:
                self.socket.close()
                while True:
                    _, numbers, _, _ = socket.recv_fds(there, 1, 1)
                    with socket.socket(fileno=numbers[0]) as connection:
                        try:
                            Answer(connection, None, self)
                        except Exception:
                            self.handle_error(connection, None)
            ends.append(here)
        print("ready", flush=True)
        while True:
            connection, _ = self.get_request()
            ends.append(ends.pop(0))
            socket.send_fds(ends[0], [b"x"], [connection.fileno()])
            connection.close()


def main():
    kind, address, port, children = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    servers = {"prefork": Prefork, "forking": Forking, "passing": Passing}
    servers[kind]((address, port), Answer).serve_in(children)


main()
