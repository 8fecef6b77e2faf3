"""Long conversations by every kind of call, for connections that somebody moves meanwhile: restless.py ADDRESS PORT.

Prints a line for each kind, which is the same wherever the connections are. Both ends are here, or in processes
started from here.
"""

import array
import asyncio
import hashlib
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time

ADDRESS, PORT = sys.argv[1], int(sys.argv[2])
FAMILY = socket.AF_INET6 if ":" in ADDRESS else socket.AF_INET
LIMIT = 60.0
# How long each kind of conversation goes on at least, in seconds.
LONG = 2.5
CASES = []


def case(function):
    CASES.append(function)
    return function


LISTENER = socket.socket(FAMILY, socket.SOCK_STREAM)
LISTENER.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
LISTENER.bind((ADDRESS, PORT))
LISTENER.listen(200)


def pair():
    one = socket.create_connection((ADDRESS, PORT))
    other, _ = LISTENER.accept()
    for end in (one, other):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return one, other


def receive_all(one, length):
    data = b""
    while len(data) < length:
        part = one.recv(length - len(data))
        if not part:
            raise EOFError(f"an end after {len(data)} of {length}")
        data += part
    return data


def rounds(ask, answer):
    """Calls both in turn for a while, one beside the other; how they ended."""
    failures = []

    def keep_on():
        try:
            answer()
        except Exception as failure:
            failures.append(repr(failure))

    thread = threading.Thread(target=keep_on)
    thread.start()
    end, number = time.monotonic() + LONG, 0
    while number < 50 or time.monotonic() < end:
        ask(number)
        number += 1
    return thread, failures


def echo(one):
    while data := one.recv(4096):
        one.sendall(data)


def finish(thread, failures, one):
    one.shutdown(socket.SHUT_WR)
    rest = one.recv(10)
    thread.join(LIMIT)
    return f"{rest} {failures} {thread.is_alive()}"


def by_flag(one, length):
    return one.recv(length, socket.MSG_WAITALL)


def answering(one, other, receive):
    """As `converse`, with an end of the answers."""
    def answer():
        echo(other)
        other.shutdown(socket.SHUT_WR)

    def ask(number):
        word = b"%09d" % number
        one.sendall(word)
        found = receive(one, len(word))
        if found != word:
            raise ValueError(f"{found} for {word}")

    return finish(*rounds(ask, answer), one)


@case
def blocking_receive():
    one, other = pair()
    with one, other:
        return answering(one, other, receive_all)


@case
def wait_for_all():
    one, other = pair()
    with one, other:
        return answering(one, other, by_flag)


@case
def time_limits():
    one, other = pair()
    with one, other:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 50, 0))
        return answering(one, other, receive_all)


@case
def polled():
    one, other = pair()
    with one, other:
        one.setblocking(False)
        poller = select.poll()
        poller.register(one, select.POLLIN)

        def receive(end, length):
            data = b""
            while len(data) < length:
                if not poller.poll(LIMIT * 1000):
                    raise TimeoutError("poll")
                try:
                    data += end.recv(length - len(data))
                except BlockingIOError:
                    raise ValueError("poll says that there is something, and nothing is")
            return data

        return answering_nonblocking(one, other, receive)


def answering_nonblocking(one, other, receive):
    def answer():
        echo(other)
        other.shutdown(socket.SHUT_WR)

    def ask(number):
        word = b"%09d" % number
        one.send(word)
        found = receive(one, len(word))
        if found != word:
            raise ValueError(f"{found} for {word}")

    thread, failures = rounds(ask, answer)
    one.setblocking(True)
    return finish(thread, failures, one)


@case
def selected():
    one, other = pair()
    with one, other:
        one.setblocking(False)

        def receive(end, length):
            data = b""
            while len(data) < length:
                if not select.select([end], [], [], LIMIT)[0]:
                    raise TimeoutError("select")
                data += end.recv(length - len(data))
            return data

        return answering_nonblocking(one, other, receive)


def with_epoll(extra):
    one, other = pair()
    with one, other, select.epoll() as poller:
        one.setblocking(False)
        poller.register(one, select.EPOLLIN | extra)

        def receive(end, length):
            data = b""
            while len(data) < length:
                if not poller.poll(LIMIT):
                    raise TimeoutError("epoll")
                try:
                    while len(data) < length:
                        data += end.recv(length - len(data))
                except BlockingIOError:
                    pass
                if extra & select.EPOLLONESHOT:
                    poller.modify(one, select.EPOLLIN | extra)
            return data

        return answering_nonblocking(one, other, receive)


@case
def epoll_by_level():
    return with_epoll(0)


@case
def epoll_by_edge():
    return with_epoll(select.EPOLLET)


@case
def epoll_once():
    return with_epoll(select.EPOLLONESHOT)


@case
def many_by_asyncio():
    async def answer(reader, writer):
        while data := await reader.read(4096):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def one_of_many(number):
        reader, writer = await asyncio.open_connection(ADDRESS, PORT + 1)
        end, turn = time.monotonic() + LONG, 0
        while turn < 20 or time.monotonic() < end:
            word = bytes([number]) * (1 + turn * 37 % 5000)
            writer.write(word)
            if await reader.readexactly(len(word)) != word:
                raise ValueError(f"another answer in turn {turn} of {number}")
            turn += 1
        writer.write_eof()
        rest = await reader.read()
        writer.close()
        return rest

    async def all_of_them():
        server = await asyncio.start_server(answer, ADDRESS, PORT + 1)
        async with server:
            return await asyncio.gather(*(one_of_many(number) for number in range(40)))

    return sorted(set(asyncio.run(all_of_them())))


