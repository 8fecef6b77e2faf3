"""What the socket calls answer in many situations, one line a situation: semantics.py ADDRESS PORT.

Run on the kernel's stack and on Haypile; the two outputs have to be the same. Lines hold nothing that depends on
addresses, timing or memory.
"""

import ctypes
import errno
import fcntl
import os
import select
import signal
import socket
import struct
import sys
import tempfile
import termios
import threading
import time

ADDRESS, PORT = sys.argv[1], int(sys.argv[2])
FAMILY = socket.AF_INET6 if ":" in ADDRESS else socket.AF_INET
LIMIT = 40.0
BITS = {"IN": 1, "PRI": 2, "OUT": 4, "ERR": 8, "HUP": 16, "RDHUP": 0x2000}
CASES = []
LIBRARY = ctypes.CDLL(None, use_errno=True)


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


def turns():
    """Waits until whoever carries the packets has done so a few times."""
    with socket.socket(FAMILY, socket.SOCK_DGRAM) as one:
        one.bind((ADDRESS, 0))
        one.settimeout(LIMIT)
        for _ in range(3):
            one.sendto(b"turn", one.getsockname())
            one.recv(10)


def fill(one):
    """Writes until nothing moves any more, for a while and for some turns of the other side; how much."""
    one.setblocking(False)
    poller = select.poll()
    poller.register(one, select.POLLOUT)
    total, quiet = 0, 0
    while quiet < 2:
        if not poller.poll(150):
            turns()
            quiet += 1
            continue
        quiet = 0
        try:
            total += one.send(bytes(1 << 16))
        except BlockingIOError:
            pass
    return total


def library(name, *arguments):
    """What a function of the C library gave, or the name of its error."""
    result = getattr(LIBRARY, name)(*arguments)
    return errno.errorcode[ctypes.get_errno()] if result < 0 else result


def linger(one, time_s):
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, time_s))


def has_arrived(one, count):
    """Waits until so many bytes can be read."""
    end = time.monotonic() + LIMIT
    while struct.unpack("i", fcntl.ioctl(one, termios.FIONREAD, bytes(4)))[0] < count:
        if time.monotonic() > end:
            raise TimeoutError(f"no {count} bytes in {LIMIT} s")


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
def the_last_close_resets_if_told_so():
    with Pair() as pair:
        ready, go = os.pipe(), os.pipe()
        child = os.fork()
        if child == 0:
            pair.client.close()
            pair.listener.close()
            os.close(go[1])
            os.write(ready[1], b"x")
            os.read(go[0], 1)
            os._exit(0)
        os.close(go[0])
        os.read(ready[0], 1)
        linger(pair.server, 0)
        pair.server.close()
        yield poll_now(pair.client)
        os.write(go[1], b"x")
        os.waitpid(child, 0)
        wait(pair.client, select.POLLHUP)
        yield answer(pair.client.recv, 100)
        for one in (go[1], *ready):
            os.close(one)


@case
def connections_inherit_lingering():
    with listener() as one:
        linger(one, 0)
        with socket.create_connection((ADDRESS, PORT), LIMIT) as client:
            server, _ = one.accept()
            yield struct.unpack("ii", server.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8))
            server.close()
            wait(client, select.POLLHUP)
            yield answer(client.recv, 100)


@case
def connections_inherit_time_limits():
    with listener() as one:
        for name in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            one.setsockopt(socket.SOL_SOCKET, name, struct.pack("ll", 3, 0))
        with socket.create_connection((ADDRESS, PORT), LIMIT) as client:
            server, _ = one.accept()
            for name in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                yield struct.unpack("ll", server.getsockopt(socket.SOL_SOCKET, name, 16))
            server.close()


