"""What the socket calls answer in many situations, one line a situation: semantics.py ADDRESS PORT.

Run on the kernel's stack and on Haypile; the two outputs have to be the same. Lines hold nothing that depends on
addresses, timing or memory.
"""

import errno
import fcntl
import os
import select
import socket
import struct
import sys
import tempfile
import termios
import threading

ADDRESS, PORT = sys.argv[1], int(sys.argv[2])
FAMILY = socket.AF_INET6 if ":" in ADDRESS else socket.AF_INET
LIMIT = 10.0
BITS = {"IN": 1, "PRI": 2, "OUT": 4, "ERR": 8, "HUP": 16, "RDHUP": 0x2000}
CASES = []


def case(function):
    CASES.append(function)
    return function


def answer(function, *arguments):
    """What a call gave, or the name of its error."""
    try:
        return repr(function(*arguments))
    except OSError as error:
        return errno.errorcode.get(error.errno, type(error).__name__)


def names(bits):
    return "|".join(name for name, bit in BITS.items() if bits & bit) or "0"


def poll_now(one, wanted=0x2007):
    poller = select.poll()
    poller.register(one, wanted)
    found = poller.poll(0)
    return names(found[0][1]) if found else "nothing"


def wait(one, wanted):
    """Waits for an event that the other side causes."""
    poller = select.poll()
    poller.register(one, wanted)
    if not poller.poll(LIMIT * 1000):
        raise TimeoutError(f"no {names(wanted)} in {LIMIT} s")


def listener(port=PORT, backlog=16):
    one = socket.socket(FAMILY)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    one.bind((ADDRESS, port))
    one.listen(backlog)
    return one


class Pair:
    """A client, the connection accepted from it, and the listener."""

    def __enter__(self):
        self.listener = listener()
        self.client = socket.create_connection((ADDRESS, PORT), LIMIT)
        self.server, _ = self.listener.accept()
        self.client.settimeout(LIMIT)
        self.server.settimeout(LIMIT)
        return self

    def __exit__(self, *_):
        for one in (self.client, self.server, self.listener):
            one.close()

    def reset_by_server(self):
        self.server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.server.close()
        wait(self.client, select.POLLHUP)


@case
def fresh_socket():
    one = socket.socket(FAMILY)
    yield answer(one.getpeername)
    yield answer(one.recv, 1)
    yield answer(one.send, b"x")
    yield answer(one.shutdown, socket.SHUT_RDWR)
    yield answer(one.accept)
    yield poll_now(one)
    yield one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    yield one.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_STREAM
    yield one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    one.close()


@case
def bound_socket():
    one = socket.socket(FAMILY)
    one.bind((ADDRESS, PORT))
    yield one.getsockname()[1] == PORT
    yield answer(one.bind, (ADDRESS, PORT))
    yield answer(one.recv, 1)
    yield answer(one.accept)
    other = socket.socket(FAMILY)
    yield answer(other.bind, (ADDRESS, PORT))
    other.close()
    one.close()


@case
def port_zero():
    one = socket.socket(FAMILY)
    one.bind((ADDRESS, 0))
    yield one.getsockname()[1] > 0
    yield one.getsockname()[0] == ADDRESS
    one.close()


@case
def foreign_address():
    one = socket.socket(FAMILY)
    yield answer(one.bind, ("192.0.2.1" if FAMILY == socket.AF_INET else "2001:db8::1", PORT))
    one.close()


@case
def a_second_listener():
    first = listener()
    second = socket.socket(FAMILY)
    yield answer(second.bind, (ADDRESS, PORT))
    second.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    yield answer(second.bind, (ADDRESS, PORT))
    second.close()
    first.close()
    again = listener()
    yield "port free again"
    again.close()


@case
def listening_socket():
    one = listener()
    yield one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    yield poll_now(one)
    yield answer(one.recv, 1)
    yield answer(one.send, b"x")
    yield answer(one.getpeername)
    one.setblocking(False)
    yield answer(one.accept)
    one.settimeout(0.05)
    yield answer(one.accept)
    client = socket.create_connection((ADDRESS, PORT), LIMIT)
    wait(one, select.POLLIN)
    yield poll_now(one)
    server, peer = one.accept()
    yield peer[:2] == client.getsockname()[:2]
    yield server.getsockname()[:2] == client.getpeername()[:2]
    yield poll_now(one)
    for each in (client, server, one):
        each.close()


@case
def refused():
    one = socket.socket(FAMILY)
    one.settimeout(LIMIT)
    yield answer(one.connect, (ADDRESS, PORT))
    yield answer(one.getpeername)
    yield one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    one.close()


