"""Accepts in vain, then with success, and says when: quiet_acceptor.py ADDRESS PORT MISSES HITS.

After "ready" and a signal (USR1) it calls accept and epoll_wait MISSES times for nothing and says "missed".
Then it answers HITS connections with what they sent, and says "hit".
"""

import select
import signal
import socket
import sys


def accept(listener):
    try:
        return listener.accept()[0]
    except BlockingIOError:
        return None


def miss(listener, poller, count):
    for _ in range(count):
        assert accept(listener) is None
        assert poller.poll(0) == []


def main():
    address, port, misses, hits = sys.argv[1], *map(int, sys.argv[2:])
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    listener = socket.create_server((address, port), backlog=1024)
    listener.setblocking(False)
    poller = select.epoll()
    poller.register(listener, select.EPOLLIN)
    miss(listener, poller, 1)
    print("ready", flush=True)
    signal.sigwait({signal.SIGUSR1})
    miss(listener, poller, misses)
    print("missed", flush=True)
    while hits > 0:
        poller.poll()
        while connection := accept(listener):
            with connection:
                connection.setblocking(True)
                connection.sendall(connection.recv(100))
            hits -= 1
    print("hit", flush=True)
    signal.sigwait({signal.SIGUSR1})


main()
