"""What options, control calls, streams of the C library and calls that replace a program answer, one line a
situation: semantics_options.py ADDRESS PORT. Compared like semantics.py, whose helpers it uses.
"""

import array
import ctypes
import errno
import fcntl
import os
import select
import signal
import socket
import struct
import tempfile
import termios
import threading

import semantics
from semantics import ADDRESS, CASES, FAMILY, LIBRARY, LIMIT, PORT, Pair, answer, has_arrived, library, listener
from semantics import case, poll_now, wait

# The cases of the other file are run by the other file.
CASES.clear()

SOCKET, TCP = socket.SOL_SOCKET, socket.IPPROTO_TCP
IP, IP6 = socket.IPPROTO_IP, socket.IPPROTO_IPV6

# Level, number, values that are set one after the other.
NUMBERS = {
    "SO_REUSEADDR": (SOCKET, 2, [1, 0]),
    "SO_TYPE": (SOCKET, 3, [1]),
    "SO_ERROR": (SOCKET, 4, [0]),
    "SO_DONTROUTE": (SOCKET, 5, [1, 0]),
    "SO_BROADCAST": (SOCKET, 6, [1, 7, 0]),
    "SO_KEEPALIVE": (SOCKET, 9, [1, 5, 0]),
    "SO_OOBINLINE": (SOCKET, 10, [1, 0]),
    "SO_PRIORITY": (SOCKET, 12, [3, 0]),
    "SO_REUSEPORT": (SOCKET, 15, [1, 0]),
    "SO_RCVLOWAT": (SOCKET, 18, [5, 0, 1]),
    "SO_SNDLOWAT": (SOCKET, 19, [5]),
    "SO_ACCEPTCONN": (SOCKET, 30, [1]),
    "SO_MARK": (SOCKET, 36, [7, 0]),
    "SO_PROTOCOL": (SOCKET, 38, [1]),
    "SO_DOMAIN": (SOCKET, 39, [1]),
    "SO_BUSY_POLL": (SOCKET, 46, [10, 0]),
    "SO_MAX_PACING_RATE": (SOCKET, 47, [100_000_000]),
    "SO_INCOMING_NAPI_ID": (SOCKET, 56, [1]),
    "SO_TIMESTAMP": (SOCKET, 29, [1, 0]),
    "SO_PEEK_OFF": (SOCKET, 42, [3, 0, -5, -1]),
    "SO_LOCK_FILTER": (SOCKET, 44, []),
    "TCP_NODELAY": (TCP, 1, [1, 9, 0]),
    "TCP_CORK": (TCP, 3, [1, 2, 0]),
    "TCP_KEEPIDLE": (TCP, 4, [1, 32_767, 0, 32_768, -1]),
    "TCP_KEEPINTVL": (TCP, 5, [1, 32_767, 0, 32_768]),
    "TCP_KEEPCNT": (TCP, 6, [1, 127, 0, 128]),
    "TCP_SYNCNT": (TCP, 7, [1, 127, 0, 128]),
    "TCP_LINGER2": (TCP, 8, [30, -1, 0]),
    "TCP_WINDOW_CLAMP": (TCP, 10, [100_000]),
    "TCP_QUICKACK": (TCP, 12, [0]),
    "TCP_THIN_LINEAR_TIMEOUTS": (TCP, 16, [1, 0, 2]),
    "TCP_USER_TIMEOUT": (TCP, 18, [9000, 0, -1]),
    "TCP_NOTSENT_LOWAT": (TCP, 25, [100_000]),
    "TCP_INQ": (TCP, 36, [1, 0, 2]),
    "TCP_TX_DELAY": (TCP, 37, []),
    "TCP_REPAIR": (TCP, 19, []),
    "IP_TOS": (IP, 1, [16, 0]),
    "IP_TTL": (IP, 2, [10, 255, 0, 256, -1]),
    "IP_RECVTOS": (IP, 13, [1, 0]),
    "IP_MTU_DISCOVER": (IP, 10, [2, 0, 9]),
    "IP_RECVERR": (IP, 11, [1, 0]),
    "IP_FREEBIND": (IP, 15, [1, 0]),
    "IP_MINTTL": (IP, 21, [1, 0, 256]),
    "IP_BIND_ADDRESS_NO_PORT": (IP, 24, [1, 0]),
    "IPV6_V6ONLY": (IP6, 26, []),
    "IPV6_UNICAST_HOPS": (IP6, 16, [10, 255, 256, -1]),
    "IPV6_TCLASS": (IP6, 67, [16, 0, 256]),
    "IPV6_RECVPKTINFO": (IP6, 49, [1, 0]),
    "IPV6_DONTFRAG": (IP6, 62, [1, 0]),
}
# What a connection tells of itself, or of the path: only whether it answers is compared.
OWN = {"TCP_WINDOW_CLAMP", "TCP_QUICKACK", "SO_INCOMING_NAPI_ID"}


def get(one, level, name):
    value = answer(one.getsockopt, level, name)
    return value


def each_option(one):
    for name, (level, number, values) in NUMBERS.items():
        told = [get(one, level, number)]
        for value in values:
            told += [answer(one.setsockopt, level, number, value), get(one, level, number)]
        if name in OWN:
            told = [each if each.startswith("E") or each == "None" else "a number" for each in told]
        yield name, told