@case
def data_for_whom_both_ways_are_shut():
    for ways in ((socket.SHUT_RDWR,), (socket.SHUT_RD, socket.SHUT_WR), (socket.SHUT_WR, socket.SHUT_RD)):
        with Pair() as pair:
            for way in ways:
                pair.server.shutdown(way)
            wait(pair.client, 0x2000)
            yield answer(pair.client.send, b"for nobody")
            wait(pair.client, select.POLLHUP)
            yield poll_now(pair.client), answer(pair.client.send, b"x"), answer(pair.client.recv, 10)
            yield poll_now(pair.server), answer(pair.server.recv, 10), answer(pair.server.recv, 10)


@case
def a_close_waits_for_a_slow_peer():
    for blocking in (True, False):
        with Pair() as pair:
            fill(pair.server)
            linger(pair.server, 1)
            pair.server.setblocking(blocking)
            before = time.monotonic()
            pair.server.close()
            yield time.monotonic() - before > 0.9


@case
def a_close_waits_no_longer_than_needed():
    with Pair() as pair:
        total = fill(pair.server)
        linger(pair.server, 100)
        got = []

        def read():
            while len(got) == 0 or got[-1]:
                got.append(len(pair.client.recv(1 << 16)))

        reader = threading.Thread(target=read)
        reader.start()
        before = time.monotonic()
        pair.server.close()
        yield time.monotonic() - before < 50
        reader.join()
        yield sum(got) == total


@case
def the_low_mark_of_receiving():
    with Pair() as pair:
        pair.server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 10)
        yield pair.server.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT)
        set_ = select.epoll()
        set_.register(pair.server, select.EPOLLIN)
        pair.client.sendall(b"12345")
        has_arrived(pair.server, 5)
        yield poll_now(pair.server), set_.poll(0)
        pair.client.sendall(b"67890")
        yield [names(bits) for _, bits in set_.poll(LIMIT)]
        yield poll_now(pair.server), pair.server.recv(100)
        pair.client.sendall(b"123")
        has_arrived(pair.server, 3)
        pair.server.setblocking(False)
        yield poll_now(pair.server), pair.server.recv(100)
        pair.server.setblocking(True)
        # (Linux never ends a wait that has taken some of the bytes below the mark already.)
        writer = threading.Thread(target=lambda: pair.client.sendall(b"1234567890"))
        writer.start()
        yield pair.server.recv(100)
        writer.join()
        pair.client.sendall(b"1")
        has_arrived(pair.server, 1)
        yield pair.server.recv(1)
        pair.client.sendall(b"last")
        pair.client.shutdown(socket.SHUT_WR)
        wait(pair.server, 0x2000)
        yield poll_now(pair.server), pair.server.recv(100), pair.server.recv(100)


@case
def more_to_come():
    with Pair() as pair:
        pair.client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield pair.client.send(b"one ", socket.MSG_MORE)
        yield pair.client.getsockopt(socket.IPPROTO_TCP, socket.TCP_CORK)
        yield pair.client.send(b"two")
        wait(pair.server, select.POLLIN)
        yield pair.server.recv(100)
        # Held back, but not for ever.
        yield pair.client.send(b"three", socket.MSG_MORE)
        wait(pair.server, select.POLLIN)
        yield pair.server.recv(100)
        yield pair.client.send(b"four", socket.MSG_MORE)
        pair.client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        wait(pair.server, select.POLLIN)
        yield pair.server.recv(100)
        yield pair.client.send(b"five", socket.MSG_MORE)
        pair.client.shutdown(socket.SHUT_WR)
        wait(pair.server, select.POLLIN)
        yield pair.server.recv(100)


@case
def bad_pointers():
    with Pair() as pair:
        pair.client.sendall(b"x")
        wait(pair.server, select.POLLIN)
        number = pair.server.fileno()
        for pointer in (None, 1, 2**64 - 4096):
            yield library("recv", number, ctypes.c_void_p(pointer), 10, 0)
            yield library("write", number, ctypes.c_void_p(pointer), ctypes.c_size_t(10))
        yield pair.server.recv(10)