@case
def refused_without_blocking():
    one = socket.socket(FAMILY)
    one.setblocking(False)
    one.connect_ex((ADDRESS, PORT))
    wait(one, select.POLLOUT)
    yield poll_now(one)
    yield errno.errorcode.get(one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
    yield one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    one.close()


@case
def a_socket_after_refusal_can_connect():
    one = socket.socket(FAMILY)
    one.settimeout(LIMIT)
    yield answer(one.connect, (ADDRESS, PORT))
    other = listener()
    yield answer(one.connect, (ADDRESS, PORT))
    one.close()
    other.close()


@case
def connected_without_blocking():
    other = listener()
    one = socket.socket(FAMILY)
    one.setblocking(False)
    first = one.connect_ex((ADDRESS, PORT))
    yield first in (0, errno.EINPROGRESS)
    wait(one, select.POLLOUT)
    yield one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    yield errno.errorcode.get(one.connect_ex((ADDRESS, PORT)), 0)
    yield poll_now(one)
    yield answer(one.recv, 1)
    one.close()
    other.close()


@case
def connected_pair():
    with Pair() as pair:
        yield poll_now(pair.client), poll_now(pair.server)
        yield answer(pair.client.connect, (ADDRESS, PORT))
        yield answer(pair.client.bind, (ADDRESS, 0))
        pair.client.sendall(b"hello")
        wait(pair.server, select.POLLIN)
        yield poll_now(pair.server)
        yield struct.unpack("i", fcntl.ioctl(pair.server, termios.FIONREAD, bytes(4)))
        yield answer(pair.server.recv, 2, socket.MSG_PEEK)
        yield answer(pair.server.recv, 2)
        yield answer(pair.server.recv, 100)
        pair.server.setblocking(True)
        yield answer(pair.server.recv, 100, socket.MSG_DONTWAIT)
        yield answer(pair.server.send, b"")
        yield answer(pair.server.recv, 0)


@case
def waitall():
    with Pair() as pair:
        def later():
            pair.client.sendall(b"a" * 1000)
            wait(pair.client, select.POLLOUT)
            pair.client.sendall(b"b" * 1000)
        writer = threading.Thread(target=later)
        writer.start()
        pair.server.settimeout(None)
        got = pair.server.recv(2000, socket.MSG_WAITALL)
        writer.join()
        yield len(got), got[:1], got[-1:]


@case
def scattered():
    with Pair() as pair:
        yield pair.client.sendmsg([b"one", b"", b"two", b"three"])
        buffers = [bytearray(4), bytearray(0), bytearray(100)]
        wait(pair.server, select.POLLIN)
        count, ancillary, flags, peer = pair.server.recvmsg_into(buffers)
        yield count, bytes(buffers[0]), bytes(buffers[2][:count - 4]), ancillary, flags
        yield os.writev(pair.client.fileno(), [b"four", b"five"])
        wait(pair.server, select.POLLIN)
        yield os.readv(pair.server.fileno(), [bytearray(2), bytearray(20)])
        yield os.write(pair.client.fileno(), b"plain")
        wait(pair.server, select.POLLIN)
        yield os.read(pair.server.fileno(), 20)


@case
def from_a_file():
    with Pair() as pair, tempfile.TemporaryFile() as file:
        file.write(bytes(range(256)) * 40)
        file.flush()
        sent = os.sendfile(pair.client.fileno(), file.fileno(), 100, 5000)
        got = b""
        while len(got) < sent:
            got += pair.server.recv(10_000)
        yield sent, got == (bytes(range(256)) * 40)[100:5100]


@case
def end_of_the_peer():
    with Pair() as pair:
        pair.client.sendall(b"last words")
        pair.client.shutdown(socket.SHUT_WR)
        wait(pair.server, 0x2000)
        yield poll_now(pair.server)
        yield answer(pair.server.recv, 100)
        yield answer(pair.server.recv, 100)
        yield poll_now(pair.server)
        yield answer(pair.client.send, b"more")
        yield poll_now(pair.client)
        pair.server.sendall(b"answer")
        wait(pair.client, select.POLLIN)
        yield answer(pair.client.recv, 100)
        pair.server.close()
        wait(pair.client, select.POLLHUP)
        yield poll_now(pair.client)
        yield answer(pair.client.recv, 100)


@case
def end_of_reading():
    with Pair() as pair:
        pair.server.shutdown(socket.SHUT_RD)
        yield poll_now(pair.server)
        yield answer(pair.server.recv, 100)
        yield answer(pair.server.send, b"x")
        yield answer(pair.client.recv, 1)


@case
def end_of_both():
    with Pair() as pair:
        pair.server.shutdown(socket.SHUT_RDWR)
        yield answer(pair.server.recv, 100)
        yield answer(pair.server.send, b"x")
        wait(pair.client, 0x2000)
        yield poll_now(pair.client)
        yield answer(pair.client.recv, 100)


@case
def reset():
    with Pair() as pair:
        pair.reset_by_server()
        yield poll_now(pair.client)
        yield answer(pair.client.recv, 100)
        yield answer(pair.client.recv, 100)
        yield answer(pair.client.send, b"x")
        yield answer(pair.client.getpeername)
        yield pair.client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


@case
def reset_and_the_error_option():
    with Pair() as pair:
        pair.reset_by_server()
        yield errno.errorcode.get(pair.client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
        yield answer(pair.client.recv, 100)
        yield answer(pair.client.send, b"x")


@case
def reset_after_data():
    with Pair() as pair:
        pair.server.sendall(b"data")
        wait(pair.client, select.POLLIN)
        pair.reset_by_server()
        yield answer(pair.client.recv, 100)
        yield answer(pair.client.recv, 100)


@case
def close_with_unread_data_resets():
    with Pair() as pair:
        pair.client.sendall(b"unread")
        wait(pair.server, select.POLLIN)
        pair.server.close()
        wait(pair.client, select.POLLHUP)
        yield poll_now(pair.client)
        yield answer(pair.client.recv, 100)


@case
def writing_to_a_closed_peer():
    with Pair() as pair:
        pair.server.close()
        wait(pair.client, 0x2000)
        yield answer(pair.client.send, b"x")
        wait(pair.client, select.POLLHUP)
        yield answer(pair.client.send, b"x")
        yield answer(pair.client.recv, 1)


@case
def a_full_peer():
    with Pair() as pair:
        pair.client.setblocking(False)
        total = 0
        try:
            while True:
                total += pair.client.send(bytes(1 << 16))
        except BlockingIOError:
            pass
        pair.client.settimeout(0.05)
        # More may move from one side's memory to the other's.
        try:
            while True:
                total += pair.client.send(bytes(1 << 16))
        except TimeoutError:
            yield total > 65536, "time is over"
        got = 0
        while got < total:
            got += len(pair.server.recv(1 << 20))
        wait(pair.client, select.POLLOUT)
        yield poll_now(pair.client)


@case
def time_limits():
    with Pair() as pair:
        limit = struct.pack("ll", 0, 50_000)
        pair.server.settimeout(None)
        pair.server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        yield answer(pair.server.recv, 1)


@case
def options():
    with Pair() as pair:
        for level, name, value in [
            (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
            (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
            (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
            (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 7),
            (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
            (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 9000),
            (socket.IPPROTO_TCP, socket.TCP_CORK, 1),
        ]:
            before = pair.client.getsockopt(level, name)
            pair.client.setsockopt(level, name, value)
            yield before, pair.client.getsockopt(level, name)
        pair.client.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)
        yield len(pair.client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104))
        yield pair.client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)[0]
        yield answer(pair.client.getsockopt, socket.IPPROTO_TCP, 9999)
        yield answer(pair.client.setsockopt, socket.IPPROTO_TCP, 9999, 1)


@case
def options_pass_from_listener_to_connection():
    with listener() as one:
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        with socket.create_connection((ADDRESS, PORT), LIMIT):
            server, _ = one.accept()
            yield server.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            yield server.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            server.close()


@case
def copies_of_a_descriptor():
    with Pair() as pair:
        copy = pair.server.dup()
        pair.server.close()
        pair.client.sendall(b"to the copy")
        yield answer(copy.recv, 100)
        low = os.open("/dev/null", os.O_RDONLY)
        os.dup2(copy.fileno(), low)
        copy.close()
        pair.client.sendall(b"to the other")
        wait(low, select.POLLIN)
        yield os.read(low, 100)
        yield poll_now(pair.client)
        os.close(low)
        wait(pair.client, 0x2000)
        yield answer(pair.client.recv, 1)


@case
def a_child_keeps_it_open():
    with Pair() as pair:
        ready, go = os.pipe(), os.pipe()
        child = os.fork()
        if child == 0:
            pair.client.close()
            pair.listener.close()
            os.close(go[1])
            os.write(ready[1], b"x")
            os.read(go[0], 1)
            pair.server.sendall(b"from the child")
            os._exit(0)
        os.close(go[0])
        os.read(ready[0], 1)
        pair.server.close()
        yield poll_now(pair.client)
        os.write(go[1], b"x")
        yield answer(pair.client.recv, 100)
        os.waitpid(child, 0)
        wait(pair.client, 0x2000)
        yield answer(pair.client.recv, 100)
        for one in (go[1], *ready):
            os.close(one)


@case
def level_and_edge():
    with Pair() as pair:
        level, edge = select.epoll(), select.epoll()
        level.register(pair.server, select.EPOLLIN)
        edge.register(pair.server, select.EPOLLIN | select.EPOLLET)
        yield level.poll(0), edge.poll(0)
        pair.client.sendall(b"one")
        yield [names(bits) for _, bits in level.poll(LIMIT)]
        yield [names(bits) for _, bits in edge.poll(LIMIT)]
        yield [names(bits) for _, bits in level.poll(0)]
        yield edge.poll(0)
        pair.client.sendall(b"two")
        yield [names(bits) for _, bits in edge.poll(LIMIT)]
        while len(pair.server.recv(100, socket.MSG_PEEK)) < 6:
            pass
        yield pair.server.recv(100)
        yield level.poll(0)
        level.modify(pair.server, select.EPOLLIN | select.EPOLLONESHOT)
        pair.client.sendall(b"three")
        yield [names(bits) for _, bits in level.poll(LIMIT)]
        yield level.poll(0)
        level.modify(pair.server, select.EPOLLOUT)
        yield [names(bits) for _, bits in level.poll(LIMIT)]
        level.unregister(pair.server)
        yield level.poll(0)
        yield answer(level.unregister, pair.server)
        yield answer(edge.register, pair.server)
        pair.client.close()
        edge.modify(pair.server, select.EPOLLIN | select.EPOLLRDHUP)
        wait(pair.server, 0x2000)
        yield [names(bits) for _, bits in edge.poll(LIMIT)]


@case
def nested_epoll():
    with Pair() as pair:
        inner, outer = select.epoll(), select.epoll()
        inner.register(pair.server, select.EPOLLIN)
        outer.register(inner, select.EPOLLIN)
        yield outer.poll(0)
        pair.client.sendall(b"x")
        yield len(outer.poll(LIMIT)), len(inner.poll(LIMIT))
        pair.server.recv(1)
        yield inner.poll(0)


@case
def many_kinds_in_one_wait():
    with Pair() as pair:
        reader, writer = os.pipe()
        poller = select.poll()
        poller.register(reader, select.POLLIN)
        poller.register(pair.server, select.POLLIN)
        poller.register(pair.listener, select.POLLIN)
        yield len(poller.poll(0))
        os.write(writer, b"x")
        yield [number == reader for number, _ in poller.poll(LIMIT * 1000)]
        os.read(reader, 1)
        pair.client.sendall(b"x")
        yield [number == pair.server.fileno() for number, _ in poller.poll(LIMIT * 1000)]
        pair.server.recv(1)
        with socket.create_connection((ADDRESS, PORT), LIMIT):
            yield [number == pair.listener.fileno() for number, _ in poller.poll(LIMIT * 1000)]
        yield select.select([reader], [pair.client, writer], [], 0)[1] == [pair.client, writer]
        os.close(reader)
        os.close(writer)


@case
def a_close_wakes_nobody_else():
    with Pair() as pair:
        second = socket.create_connection((ADDRESS, PORT), LIMIT)
        other, _ = pair.listener.accept()
        other.close()
        wait(second, 0x2000)
        yield poll_now(pair.client), poll_now(pair.server)
        second.close()


@case
def a_blocked_reader_and_shutdown():
    with Pair() as pair:
        pair.server.settimeout(None)
        got = []
        reader = threading.Thread(target=lambda: got.append(answer(pair.server.recv, 1)))
        reader.start()
        pair.server.shutdown(socket.SHUT_RD)
        reader.join(LIMIT)
        yield reader.is_alive(), got


@case
def a_blocked_acceptor_and_shutdown():
    one = listener()
    got = []
    acceptor = threading.Thread(target=lambda: got.append(answer(one.accept)))
    acceptor.start()
    one.shutdown(socket.SHUT_RDWR)
    acceptor.join(LIMIT)
    yield acceptor.is_alive(), got
    one.close()


@case
def lowest_descriptor():
    before = os.open("/dev/null", os.O_RDONLY)
    os.close(before)
    one = socket.socket(FAMILY)
    yield one.fileno() == before
    one.close()
    with listener() as accepting:
        client = socket.create_connection((ADDRESS, PORT), LIMIT)
        lowest = os.open("/dev/null", os.O_RDONLY)
        os.close(lowest)
        server, _ = accepting.accept()
        yield server.fileno() == lowest
        yield os.get_inheritable(server.fileno()), server.getblocking()
        yield os.fstat(server.fileno()).st_mode & 0o170000 == 0o140000
        client.close()
        server.close()


def main():
    wanted = sys.argv[3:]
    for function in CASES:
        if wanted and function.__name__ not in wanted:
            continue
        try:
            for number, result in enumerate(function()):
                print(f"{function.__name__} {number}: {result}", flush=True)
        except (OSError, TimeoutError) as error:
            print(f"{function.__name__} stopped: {type(error).__name__} {error}", flush=True)


main()
