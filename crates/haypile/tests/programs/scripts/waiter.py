"""Waits on one socket in one way and tells how the wait ended: waiter.py WAY ADDRESS PORT.

Ways that connect: recv, poll, epoll, select, send (until the peer takes no more). Ways that listen: accept,
accept-epoll, and stubborn-poll, stubborn-epoll: these wait once more after they have heard that the service is gone,
and tell how much processor time that took. Prints `waiting` before the wait and `ended: WHY` after it.
"""

import select
import socket
import sys
import time

WAY, ADDRESS, PORT = sys.argv[1], sys.argv[2], int(sys.argv[3])


def connected():
    return socket.create_connection((ADDRESS, PORT))


def listening():
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    one.bind((ADDRESS, PORT))
    one.listen()
    return one


def say_waiting():
    print("waiting", flush=True)


def by_recv():
    one = connected()
    say_waiting()
    return f"recv gave {one.recv(1)!r}"


def by_send():
    one = connected()
    say_waiting()
    while True:
        one.sendall(bytes(1 << 16))


def by_poll():
    one = connected()
    poller = select.poll()
    poller.register(one, select.POLLIN)
    say_waiting()
    _, bits = poller.poll()[0]
    return f"poll gave {bits:#x}, then recv gave {one.recv(1)!r}"


def by_epoll():
    one = connected()
    poller = select.epoll()
    poller.register(one, select.EPOLLIN)
    say_waiting()
    _, bits = poller.poll()[0]
    return f"epoll gave {bits:#x}, then recv gave {one.recv(1)!r}"


def by_select():
    one = connected()
    say_waiting()
    select.select([one], [], [])
    return f"select returned, then recv gave {one.recv(1)!r}"


def by_accept():
    one = listening()
    say_waiting()
    one.accept()
    return "accept gave a connection"


def by_accept_epoll():
    one = listening()
    one.setblocking(False)
    poller = select.epoll()
    poller.register(one, select.EPOLLIN)
    say_waiting()
    _, bits = poller.poll()[0]
    one.accept()
    return f"epoll gave {bits:#x}, then accept gave a connection"


def stubbornly(poller):
    one = listening()
    one.setblocking(False)
    poller.register(one, select.POLLIN)
    say_waiting()
    poller.poll()
    try:
        one.accept()
    except OSError as error:
        heard = error
    # The error is told once; the service is known to be over within two seconds.
    before, limit = time.process_time(), time.monotonic() + 4
    while time.monotonic() < limit:
        # Milliseconds, or seconds.
        if poller.poll(limit - time.monotonic() if isinstance(poller, select.epoll) else 4000):
            break
    used_ms = (time.process_time() - before) * 1000
    return f"accept said {heard}, and then waits used {used_ms:.0f} ms"


WAYS = {
    "recv": by_recv,
    "send": by_send,
    "poll": by_poll,
    "epoll": by_epoll,
    "select": by_select,
    "accept": by_accept,
    "accept-epoll": by_accept_epoll,
    "stubborn-poll": lambda: stubbornly(select.poll()),
    "stubborn-epoll": lambda: stubbornly(select.epoll()),
}

try:
    result = WAYS[WAY]()
except OSError as error:
    result = f"{type(error).__name__} {error}"
print(f"ended: {result}", flush=True)