def in_a_blocking_call(thread):
    """Waits until a thread is in a system call that is not the futex of Python's own lock."""
    end = time.monotonic() + LIMIT
    while time.monotonic() < end:
        with open(f"/proc/self/task/{thread}/syscall", "rb") as file:
            number, *arguments = file.read().split()
        of_python = number in (b"202", b"98") and arguments[1] != b"0x0"
        if number != b"running" and not of_python:
            return


def signal_until(over, thread, number):
    """Sends a thread a signal, and again each second until an event is set; how many times.

    Once is enough unless the call asked a server when the signal came: then it counts as one before the call.
    """
    times = 0
    while times == 0 or not over.wait(1) and times < LIMIT:
        signal.pthread_kill(thread.ident, number)
        times += 1
    return times


def accept_and_signal(one, number, connects):
    """A signal comes while the main thread waits in accept; then perhaps a connection."""
    main_thread, main_number = threading.main_thread(), threading.get_native_id()
    made, over = [], threading.Event()

    def disturb():
        in_a_blocking_call(main_number)
        if connects:
            signal.pthread_kill(main_thread.ident, number)
            made.append(socket.create_connection((ADDRESS, PORT), LIMIT))
        else:
            signal_until(over, main_thread, number)

    thread = threading.Thread(target=disturb)
    thread.start()
    result = library("accept", one.fileno(), None, None)
    over.set()
    thread.join()
    for each in made:
        each.close()
    if isinstance(result, int):
        os.close(result)
        return "a connection"
    return result


@case
def signals_and_a_blocking_accept():
    restart, interrupt = signal.SIGUSR1, signal.SIGUSR2
    everywhere = "" if FAMILY == socket.AF_INET else "::"
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    for place in (ADDRESS, everywhere):
        one = socket.socket(FAMILY)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.bind((place, PORT))
        one.listen(16)
        signal.signal(restart, lambda *_: None)
        signal.siginterrupt(restart, False)
        yield accept_and_signal(one, restart, True)
        # Both kinds of handlers at a time.
        signal.signal(interrupt, lambda *_: None)
        yield accept_and_signal(one, restart, True)
        yield accept_and_signal(one, interrupt, False)
        signal.signal(restart, signal.SIG_DFL)
        yield accept_and_signal(one, interrupt, False)
        signal.signal(interrupt, signal.SIG_DFL)
        # With a time limit nothing is started again.
        signal.signal(restart, lambda *_: None)
        signal.siginterrupt(restart, False)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 10, 0))
        yield accept_and_signal(one, restart, False)
        signal.signal(restart, signal.SIG_DFL)
        one.close()


def ends_by_signals(call, wake_for_nothing, rounds=60):
    """Whether a waiting call ends when a signal comes just after a wake that another thread has used up."""
    main_thread, main_number = threading.main_thread(), threading.get_native_id()
    again = 0
    for _ in range(rounds):
        over = threading.Event()

        def disturb():
            nonlocal again
            in_a_blocking_call(main_number)
            wake_for_nothing()
            again += signal_until(over, main_thread, signal.SIGUSR1) > 1

        thread = threading.Thread(target=disturb)
        thread.start()
        call()
        over.set()
        thread.join()
        if again * 4 > rounds:
            return "signals are lost"
    return "ends"


@case
def signals_just_after_wakes_for_nothing():
    signal.signal(signal.SIGUSR1, lambda *_: None)
    signal.siginterrupt(signal.SIGUSR1, True)
    with Pair() as pair, select.epoll() as set_:
        pair.server.setblocking(True)
        set_.register(pair.server, select.EPOLLIN)
        entry = struct.pack("ihh", pair.server.fileno(), 1, 0)
        entries, events = ctypes.create_string_buffer(entry, 8), ctypes.create_string_buffer(12)

        def take_a_byte():
            pair.client.send(b"x")
            pair.server.recv(1)

        yield "poll", ends_by_signals(lambda: library("poll", entries, 1, 10_000), take_a_byte)
        number = set_.fileno()
        yield "epoll_wait", ends_by_signals(
            lambda: library("epoll_wait", number, events, 1, 10_000), take_a_byte
        )
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)