@case
def options_of_a_fresh_socket():
    with socket.socket(FAMILY) as one:
        yield from each_option(one)


@case
def options_of_a_listener():
    with listener() as one:
        yield from each_option(one)


@case
def options_of_a_client():
    with Pair() as pair:
        yield from each_option(pair.client)


@case
def options_of_an_accepted_connection():
    with Pair() as pair:
        yield from each_option(pair.server)


@case
def lengths_of_options():
    with Pair() as pair:
        for one in (pair.client, pair.listener):
            for level, number in [(SOCKET, 9), (TCP, 1), (SOCKET, 7), (SOCKET, 13), (SOCKET, 20), (SOCKET, 4)]:
                for length in (1, 2, 3, 4, 8, 15, 16, 17, 100):
                    told = answer(lambda: len(one.getsockopt(level, number, length)))
                    yield level, number, length, told
                for length in (0, 1, 2, 3, 5, 8, 12, 16, 20):
                    if number != 4:
                        yield level, number, answer(one.setsockopt, level, number, bytes(length))
        length = ctypes.c_int(-1)
        number = pair.client.fileno()
        yield library("getsockopt", number, SOCKET, 9, ctypes.byref(ctypes.c_int()), ctypes.byref(length))
        yield library("getsockopt", number, SOCKET, 9, None, ctypes.byref(ctypes.c_int(4)))
        yield library("getsockopt", number, SOCKET, 9, ctypes.byref(ctypes.c_int()), None)
        yield library("setsockopt", number, SOCKET, 9, None, 4)
        yield library("setsockopt", number, SOCKET, 9, ctypes.byref(ctypes.c_int()), -1)


@case
def unknown_options():
    with Pair() as pair:
        for one in (pair.client, pair.server, pair.listener):
            for level, number in [(SOCKET, 999), (TCP, 99), (IP, 99), (IP6, 199), (99, 1), (17, 1), (132, 1)]:
                yield level, number, get(one, level, number), answer(one.setsockopt, level, number, 1)


@case
def lingering():
    with Pair() as pair:
        for one in (pair.client, pair.server, pair.listener):
            yield one.getsockopt(SOCKET, socket.SO_LINGER, 8)
            for pair_of in [(1, 5), (0, 9), (7, 0), (0, 0)]:
                one.setsockopt(SOCKET, socket.SO_LINGER, struct.pack("ii", *pair_of))
                yield pair_of, one.getsockopt(SOCKET, socket.SO_LINGER, 8)


@case
def limits_of_time():
    with Pair() as pair:
        for one in (pair.client, pair.server, pair.listener):
            for name in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                one.settimeout(None)
                one.setsockopt(SOCKET, name, bytes(16))
                yield struct.unpack("ll", one.getsockopt(SOCKET, name, 16))
                for limit in [(1, 500_000), (0, 40_000), (-1, 0), (0, 1_000_000), (0, -1), (1 << 60, 0), (0, 0)]:
                    yield limit, answer(one.setsockopt, SOCKET, name, struct.pack("ll", *limit))
                    yield struct.unpack("ll", one.getsockopt(SOCKET, name, 16)) if limit[0] >= 0 else 0
        pair.listener.setsockopt(SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 50_000))
        yield answer(pair.listener.accept)
        pair.client.setsockopt(SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 0, 50_000))
        try:
            while True:
                pair.client.sendall(bytes(1 << 20))
        except BlockingIOError:
            yield "time is over"


