"""Children that share a listening socket: prefork_server.py ADDRESS PORT CHILDREN.

A client says "echo N" and is sent its next N bytes back until it ends, or "give N" and is sent N bytes of
a pattern and the end.
"""

import os
import signal
import socket
import sys

PATTERN = bytes(at * 7 % 251 for at in range(251))


def serve(connection):
    stream = connection.makefile("rwb")
    word, number = stream.readline().split()
    if word == b"give":
        count = int(number)
        stream.write((PATTERN * (count // len(PATTERN) + 1))[:count])
        stream.flush()
        return
    while data := stream.read(int(number)):
        stream.write(data)
        stream.flush()


def child(listener):
    while True:
        try:
            connection, _ = listener.accept()
        except ConnectionError:
            continue
        with connection:
            # Idle clients of one kind must not keep the others waiting.
            if os.fork() == 0:
                listener.close()
                try:
                    serve(connection)
                except (ConnectionError, ValueError):
                    pass
                os._exit(0)


def main():
    address, port, children = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    listener = socket.create_server((address, port), backlog=1024)
    for _ in range(children - 1):
        if os.fork() == 0:
            break
    else:
        print("ready", flush=True)
    child(listener)


main()