@case
def a_child_that_becomes_another_program():
    # execl never passes through execve, execveat and fexecve do; the parent's copy goes first.
    for how in ("execl", "execveat", "fexecve"):
        with Pair() as pair:
            pair.server.setblocking(True)
            reader, writer = os.pipe()
            program = os.open("/bin/cat", os.O_RDONLY)
            words = (ctypes.c_char_p * 2)(b"cat", None)
            environment = (ctypes.c_char_p * 1)(None)
            child = os.fork()
            if child == 0:
                pair.client.close()
                pair.listener.close()
                os.dup2(pair.server.fileno(), 0)
                os.dup2(writer, 1)
                os.close(writer)
                os.close(reader)
                pair.server.close()
                if how == "execl":
                    LIBRARY.execl(b"/bin/cat", b"cat", None)
                elif how == "execveat":
                    LIBRARY.execveat(-100, b"/bin/cat", words, environment, 0)
                else:
                    LIBRARY.fexecve(program, words, environment)
                os._exit(1)
            os.close(writer)
            pair.server.close()
            pair.client.sendall(b"for the cat")
            pair.client.shutdown(socket.SHUT_WR)
            with open(reader, "rb") as file:
                yield how, file.read(), os.waitpid(child, 0)[1]
            wait(pair.client, 0x2000)
            yield answer(pair.client.recv, 1)
            os.close(program)


def serve_set(set_, one, reader, told):
    """Takes what a set reports until a z comes; whether nothing was lost and waiting cost nothing."""
    busy = time.process_time()
    idle = set_.poll(0.3) == [] and time.process_time() - busy < 0.2
    os.write(told, b"i")
    while True:
        found = set_.poll(LIMIT)
        if not found:
            return False
        for number, _ in found:
            try:
                if number == reader:
                    os.read(reader, 1)
                elif one.recv(1, socket.MSG_PEEK) == b"z" or one.recv(1) == b"z":
                    return idle
                os.write(told, b"x")
            except BlockingIOError:
                pass