@case
def congestion_control():
    with Pair() as pair, socket.socket(FAMILY) as fresh:
        for one in (fresh, pair.client, pair.server, pair.listener):
            for name in (b"reno", b"cubic"):
                yield answer(one.setsockopt, TCP, socket.TCP_CONGESTION, name)
                yield one.getsockopt(TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0")
            yield len(one.getsockopt(TCP, socket.TCP_CONGESTION, 4)), len(one.getsockopt(TCP, socket.TCP_CONGESTION, 100))
            yield answer(one.setsockopt, TCP, socket.TCP_CONGESTION, b"none such")
            yield answer(one.setsockopt, TCP, socket.TCP_CONGESTION, b"")
        pair.listener.setsockopt(TCP, socket.TCP_CONGESTION, b"reno")
        with socket.create_connection((ADDRESS, PORT), LIMIT):
            with pair.listener.accept()[0] as made:
                yield made.getsockopt(TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0")


@case
def information():
    with Pair() as pair, socket.socket(FAMILY) as fresh:
        pair.client.sendall(b"x" * 100)
        has_arrived(pair.server, 100)
        for one in (fresh, pair.client, pair.server, pair.listener):
            for length in (1, 4, 100, 104, 192):
                yield length, len(one.getsockopt(TCP, socket.TCP_INFO, length))
            yield one.getsockopt(TCP, socket.TCP_INFO, 1)
        pair.server.close()
        wait(pair.client, 0x2000)
        # The state: CLOSE_WAIT.
        yield pair.client.getsockopt(TCP, socket.TCP_INFO, 1)


@case
def mtu_of_the_path():
    with Pair() as pair, socket.socket(FAMILY) as fresh:
        told = lambda one: struct.unpack_from("I", one.getsockopt(TCP, socket.TCP_INFO, 104), 60)[0]
        yield told(fresh), told(pair.listener)
        name = (IP, 14) if FAMILY == socket.AF_INET else (IP6, 24)
        for one in (pair.client, pair.server):
            yield told(one) > 1279, told(one) == one.getsockopt(*name)


@case
def looks_that_go_on():
    with Pair() as pair:
        one = pair.server
        one.settimeout(0)
        place = lambda: one.getsockopt(SOCKET, 42)
        yield place()
        one.setsockopt(SOCKET, 42, 2)
        pair.client.sendall(b"0123456789")
        has_arrived(one, 10)
        for _ in range(5):
            yield answer(one.recv, 3, socket.MSG_PEEK), place()
        yield answer(one.recv, 4), place()
        yield answer(one.recv, 100, socket.MSG_PEEK), place()
        yield answer(one.recv, 1, socket.MSG_TRUNC), place()
        one.setsockopt(SOCKET, 42, 1)
        parts = [bytearray(2), bytearray(1)]
        yield answer(one.recvmsg_into, parts, 0, socket.MSG_PEEK), parts, place()
        one.setsockopt(SOCKET, 42, -1)
        yield answer(one.recv, 100, socket.MSG_PEEK), place(), answer(one.recv, 2), place()
        # Behind the last byte: nothing yet, then the end.
        one.setsockopt(SOCKET, 42, 100)
        yield answer(one.recv, 1, socket.MSG_PEEK), place()
        pair.client.close()
        wait(one, 0x2000)
        yield answer(one.recv, 1, socket.MSG_PEEK), place(), answer(one.recv, 100), place()


@case
def a_look_waits_for_what_it_has_not_seen():
    with Pair() as pair:
        one = pair.server
        one.setsockopt(SOCKET, 42, 0)
        pair.client.sendall(b"abc")
        has_arrived(one, 3)
        yield answer(one.recv, 10, socket.MSG_PEEK)
        later = threading.Timer(0.1, pair.client.sendall, (b"def",))
        later.start()
        yield answer(one.recv, 10, socket.MSG_PEEK), one.getsockopt(SOCKET, 42)
        later.join()
        yield answer(one.recv, 10)


@case
def what_is_left_to_read():
    with Pair() as pair:
        one = pair.server
        yield answer(one.setsockopt, TCP, 36, 2), answer(one.setsockopt, TCP, 36, -1)
        one.setsockopt(TCP, 36, 1)
        one.settimeout(0)
        yield answer(one.recvmsg, 1, 100)
        pair.client.sendall(b"0123456789")
        has_arrived(one, 10)
        for flags in (0, socket.MSG_PEEK, socket.MSG_TRUNC):
            yield answer(one.recvmsg, 2, 100, flags)
        for room in (0, 10, 16, 18, 20, 24):
            yield answer(one.recvmsg, 1, room)[1:] if room else answer(one.recvmsg, 0, room)
        pair.client.close()
        wait(one, 0x2000)
        for _ in range(3):
            yield answer(one.recvmsg, 1, 100)
        one.setsockopt(TCP, 36, 0)
        yield answer(one.recvmsg, 1, 100)


@case
def fast_open():
    with Pair() as pair, socket.socket(FAMILY) as fresh:
        for one in (fresh, pair.listener):
            yield answer(one.setsockopt, TCP, 23, 5)
        yield answer(fresh.setsockopt, TCP, 30, 1), get(fresh, TCP, 30)
        yield answer(pair.client.setsockopt, TCP, 30, 1)


@case
def sends_that_connect():
    fast_open, peer = 0x2000_0000, (ADDRESS, PORT)
    with listener() as one:
        for blocking, flags in ((True, 0), (False, 0), (True, socket.MSG_DONTWAIT)):
            for by_message in (False, True):
                with socket.socket(FAMILY) as client:
                    client.setblocking(blocking)
                    if by_message:
                        yield answer(client.sendmsg, [b"fi", b"rst"], [], fast_open | flags, peer)
                    else:
                        yield answer(client.sendto, b"first", fast_open | flags, peer)
                    wait(client, select.POLLOUT)
                    yield answer(client.send, b"second"), client.getpeername()[1] == PORT
                    with one.accept()[0] as made:
                        made.settimeout(LIMIT)
                        has_arrived(made, 6)
                        client.shutdown(socket.SHUT_WR)
                        wait(made, 0x2000)
                        yield made.recv(100)
    with socket.socket(FAMILY) as client:
        yield answer(client.sendto, b"nobody", fast_open, peer)
    with socket.socket(FAMILY) as client:
        yield answer(client.send, b"nowhere", fast_open), answer(client.send, b"nowhere")
    with Pair() as pair:
        yield answer(pair.client.sendto, b"again", fast_open, peer), answer(pair.client.send, b"again", fast_open)


@case
def a_deferred_accept():
    with listener() as one:
        yield answer(one.setsockopt, TCP, socket.TCP_DEFER_ACCEPT, 5)
        yield one.getsockopt(TCP, socket.TCP_DEFER_ACCEPT) > 0
        with socket.create_connection((ADDRESS, PORT), LIMIT) as client:
            yield poll_now(one)
            client.sendall(b"x")
            wait(one, select.POLLIN)
            with one.accept()[0] as made:
                yield made.recv(1)


@case
def sizes_of_segments():
    with socket.socket(FAMILY) as one:
        one.setsockopt(TCP, socket.TCP_MAXSEG, 1000)
        yield answer(one.setsockopt, TCP, socket.TCP_MAXSEG, 40_000)
        yield answer(one.setsockopt, TCP, socket.TCP_MAXSEG, 10)
        with listener() as other:
            one.settimeout(LIMIT)
            one.connect((ADDRESS, PORT))
            with other.accept()[0] as made:
                yield made.getsockopt(TCP, socket.TCP_MAXSEG) <= 1000


@case
def sizes_of_buffers():
    with socket.socket(FAMILY) as one:
        for name in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            one.setsockopt(SOCKET, name, 50_000)
            yield one.getsockopt(SOCKET, name)
        with listener() as other:
            one.settimeout(LIMIT)
            one.connect((ADDRESS, PORT))
            for name in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                yield one.getsockopt(SOCKET, name)
                yield answer(one.setsockopt, SOCKET, name, 30_000), one.getsockopt(SOCKET, name)
            other.accept()[0].close()


@case
def cookies_and_names():
    with Pair() as pair:
        told = [struct.unpack("Q", one.getsockopt(SOCKET, 57, 8))[0] for one in (pair.client, pair.listener)]
        yield all(told), len(set(told))
        for one in (pair.client, pair.server, pair.listener):
            yield answer(one.getsockopt, SOCKET, socket.SO_BINDTODEVICE, 16)
            yield answer(one.getsockopt, SOCKET, socket.SO_PEERCRED, 12) != ""
        yield pair.server.getsockopt(SOCKET, 28, 16)[:2] == struct.pack("H", FAMILY)
        yield answer(pair.listener.getsockopt, SOCKET, 28, 16)
        yield pair.server.getsockopt(SOCKET, 49) >= -1


REQUESTS = {
    "FIONREAD": 0x541B, "SIOCOUTQ": 0x5411, "SIOCATMARK": 0x8905, "SIOCOUTQNSD": 0x894B, "TCGETS": 0x5401,
    "FIOASYNC": 0x5452, "FIOGETOWN": 0x8903, "SIOCGPGRP": 0x8904, "unknown": 0x1234, "SIOCGSTAMP": 0x8906,
}


@case
def control_calls():
    with Pair() as pair, socket.socket(FAMILY) as fresh:
        pair.client.sendall(b"12345")
        has_arrived(pair.server, 5)
        for who, one in [("fresh", fresh), ("client", pair.client), ("server", pair.server), ("listener", pair.listener)]:
            for name, request in REQUESTS.items():
                place = array.array("i", [0] * 16)
                result = library("ioctl", one.fileno(), ctypes.c_ulong(request), (ctypes.c_int * 16).from_buffer(place))
                if name == "SIOCOUTQ" and who == "client":
                    continue
                yield who, name, result, place[0]
        # By the library's own call: Python would wait in its stead until its limit.
        number, room = pair.client.fileno(), ctypes.create_string_buffer(1)
        fcntl.fcntl(number, fcntl.F_SETFL, 0)
        yield library("ioctl", number, ctypes.c_ulong(0x5421), ctypes.byref(ctypes.c_int(1)))
        yield library("recv", number, room, ctypes.c_size_t(1), 0)
        yield bool(fcntl.fcntl(pair.client, fcntl.F_GETFL) & os.O_NONBLOCK)
        fcntl.fcntl(pair.client, fcntl.F_SETFL, 0)
        yield bool(fcntl.fcntl(pair.client, fcntl.F_GETFL) & os.O_NONBLOCK)
        yield fcntl.fcntl(pair.client, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR
        yield library("ioctl", pair.client.fileno(), ctypes.c_ulong(0x5450)), fcntl.fcntl(pair.client, fcntl.F_GETFD)
        yield library("sockatmark", pair.server.fileno()), library("isfdtype", pair.server.fileno(), 0o140000)


@case
def flags_of_receiving():
    with Pair() as pair:
        pair.client.sendall(b"0123456789")
        has_arrived(pair.server, 10)
        pair.server.setblocking(False)
        yield pair.server.recv(4, socket.MSG_PEEK), pair.server.recv(20, socket.MSG_PEEK)
        yield pair.server.recv(3, socket.MSG_PEEK | socket.MSG_WAITALL)
        yield library("recv", pair.server.fileno(), None, 3, socket.MSG_TRUNC), pair.server.recv(2)
        yield answer(pair.server.recv, 1, socket.MSG_OOB), answer(pair.server.recv, 1, socket.MSG_ERRQUEUE)
        yield answer(pair.server.recv, 1, socket.MSG_ERRQUEUE | socket.MSG_DONTWAIT)
        got, ancillary, flags, address = pair.server.recvmsg(2, 200)
        yield got, ancillary, flags, address
        got, address = pair.server.recvfrom(2)
        yield got, address
        yield pair.server.recv(20)
        yield answer(pair.server.recv, 5, socket.MSG_DONTWAIT), answer(pair.server.recv, 0, socket.MSG_DONTWAIT)


@case
def urgent_data():
    with Pair() as pair:
        yield answer(pair.client.send, b"", socket.MSG_OOB)
        pair.server.setsockopt(SOCKET, socket.SO_OOBINLINE, 1)
        yield answer(pair.client.send, b"abc")
        has_arrived(pair.server, 3)
        yield pair.server.recv(10)


@case
def many_buffers():
    with Pair() as pair:
        parts = [bytes([number % 256]) * (number % 7) for number in range(1024)]
        whole = b"".join(parts)
        yield os.writev(pair.client.fileno(), parts) == len(whole)
        has_arrived(pair.server, len(whole))
        room = [bytearray(number % 5) for number in range(1024)]
        got = os.readv(pair.server.fileno(), room)
        yield got, b"".join(room)[:got] == whole[:got]
        rest = pair.server.recv(100_000)
        yield whole[got:] == rest
        yield answer(os.writev, pair.client.fileno(), [b"x"] * 1025)
        vector = (ctypes.c_size_t * 4)(0, 0, 0, 0)
        for count in (-1, 0, 1025):
            yield count, library("writev", pair.client.fileno(), vector, count), library("readv", pair.server.fileno(), vector, count)
        yield answer(pair.client.sendmsg, [b"x"] * 1025)
        # An entry that claims more than there can be.
        vector = (ctypes.c_size_t * 4)(ctypes.addressof(vector), 1, ctypes.addressof(vector), 1 << 63)
        yield library("writev", pair.client.fileno(), vector, 2), library("readv", pair.server.fileno(), vector, 2)


@case
def places_in_a_socket():
    with Pair() as pair:
        pair.client.sendall(b"x")
        has_arrived(pair.server, 1)
        number = pair.server.fileno()
        yield answer(os.pread, number, 1, 0), answer(os.pwrite, number, b"x", 0)
        yield answer(os.preadv, number, [bytearray(1)], 0), answer(os.pwritev, number, [b"x"], 0)
        yield answer(os.preadv, number, [bytearray(1)], 0, os.RWF_NOWAIT)
        yield answer(os.lseek, number, 0, os.SEEK_SET), answer(os.ftruncate, number, 0), answer(os.fsync, number)
        yield answer(os.posix_fadvise, number, 0, 0, os.POSIX_FADV_NORMAL), answer(os.posix_fallocate, number, 0, 1)


@case
def whole_files():
    with Pair() as pair, tempfile.TemporaryFile() as file:
        size = 3_000_000
        content = bytes(range(251)) * (size // 251 + 1)
        content = content[:size]
        file.write(content)
        file.flush()
        got = []

        def read():
            while sum(map(len, got)) < 2 * size - 1_000_000:
                got.append(pair.server.recv(1 << 20))

        reader = threading.Thread(target=read)
        reader.start()
        pair.client.settimeout(None)
        offset = ctypes.c_long(1_000_000)
        sent = 0
        while sent < size - 1_000_000:
            sent += library("sendfile64", pair.client.fileno(), file.fileno(), ctypes.byref(offset), ctypes.c_size_t(1 << 30))
        yield sent, offset.value, file.tell()
        file.seek(0)
        os.lseek(file.fileno(), 0, os.SEEK_SET)
        sent = 0
        while sent < size:
            sent += library("sendfile", pair.client.fileno(), file.fileno(), None, ctypes.c_size_t(size))
        yield sent, os.lseek(file.fileno(), 0, os.SEEK_CUR)
        reader.join(LIMIT)
        yield b"".join(got) == content[1_000_000:] + content
        number = pair.client.fileno()
        yield library("sendfile", number, file.fileno(), None, ctypes.c_size_t(10)), "at the end"
        yield library("sendfile", number, file.fileno(), ctypes.byref(ctypes.c_long(-1)), ctypes.c_size_t(10))
        yield library("sendfile", number, file.fileno(), ctypes.byref(ctypes.c_long(size + 10)), ctypes.c_size_t(10))
        yield library("sendfile", number, 999, None, ctypes.c_size_t(10))
        folder = os.open("/", os.O_RDONLY)
        yield library("sendfile", number, folder, None, ctypes.c_size_t(10))
        write_only = os.open("/dev/null", os.O_WRONLY)
        yield library("sendfile", number, write_only, None, ctypes.c_size_t(10))
        # From a socket to a file, and from one socket to another.
        yield library("sendfile", file.fileno(), pair.server.fileno(), None, ctypes.c_size_t(10))
        yield library("sendfile", number, pair.server.fileno(), None, ctypes.c_size_t(10))
        os.close(folder)
        os.close(write_only)


@case
def a_file_to_a_full_socket():
    with Pair() as pair, tempfile.TemporaryFile() as file:
        file.truncate(50_000_000)
        pair.client.setblocking(False)
        total = 0
        while True:
            sent = library("sendfile", pair.client.fileno(), file.fileno(), None, ctypes.c_size_t(50_000_000))
            if isinstance(sent, str):
                break
            total += sent
        yield sent, os.lseek(file.fileno(), 0, os.SEEK_CUR) == total
        pair.client.shutdown(socket.SHUT_WR)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        yield library("sendfile", pair.client.fileno(), file.fileno(), None, ctypes.c_size_t(10))


@case
def from_a_pipe_and_to_one():
    with Pair() as pair:
        reader, writer = os.pipe()
        os.write(writer, b"through a pipe")
        sent = answer(os.sendfile, pair.client.fileno(), reader, None, 100) if hasattr(os, "sendfile") else 0
        yield sent == "14" or sent == "EINVAL"
        for each in (reader, writer):
            os.close(each)


def splice(source, sink, most=1 << 20):
    return library("splice", source, None, sink, None, ctypes.c_size_t(most), 2)


@case
def spliced():
    # Older kernels do not say whether a pipe would make a call wait: there the answer is EINVAL.
    if tuple(int(word) for word in os.uname().release.split("-")[0].split(".")[:2]) < (6, 4):
        return
    with Pair() as pair:
        reader, writer = os.pipe()
        client, server = pair.client.fileno(), pair.server.fileno()
        os.set_blocking(server, False)
        os.write(writer, b"through a pipe")
        yield splice(reader, client, 7), splice(reader, client), splice(reader, client)
        has_arrived(pair.server, 14)
        yield splice(server, writer, 7), splice(server, writer), splice(server, writer), os.read(reader, 100)
        yield splice(client, server), splice(client, 999), splice(999, client), splice(client, writer, 0)
        sent, got, moved = os.urandom(300_000), b"", 0
        while len(got) < len(sent):
            if moved < len(sent):
                os.write(writer, sent[moved : moved + 30_000])
                while select.select([reader], [], [], 0)[0]:
                    moved += splice(reader, client)
            while select.select([server], [], [], 0.01)[0] and (count := splice(server, writer, 10_000)) > 0:
                got += os.read(reader, count)
        yield got == sent
        # A full pipe takes nothing from the connection.
        os.set_blocking(reader, False)
        os.set_blocking(writer, False)
        while answer(os.write, writer, b"x" * 4096) != "EAGAIN":
            pass
        pair.client.sendall(b"kept")
        has_arrived(pair.server, 4)
        yield splice(server, writer), pair.server.recv(10)
        while answer(os.read, reader, 1 << 16) != "EAGAIN":
            pass
        pair.client.shutdown(socket.SHUT_WR)
        wait(pair.server, 0x2000)
        yield splice(server, writer), library("tee", server, writer, ctypes.c_size_t(1), 2)
        os.close(writer)
        yield splice(reader, server)
        os.close(reader)


@case
def a_cloned_child_closes_its_own():
    # clone(2) as libc has it, of all of a process (SIGCHLD alone) and as vfork(2) does it.
    for flags in (0, 0x100 | 0x4000):
        with Pair() as pair:
            stack = ctypes.create_string_buffer(1 << 17)
            top = ctypes.c_void_p((ctypes.addressof(stack) + (1 << 17)) & ~15)
            close = ctypes.cast(LIBRARY.close, ctypes.c_void_p)
            number = ctypes.c_void_p(pair.server.fileno())
            child = LIBRARY.clone(close, top, flags | signal.SIGCHLD, number)
            yield flags, os.waitpid(child, 0)[1], answer(pair.server.send, b"still here")
            has_arrived(pair.client, 10)
            yield pair.client.recv(100)


@case
def several_paths():
    # IPPROTO_MPTCP: one path is enough.
    made = answer(socket.socket, FAMILY, socket.SOCK_STREAM, 262)
    if "socket" not in made:
        yield "done"
        return
    accepting = socket.socket(FAMILY, socket.SOCK_STREAM, 262)
    accepting.setsockopt(SOCKET, socket.SO_REUSEADDR, 1)
    accepting.bind((ADDRESS, PORT))
    accepting.listen(5)
    one = socket.socket(FAMILY, socket.SOCK_STREAM, 262)
    one.connect((ADDRESS, PORT))
    other, _ = accepting.accept()
    one.sendall(b"done")
    other.settimeout(LIMIT)
    yield other.recv(10).decode()
    for each in (one, other, accepting):
        each.close()


@case
def flags_of_accepting():
    with listener() as one:
        for flags in (0, socket.SOCK_CLOEXEC, socket.SOCK_NONBLOCK, socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, 1):
            with socket.create_connection((ADDRESS, PORT), LIMIT):
                wait(one, select.POLLIN)
                made = library("accept4", one.fileno(), None, None, flags)
                if isinstance(made, str):
                    yield flags, made
                    os.close(library("accept", one.fileno(), None, None))
                    continue
                yield flags, fcntl.fcntl(made, fcntl.F_GETFD), fcntl.fcntl(made, fcntl.F_GETFL) & os.O_NONBLOCK
                os.close(made)
        with socket.create_connection((ADDRESS, PORT), LIMIT):
            wait(one, select.POLLIN)
            room, length = ctypes.create_string_buffer(64), ctypes.c_int(4)
            made = library("accept", one.fileno(), room, ctypes.byref(length))
            yield length.value, room.raw[:2] == struct.pack("H", FAMILY), room.raw[4:8]
            os.close(made)
        yield library("accept", one.fileno(), room, None) if not one.setblocking(False) else 0
        yield library("accept", 999, None, None), library("accept", 0, None, None)


@case
def duplicates():
    with Pair() as pair:
        number = pair.server.fileno()
        low = os.open("/dev/null", os.O_RDONLY)
        yield library("dup3", number, number, 0), library("dup2", number, number) == number
        yield library("dup3", number, low, os.O_CLOEXEC) == low, fcntl.fcntl(low, fcntl.F_GETFD)
        yield library("dup3", number, low, 1), library("dup2", 999, low), library("dup2", number, -1)
        yield library("dup2", number, 1 << 30), library("fcntl", number, fcntl.F_DUPFD, -1)
        far = fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 200)
        yield far >= 200, fcntl.fcntl(far, fcntl.F_GETFD)
        pair.client.sendall(b"abc")
        has_arrived(pair.server, 3)
        yield os.read(far, 1), os.read(low, 1), os.read(number, 1)
        fcntl.fcntl(far, fcntl.F_SETFL, os.O_NONBLOCK)
        yield bool(fcntl.fcntl(low, fcntl.F_GETFL) & os.O_NONBLOCK)
        yield library("close_range", far, far, 0), answer(os.fstat, far)
        yield library("close_range", 5, 4, 0), library("close_range", 500, 600, 77)
        yield library("close_range", low, low, 4), fcntl.fcntl(low, fcntl.F_GETFD)
        os.close(low)
        yield library("close", low)


@case
def buffered_streams():
    LIBRARY.fdopen.restype = ctypes.c_void_p
    LIBRARY.fgets.restype = ctypes.c_void_p
    with Pair() as pair:
        pair.server.setblocking(True)
        number = os.dup(pair.server.fileno())
        out, into = LIBRARY.fdopen(number, b"w"), LIBRARY.fdopen(os.dup(number), b"r")
        out, into = ctypes.c_void_p(out), ctypes.c_void_p(into)
        yield LIBRARY.fileno(out) == number
        yield LIBRARY.fprintf(out, b"%s %d\n", b"a line", 7), LIBRARY.fputs(b"more\n", out) >= 0
        yield poll_now(pair.client)
        yield LIBRARY.fflush(out)
        has_arrived(pair.client, 14)
        yield pair.client.recv(100)
        pair.client.sendall(b"first\nsecond\nlast")
        line = ctypes.create_string_buffer(100)
        for _ in range(2):
            yield bool(LIBRARY.fgets(line, 100, into)), line.value
        pair.client.shutdown(socket.SHUT_WR)
        yield bool(LIBRARY.fgets(line, 100, into)), line.value
        yield bool(LIBRARY.fgets(line, 100, into)), LIBRARY.feof(into), LIBRARY.ferror(into)
        yield LIBRARY.fputs(b"at the end", out) >= 0, LIBRARY.fclose(out), answer(os.fstat, number)
        has_arrived(pair.client, 10)
        yield pair.client.recv(100), LIBRARY.fclose(into)
        pair.server.close()
        wait(pair.client, 0x2000)
        yield pair.client.recv(1)


@case
def printing_to_a_descriptor():
    whole = [ctypes.c_int(each) for each in range(9)]
    broken = [ctypes.c_double(each / 4) for each in range(10)]
    texts = [b"a", b"bc", b""]
    places = b"%d %s " + b"%d|" * 9 + b"%s %s %.2f " + b"%.1f|" * 9 + b"%%\n"
    arguments = [7, texts[0], *whole, *texts[1:], *broken]
    with Pair() as pair:
        number = pair.server.fileno()
        yield LIBRARY.dprintf(number, places, *arguments), pair.client.recv(1000)
        yield LIBRARY.__dprintf_chk(number, 1, places, *arguments), pair.client.recv(1000)
        yield LIBRARY.dprintf(number, b"%s", b"x" * 20_000), len(pair.client.recv(20_000, socket.MSG_WAITALL))
        yield LIBRARY.dprintf(number, b""), LIBRARY.dprintf(number, b"no arguments"), pair.client.recv(100)
        pair.server.shutdown(socket.SHUT_WR)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        yield LIBRARY.dprintf(number, b"%d", 5), errno.errorcode.get(ctypes.get_errno())
    reader, writer = os.pipe()
    yield LIBRARY.dprintf(writer, places, *arguments), os.read(reader, 1000)
    os.close(reader)
    os.close(writer)


@case
def a_stream_for_both_directions():
    with Pair() as pair:
        pair.server.setblocking(True)
        file = ctypes.c_void_p(LIBRARY.fdopen(os.dup(pair.server.fileno()), b"r+"))
        pair.client.sendall(b"question\n")
        line = ctypes.create_string_buffer(100)
        yield bool(LIBRARY.fgets(line, 100, file)), line.value
        yield LIBRARY.fputs(b"answer\n", file) >= 0, LIBRARY.fflush(file)
        has_arrived(pair.client, 7)
        yield pair.client.recv(100)
        yield LIBRARY.fseek(file, 0, 0), errno.errorcode.get(ctypes.get_errno())
        yield LIBRARY.fclose(file)
        yield bool(LIBRARY.fdopen(pair.server.fileno(), b"q")), errno.errorcode.get(ctypes.get_errno())


@case
def a_stream_over_a_broken_connection():
    with Pair() as pair:
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        file = ctypes.c_void_p(LIBRARY.fdopen(os.dup(pair.client.fileno()), b"w"))
        pair.reset_by_server()
        LIBRARY.fputs(b"lost", file)
        first = LIBRARY.fflush(file), errno.errorcode.get(ctypes.get_errno())
        yield first, LIBRARY.ferror(file) != 0
        LIBRARY.fclose(file)




@case
def a_program_with_the_connection_as_its_standard_streams():
    # mawk reads and writes by streams of the C library; so does sort.
    for words in ([b"/usr/bin/sort", b"-r"], [b"/usr/bin/tac"], [b"/usr/bin/md5sum"]):
        with Pair() as pair:
            pair.server.setblocking(True)
            child = os.fork()
            if child == 0:
                os.dup2(pair.server.fileno(), 0)
                os.dup2(pair.server.fileno(), 1)
                os.closerange(3, 100)
                os.execv(words[0], words)
            pair.server.close()
            pair.client.sendall(b"one\ntwo\nthree\n")
            pair.client.shutdown(socket.SHUT_WR)
            got = b""
            while block := pair.client.recv(1000):
                got += block
            yield words, got, os.waitpid(child, 0)[1]


@case
def replaced_without_a_fork():
    # The process that made the connection becomes another program itself.
    for how in ("execl", "execlp", "execle", "execv", "execvp", "execve"):
        with listener() as accepting:
            child = os.fork()
            if child == 0:
                accepting.close()
                one = socket.create_connection((ADDRESS, PORT), LIMIT)
                one.setblocking(True)
                os.dup2(one.fileno(), 0)
                os.dup2(one.fileno(), 1)
                one.close()
                words = (ctypes.c_char_p * 9)(b"cat", b"-", b"-", b"-", b"-", b"-", b"-", b"-", None)
                environment = (ctypes.c_char_p * 2)(b"NOTHING=1", None)
                one_by_one = list(words)
                if how == "execl":
                    LIBRARY.execl(b"/bin/cat", *one_by_one)
                elif how == "execlp":
                    LIBRARY.execlp(b"cat", *one_by_one)
                elif how == "execle":
                    LIBRARY.execle(b"/bin/cat", *one_by_one, environment)
                elif how == "execv":
                    LIBRARY.execv(b"/bin/cat", words)
                elif how == "execvp":
                    LIBRARY.execvp(b"cat", words)
                else:
                    LIBRARY.execve(b"/bin/cat", words, environment)
                os._exit(1)
            server, _ = accepting.accept()
            server.settimeout(LIMIT)
            server.sendall(b"for the cat")
            server.shutdown(socket.SHUT_WR)
            got = b""
            while block := answer(server.recv, 100):
                if block in ("b''", "ECONNRESET"):
                    break
                got += block.encode()
            yield how, got, block, os.waitpid(child, 0)[1]
            server.close()


@case
def a_failed_replacement():
    with Pair() as pair:
        yield library("execl", b"/nowhere/at/all", b"a", b"b", b"c", b"d", b"e", b"f", b"g", b"h", None)
        yield library("execle", b"/nowhere/at/all", b"a", None, None), library("execlp", b"nowhere", b"a", None)
        pair.client.sendall(b"still here")
        has_arrived(pair.server, 10)
        yield pair.server.recv(100)


@case
def spawned_programs():
    for how in ("posix_spawn", "posix_spawnp", "system", "popen", "fork"):
        with Pair() as pair:
            pair.server.setblocking(True)
            os.set_inheritable(pair.server.fileno(), True)
            number = pair.server.fileno()
            command = f"echo by {how} >&{number}"
            if how == "posix_spawn":
                words = ["sh", "-c", "echo by posix_spawn"]
                actions = [(os.POSIX_SPAWN_DUP2, number, 1)]
                child = os.posix_spawn("/bin/sh", words, os.environ, file_actions=actions)
            elif how == "posix_spawnp":
                child = os.posix_spawnp("sh", ["sh", "-c", command], os.environ)
            elif how == "system":
                yield os.WEXITSTATUS(LIBRARY.system(command.encode()))
                child = 0
            elif how == "popen":
                LIBRARY.popen.restype = ctypes.c_void_p
                file = ctypes.c_void_p(LIBRARY.popen(command.encode(), b"w"))
                yield LIBRARY.pclose(file)
                child = 0
            else:
                child = os.fork()
                if child == 0:
                    LIBRARY.execl(b"/bin/sh", b"sh", b"-c", command.encode(), None)
                    os._exit(1)
            if child:
                yield os.waitpid(child, 0)[1]
            has_arrived(pair.client, len(f"by {how}\n"))
            yield pair.client.recv(100)


@case
def other_descriptors_are_untouched():
    reader, writer = os.pipe()
    number = ctypes.c_int()
    yield library("ioctl", reader, ctypes.c_ulong(0x541B), ctypes.byref(number)), number.value
    yield library("getsockopt", reader, SOCKET, 3, ctypes.byref(number), ctypes.byref(ctypes.c_int(4)))
    yield library("send", writer, b"x", 1, 0), library("recv", reader, b"x", 1, 0), library("listen", reader, 1)
    yield library("shutdown", 999, 2), library("getpeername", 999, None, None), library("sendfile", 999, 998, None, 1)
    yield library("accept4", reader, None, None, 0), library("setsockopt", 999, SOCKET, 2, None, 0)
    left, right = socket.socketpair()
    yield left.getsockopt(SOCKET, 39), left.send(b"x"), right.recv(1), answer(left.setsockopt, TCP, 1, 1)
    for each in (left, right):
        each.close()
    for each in (reader, writer):
        os.close(each)


if __name__ == "__main__":
    semantics.main()