@case
def bulk():
    one, other = pair()
    with one, other, tempfile.TemporaryFile() as file:
        block = bytes(at * 7 % 251 for at in range(251)) * 1000
        file.write(block)
        file.flush()
        want, got = hashlib.sha256(), hashlib.sha256()
        lengths = [0, 0]

        def read():
            room = bytearray(100_000)
            while length := other.recv_into(room):
                got.update(room[:length])
                lengths[1] += length

        thread = threading.Thread(target=read)
        thread.start()
        end = time.monotonic() + 2 * LONG
        while time.monotonic() < end:
            at = 0
            while at < len(block):
                at += os.sendfile(one.fileno(), file.fileno(), at, len(block) - at)
            one.sendall(block)
            want.update(block)
            want.update(block)
            lengths[0] += 2 * len(block)
        one.shutdown(socket.SHUT_WR)
        thread.join(LIMIT)
        return f"{want.digest() == got.digest()} {lengths[0] == lengths[1]}"


@case
def signal_handlers_that_write():
    """A handler interrupts a read and writes on the same connection; the read goes on."""
    one, other = pair()
    with one, other:
        written = []

        def handle(_number, _frame):
            if len(written) < 300:
                one.send(b"beat ")
                written.append(1)

        signal.signal(signal.SIGALRM, handle)
        heard = []

        def answer():
            while data := other.recv(100):
                heard.append(data)
                other.sendall(data)
            other.shutdown(socket.SHUT_WR)

        thread = threading.Thread(target=answer)
        thread.start()
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.007)
        found = receive_all(one, 5 * 300)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        one.shutdown(socket.SHUT_WR)
        thread.join(LIMIT)
        return f"{found == b'beat ' * 300} {len(b''.join(heard))} {one.recv(10)}"


@case
def children_go_on():
    """A forked child answers on a connection that its parent had, each time another one."""
    results = set()
    end = time.monotonic() + LONG
    while time.monotonic() < end:
        one, other = pair()
        with one:
            one.sendall(b"before")
            child = os.fork()
            if child == 0:
                one.close()
                try:
                    for _ in range(30):
                        other.sendall(receive_all(other, 6))
                    os._exit(0)
                except BaseException as failure:
                    print(f"child: {failure!r}", file=sys.stderr, flush=True)
                    os._exit(1)
            other.close()
            for turn in range(30):
                time.sleep(0.003)
                if receive_all(one, 6) != b"before":
                    results.add("wrong answer")
                if turn < 29:
                    one.sendall(b"before")
            results.add(os.waitpid(child, 0)[1])
            results.add(one.recv(10) if one.recv(6, socket.MSG_PEEK) == b"" else "no end")
    return sorted(map(str, results))


CHILD = """
import socket, sys, time
one = socket.socket(fileno=int(sys.argv[1]))
while data := one.recv(100):
    one.sendall(data)
one.close()
"""


@case
def started_programs_go_on():
    one, other = pair()
    with one:
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(other.fileno())], pass_fds=[other.fileno()])
        other.close()
        wrong, end, number = 0, time.monotonic() + LONG, 0
        while number < 50 or time.monotonic() < end:
            word = b"%07d" % number
            one.sendall(word)
            wrong += receive_all(one, 7) != word
            number += 1
        one.shutdown(socket.SHUT_WR)
        rest = one.recv(10)
        return f"{wrong} {rest} {child.wait(LIMIT)}"


RECEIVER = """
import array, socket, sys
with socket.socket(socket.AF_UNIX, fileno=int(sys.argv[1])) as way:
    while True:
        _, control, _, _ = way.recvmsg(1, socket.CMSG_LEN(4))
        if not control:
            break
        one = socket.socket(fileno=array.array("i", control[0][2])[0])
        for _ in range(20):
            one.sendall(one.recv(5, socket.MSG_WAITALL))
        one.close()
"""


@case
def sent_descriptors_go_on():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    child = subprocess.Popen([sys.executable, "-c", RECEIVER, str(theirs.fileno())], pass_fds=[theirs.fileno()])
    theirs.close()
    results, end = set(), time.monotonic() + LONG
    while time.monotonic() < end:
        one, other = pair()
        with one:
            time.sleep(0.01)
            right = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [other.fileno()]))]
            ours.sendmsg([b"x"], right)
            other.close()
            for number in range(20):
                word = b"%05d" % number
                one.sendall(word)
                results.add(receive_all(one, 5) == word)
                time.sleep(0.002)
            results.add(one.recv(10))
    ours.close()
    return f"{sorted(map(str, results))} {child.wait(LIMIT)}"


@case
def lingering_close():
    results, end = set(), time.monotonic() + LONG
    while time.monotonic() < end:
        one, other = pair()
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 30))
        one.sendall(b"last words" * 1000)
        time.sleep(0.005)
        one.close()
        results.add(len(receive_all(other, 10_000)))
        results.add(other.recv(10))
        other.close()
    return sorted(map(str, results))


@case
def questions():
    one, other = pair()
    with one, other:
        results, end = set(), time.monotonic() + LONG
        names = one.getsockname(), one.getpeername()
        while time.monotonic() < end:
            results.add(one.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0)
            results.add(one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
            results.add(one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 8)[0])
            results.add((one.getsockname(), one.getpeername()) == names)
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            time.sleep(0.001)
        return sorted(map(str, results))


def main():
    chosen = sys.argv[3:]
    for function in CASES:
        if chosen and function.__name__ not in chosen:
            continue
        started = time.monotonic()
        try:
            result = function()
        except Exception as failure:
            result = f"failed: {failure!r}"
        print(f"{function.__name__}: {result}", flush=True)
        print(f"{function.__name__} {time.monotonic() - started:.2f} s", file=sys.stderr, flush=True)


main()