@case
def an_inherited_epoll_set():
    for user in ("child", "parent", "both"):
        with Pair() as pair, select.epoll() as set_:
            pair.server.setblocking(False)
            reader, writer = os.pipe2(os.O_NONBLOCK)
            answers, told = os.pipe()
            set_.register(pair.server, select.EPOLLIN)
            set_.register(reader, select.EPOLLIN)
            # A wait before the fork, so that everything is in place.
            yield set_.poll(0)
            child = os.fork()
            if child == 0:
                os._exit(0 if user == "parent" or serve_set(set_, pair.server, reader, told) else 1)

            def drive():
                for _ in range(2 if user == "both" else 1):
                    os.read(answers, 1)
                for step in range(40):
                    if step % 2:
                        os.write(writer, b"b")
                    else:
                        pair.client.send(b"a")
                    if not select.select([answers], [], [], LIMIT)[0]:
                        return
                    os.read(answers, 1)
                pair.client.send(b"z" * 8)

            driver = threading.Thread(target=drive)
            driver.start()
            served = user == "child" or serve_set(set_, pair.server, reader, told)
            driver.join()
            yield user, served, os.waitpid(child, 0)[1]
            for one in (reader, writer, answers, told):
                os.close(one)




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
        total = fill(pair.client)
        yield total > 65536
        pair.client.settimeout(0.05)
        try:
            total += pair.client.send(b"more than there is room for")
        except TimeoutError:
            yield "time is over"
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
        wait(copy, select.POLLIN)
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
def a_short_answer_has_room_for_both_worlds():
    with Pair() as pair:
        one = select.epoll()
        reader, writer = os.pipe()
        one.register(reader, select.EPOLLIN)
        one.register(pair.server, select.EPOLLIN)
        os.write(writer, b"x")
        pair.client.sendall(b"x")
        has_arrived(pair.server, 1)
        seen = [number for _ in range(100) for number, _ in one.poll(LIMIT, 1)]
        yield reader in seen, pair.server.fileno() in seen, len(seen)
        os.close(reader)
        os.close(writer)


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
def a_listener_that_is_shut_down():
    for how in (socket.SHUT_WR, socket.SHUT_RD, socket.SHUT_RDWR):
        one = listener()
        waiting = socket.create_connection((ADDRESS, PORT), LIMIT)
        wait(one, select.POLLIN)
        yield answer(one.shutdown, how), poll_now(one)
        if how == socket.SHUT_WR:
            # Nothing has changed.
            waiting.close()
            yield answer(one.accept)[:9]
            one.close()
            continue
        yield answer(waiting.recv, 1), answer(one.accept), answer(one.shutdown, how)
        yield answer(socket.create_connection, (ADDRESS, PORT), LIMIT)
        yield one.getsockname()[1] == PORT, one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        second = socket.socket(FAMILY)
        second.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        yield answer(second.bind, (ADDRESS, PORT))
        second.close()
        yield answer(one.listen, 5), poll_now(one)
        client = socket.create_connection((ADDRESS, PORT), LIMIT)
        wait(one, select.POLLIN)
        accepted, _ = one.accept()
        for each in (client, accepted, waiting):
            each.close()
        # Or it becomes a connection. Each to a port of its own: whether the first one is over by now, or waits
        # in TIME-WAIT because both ends closed at once, is chance.
        one.shutdown(how)
        port = PORT + 1 + how
        with listener(port) as other:
            yield answer(one.connect, (ADDRESS, port)), poll_now(one)
            other.settimeout(LIMIT)
            accepted, _ = other.accept()
            accepted.sendall(b"x")
            yield answer(one.recv, 1)
            accepted.close()
        one.close()


@case
def a_blocked_wait_and_shutdown_of_the_listener():
    for kind in (select.poll, select.epoll):
        one = listener()
        got = []
        poller = kind()
        poller.register(one, select.POLLIN)
        # Once for nothing, so that all who are asked know of it.
        yield poller.poll(0)

        def look(poller=poller, got=got):
            got.extend(names(bits) for _, bits in poller.poll(LIMIT * 1000 if kind is select.poll else LIMIT))

        waiter = threading.Thread(target=look)
        waiter.start()
        one.shutdown(socket.SHUT_RD)
        waiter.join(LIMIT)
        yield waiter.is_alive(), got
        one.close()


@case
def a_child_and_shutdown_of_the_listener():
    one = listener()
    (mine, its) = socket.socketpair()
    child = os.fork()
    if child == 0:
        its.sendall(answer(one.accept).encode()[:20])
        its.recv(1)
        its.sendall(f"{poll_now(one)} {answer(one.accept)[:1]}".encode())
        os._exit(0)
    # It accepts by now, or will find the listener shut.
    client = socket.create_connection((ADDRESS, PORT), LIMIT)
    yield mine.recv(20)[:9]
    client.close()
    one.shutdown(socket.SHUT_RD)
    yield answer(socket.create_connection, (ADDRESS, PORT), LIMIT)
    one.listen(5)
    client = socket.create_connection((ADDRESS, PORT), LIMIT)
    wait(one, select.POLLIN)
    one.shutdown(socket.SHUT_RD)
    yield answer(client.recv, 1)
    mine.sendall(b"x")
    yield mine.recv(40)
    os.waitpid(child, 0)
    # Whoever has it may have it listen again.
    one.listen(5)
    client = socket.create_connection((ADDRESS, PORT), LIMIT)
    yield answer(one.accept)[:9]
    for each in (client, one, mine, its):
        each.close()


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


if __name__ == "__main__":
    main()
