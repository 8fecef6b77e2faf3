"""What the calls on UDP sockets answer in many situations, one line a situation: semantics_udp.py ADDRESS PORT.

Run on the kernel's stack and on Haypile; the two outputs have to be the same. Lines hold nothing that depends on
addresses, timing or memory.
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
import sys
import termios
import threading
import time

ADDRESS, PORT = sys.argv[1], int(sys.argv[2])
V6 = ":" in ADDRESS
FAMILY = socket.AF_INET6 if V6 else socket.AF_INET
WILDCARD = "::" if V6 else "0.0.0.0"
LIMIT = 40.0
BITS = {"IN": 1, "PRI": 2, "OUT": 4, "ERR": 8, "HUP": 16, "RDHUP": 0x2000}
CASES = []
LIBRARY = ctypes.CDLL(None, use_errno=True)
SOL_UDP, UDP_CORK, UDP_SEGMENT = 17, 1, 103
IP_RECVERR, IPV6_RECVERR, IP_MTU_DISCOVER, IPV6_MTU_DISCOVER = 11, 25, 10, 23
SO_RXQ_OVFL, SO_TIMESTAMP, SO_TIMESTAMPNS = 40, 29, 35
IP_PKTINFO, IP_RECVTTL, IP_RECVTOS, IP_TTL, IP_TOS = 8, 12, 13, 2, 1
MSG_CONFIRM, SIOCOUTQ = 0x800, 0x5411


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


def wait(one, wanted=select.POLLIN):
    """Waits for an event that the other side causes."""
    poller = select.poll()
    poller.register(one, wanted)
    if not poller.poll(LIMIT * 1000):
        raise TimeoutError(f"no {names(wanted)} in {LIMIT} s")


def wait_until_asleep(thread):
    """Waits until a thread sleeps in the kernel, or has ended."""
    end = time.monotonic() + LIMIT
    path = f"/proc/self/task/{thread.native_id}/stat"
    while os.path.exists(path):
        with open(path) as stat:
            if stat.read().rpartition(")")[2].split()[0] == "S":
                return
        if time.monotonic() > end:
            raise TimeoutError(f"awake after {LIMIT} s")


def new(blocking=True, family=FAMILY):
    one = socket.socket(family, socket.SOCK_DGRAM)
    if blocking:
        one.settimeout(LIMIT)
    else:
        one.setblocking(False)
    return one


def bound(address=None, port=0, blocking=True):
    one = new(blocking)
    one.bind((ADDRESS if address is None else address, port))
    return one


def pair():
    """Two sockets that are each other's peer."""
    left, right = bound(), bound()
    left.connect(right.getsockname())
    right.connect(left.getsockname())
    return left, right


def settle(sender):
    """Waits until what the socket has sent has arrived: what it sends last has, which is for somebody else."""
    with bound() as last:
        sender.sendto(b"last", last.getsockname())
        wait(last)


def raw(one, mode):
    """Blocks in the kernel's way rather than python's."""
    one.settimeout(None if mode else 0)
    return one


def integer(one, request):
    value = array.array("i", [0])
    return answer(fcntl.ioctl, one, request, value, True), value[0]


def option(one, level, name, *value):
    if value:
        return answer(one.setsockopt, level, name, *value)
    return answer(one.getsockopt, level, name)


@case
def fresh_socket():
    one = new(False)
    yield poll_now(one)
    yield answer(one.recv, 10), answer(one.recvfrom, 10)
    yield answer(one.send, b"x"), answer(one.getpeername)
    yield answer(one.listen, 5), answer(one.accept)
    yield answer(one.shutdown, socket.SHUT_RDWR), poll_now(one)
    yield integer(one, termios.FIONREAD), integer(one, SIOCOUTQ)
    yield option(one, socket.SOL_SOCKET, socket.SO_ERROR), option(one, socket.SOL_SOCKET, socket.SO_TYPE)
    yield option(one, socket.SOL_SOCKET, socket.SO_PROTOCOL), option(one, socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    one.close()


@case
def binding():
    one = bound()
    port = one.getsockname()[1]
    yield port > 0, one.getsockname()[0] == ADDRESS
    yield answer(one.bind, (ADDRESS, 0))
    other = new()
    yield answer(other.bind, (ADDRESS, port)), answer(other.bind, (WILDCARD, port))
    yield answer(other.bind, ("203.0.113.7" if not V6 else "2001:db8::7", 0))
    one.close()
    # The end of a socket may be told a moment later.
    yield answer(other.bind, (ADDRESS, port))
    other.close()


@case
def shared_addresses():
    for name in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
        one, other, third = new(), new(), new()
        yield option(one, socket.SOL_SOCKET, name, 1), option(other, socket.SOL_SOCKET, name, 1)
        one.bind((ADDRESS, 0))
        yield answer(other.bind, one.getsockname()), answer(third.bind, one.getsockname())
        sender = new()
        for number in range(20):
            sender.sendto(bytes([number]), one.getsockname())
        settle(sender)
        got = []
        for each in (one, other):
            each.setblocking(False)
            count = 0
            while answer(each.recv, 9) != "EAGAIN":
                count += 1
            got.append(count)
        yield sum(got), sorted(got)[0] if name == socket.SO_REUSEADDR else "spread"
        for each in (one, other, third, sender):
            each.close()


@case
def sizes():
    one, other = pair()
    for size in (0, 1, 100, 1472, 1473, 8972, 40000, 65507, 65508, 65535, 65536, 100000):
        sent = answer(one.send, bytes(size))
        if sent == str(size):
            wait(other)
            yield size, integer(other, termios.FIONREAD), len(other.recv(70000))
        else:
            yield size, "EMSGSIZE" if V6 and size in (65508,) else sent
            while select.select([other], [], [], 0.2)[0]:
                other.recv(70000)
    one.close()
    other.close()


@case
def reading():
    one, other = pair()
    for text in (b"", b"first", b"second", b"third", b"fourth", b"fifth", b"sixth"):
        one.send(text)
    settle(one)
    yield poll_now(other), integer(other, termios.FIONREAD)
    yield other.recv(0), integer(other, termios.FIONREAD)
    yield other.recv(3, socket.MSG_PEEK), other.recv(3, socket.MSG_PEEK | socket.MSG_TRUNC) and None
    yield other.recv(3), other.recvfrom(100)[0]
    buffer = bytearray(2)
    yield other.recv_into(buffer, 2, socket.MSG_TRUNC), bytes(buffer)
    data, control, flags, _ = other.recvmsg(4)
    yield data, control, flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC)
    data, control, flags, _ = other.recvmsg(4, 0, socket.MSG_PEEK)
    yield data, flags & socket.MSG_TRUNC
    data, control, flags, name = other.recvmsg(40)
    yield data, flags, name == one.getsockname()
    raw(other, False)
    yield answer(other.recv, 9), answer(other.recv, 9), answer(other.recv, 1), poll_now(other)
    one.close()
    other.close()


@case
def plain_calls():
    one, other = pair()
    yield os.write(one.fileno(), b"written"), os.writev(one.fileno(), [b"ga", b"", b"thered"])
    settle(one)
    yield os.read(other.fileno(), 3)
    left, right = bytearray(3), bytearray(10)
    yield os.readv(other.fileno(), [left, right]), bytes(left), bytes(right)
    yield answer(os.pread, other.fileno(), 1, 0), answer(os.lseek, other.fileno(), 0, 0)
    yield one.sendmsg([b"a", b"bc", b"def"]), other.recvmsg_into([bytearray(2), bytearray(9)])[0]
    yield one.send(b"confirmed", MSG_CONFIRM), other.recv(20)
    yield answer(one.send, b"x", socket.MSG_OOB), answer(one.send, b"quiet", socket.MSG_NOSIGNAL), other.recv(20)
    one.close()
    other.close()


@case
def addresses():
    one, other = bound(), bound()
    there = other.getsockname()
    yield one.sendto(b"one", there), other.recvfrom(10)[1][1] == one.getsockname()[1]
    yield answer(one.sendto, b"x", (ADDRESS, 0)), answer(one.send, b"x")
    wrong = "127.0.0.1" if V6 else "::1"
    yield answer(one.sendmsg, [b"two"], [], 0, there), other.recvfrom(10)[0]
    unbound = new()
    yield unbound.sendto(b"implicit", there), other.recvfrom(10)[1][1] == unbound.getsockname()[1]
    yield unbound.getsockname()[0] == WILDCARD, answer(unbound.bind, (ADDRESS, 0))
    other.sendto(b"back", (ADDRESS, unbound.getsockname()[1]))
    yield unbound.recvfrom(10)[0], unbound.getsockname()[1] > 0
    if not V6:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as four:
            yield library_sendto(four, wrong)
    for each in (one, other, unbound):
        each.close()


def library_sendto(one, address):
    """sendto with an address of the other family."""
    name = struct.pack("=HHI16sI", socket.AF_INET6, socket.htons(9), 0, socket.inet_pton(socket.AF_INET6, address), 0)
    result = LIBRARY.sendto(one.fileno(), b"x", 1, 0, name, len(name))
    return errno.errorcode[ctypes.get_errno()] if result < 0 else result


def short_name(one, call, length):
    name = struct.pack("=HH", FAMILY, socket.htons(9)) + bytes(24)
    if call == "sendto":
        result = LIBRARY.sendto(one.fileno(), b"x", 1, 0, name, length)
    else:
        result = getattr(LIBRARY, call)(one.fileno(), name, length)
    return errno.errorcode[ctypes.get_errno()] if result < 0 else result


@case
def short_names():
    for call in ("sendto", "connect", "bind"):
        one = new()
        yield call, [short_name(one, call, length) for length in (1, 2, 8, 15)]
        one.close()


@case
def connecting():
    one, other, third = new(), bound(), bound()
    yield answer(one.connect, other.getsockname()), one.getpeername()[1] == other.getsockname()[1]
    yield one.getsockname()[0] == ADDRESS, poll_now(one)
    third.sendto(b"stranger", one.getsockname())
    other.sendto(b"peer", one.getsockname())
    yield one.recv(20)
    raw(one, False)
    yield answer(one.recv, 20)
    yield answer(one.connect, third.getsockname()), one.send(b"elsewhere"), third.recv(20)
    yield one.sendto(b"aside", other.getsockname()), other.recv(20)
    yield dissolve(one), answer(one.getpeername), one.getsockname()[1], answer(one.send, b"x")
    yield dissolve(one), answer(one.connect, (ADDRESS, 0)) is not None
    explicit = bound(port=PORT)
    name = explicit.getsockname()
    explicit.connect(other.getsockname())
    yield dissolve(explicit), explicit.getsockname()[1] == name[1], answer(explicit.getpeername)
    third.sendto(b"heard", (ADDRESS, name[1]))
    yield explicit.recv(20)
    for each in (one, other, third, explicit):
        each.close()


def dissolve(one):
    result = LIBRARY.connect(one.fileno(), bytes(16), 16)
    return errno.errorcode[ctypes.get_errno()] if result < 0 else result


@case
def refused():
    gone = bound()
    there = gone.getsockname()
    gone.close()
    for step in ("recv", "send", "error", "poll"):
        one = new()
        one.connect(there)
        one.send(b"anybody?")
        wait(one, select.POLLERR)
        yield step, poll_now(one), {
            "recv": lambda: answer(one.recv, 10),
            "send": lambda: answer(one.send, b"x"),
            "error": lambda: option(one, socket.SOL_SOCKET, socket.SO_ERROR),
            "poll": lambda: "looked",
        }[step]()
        if step in ("recv", "error"):
            raw(one, False)
            yield step, poll_now(one), answer(one.recv, 10)
        one.close()
    one = new(False)
    one.sendto(b"anybody?", there)
    time.sleep(0.1)
    yield poll_now(one), answer(one.recv, 10), option(one, socket.SOL_SOCKET, socket.SO_ERROR)
    one.close()


@case
def error_queue():
    gone = bound()
    there = gone.getsockname()
    gone.close()
    level, name = (socket.IPPROTO_IPV6, IPV6_RECVERR) if V6 else (socket.IPPROTO_IP, IP_RECVERR)
    one = new(False)
    yield option(one, level, name, 1), option(one, level, name)
    yield answer(one.recvmsg, 100, 200, socket.MSG_ERRQUEUE)
    one.sendto(b"anybody?", there)
    wait(one, select.POLLERR)
    yield poll_now(one), answer(one.recv, 10), poll_now(one)
    data, control, flags, address = one.recvmsg(100, 200, socket.MSG_ERRQUEUE)
    yield data
    yield flags & socket.MSG_ERRQUEUE != 0, address[:2] == there[:2], len(control)
    kind, value = control[0][:2], control[0][2]
    yield kind, struct.unpack("=IBBBBII", value[:16]), len(value)
    offender = value[24:40] if V6 else value[20:24]
    yield socket.inet_ntop(FAMILY, offender) == ADDRESS
    yield poll_now(one), answer(one.recvmsg, 100, 200, socket.MSG_ERRQUEUE)
    # What does not fit is cut; a long datagram is quoted in part.
    sent = bytes(range(256)) * 4
    for room in (0, 9, 2000):
        one.sendto(sent, there)
        wait(one, select.POLLERR)
        data, control, flags, address = one.recvmsg(room, 200, socket.MSG_ERRQUEUE)
        yield data == sent[:len(data)], len(data), flags & socket.MSG_TRUNC != 0
    one.close()


@case
def shutting_down():
    for how in (socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR):
        one, other = pair()
        other.send(b"before")
        wait(one)
        yield how, answer(one.shutdown, how), poll_now(one)
        yield one.recv(10), answer(one.send, b"x")
        raw(one, True)
        if how != socket.SHUT_WR:
            yield one.recv(10), poll_now(one)
            raw(one, False)
            yield answer(one.recv, 10)
        one.close()
        other.close()
    one = bound()
    yield answer(one.shutdown, 7), answer(one.shutdown, socket.SHUT_RD), poll_now(one)
    one.close()


@case
def shutdown_wakes():
    one, other = pair()
    raw(one, True)
    got = []
    reader = threading.Thread(target=lambda: got.append(answer(one.recv, 10)))
    reader.start()
    wait_until_asleep(reader)
    one.shutdown(socket.SHUT_RDWR)
    reader.join(LIMIT)
    yield reader.is_alive(), got
    one.close()
    other.close()


@case
def time_limits():
    one = bound()
    raw(one, True)
    for pause in (struct.pack("ll", 0, 50000), struct.pack("ll", 0, 1)):
        yield option(one, socket.SOL_SOCKET, socket.SO_RCVTIMEO, pause)
        start = time.monotonic()
        yield answer(one.recv, 10), time.monotonic() - start < 5
    yield option(one, socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 1, 0))
    yield answer(one.recv, 10, socket.MSG_DONTWAIT)
    yield one.getsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, 16) == struct.pack("ll", 1, 0)
    one.close()


@case
def interrupted():
    one = bound()
    raw(one, True)
    signal.signal(signal.SIGALRM, lambda *_: None)
    for restart in (True, False):
        signal.siginterrupt(signal.SIGALRM, not restart)
        # Again and again, in case that the first comes before the call.
        signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)
        if restart:
            sender = new()
            timer = threading.Timer(0.3, lambda: sender.sendto(b"late", one.getsockname()))
            timer.start()
        result = LIBRARY.recv(one.fileno(), ctypes.create_string_buffer(10), 10, 0)
        number = ctypes.get_errno()
        signal.setitimer(signal.ITIMER_REAL, 0)
        yield restart, errno.errorcode[number] if result < 0 else result
        if restart:
            timer.join()
            sender.close()
    one.close()


@case
def control_data():
    level = socket.IPPROTO_IPV6 if V6 else socket.IPPROTO_IP
    wanted = (socket.IPV6_RECVPKTINFO, socket.IPV6_RECVHOPLIMIT, socket.IPV6_RECVTCLASS) if V6 else (
        IP_PKTINFO, IP_RECVTTL, IP_RECVTOS)
    one, other = bound(), bound(WILDCARD)
    there = (ADDRESS, other.getsockname()[1])
    one.sendto(b"plain", there)
    yield other.recvmsg(100, 500)[1]
    for name in wanted:
        yield option(other, level, name, 1), option(other, level, name)
    one.sendto(b"told", there)
    yield shown(other.recvmsg(100, 500))
    data, control, flags, _ = (one.sendto(b"cut", there), other.recvmsg(100, 20))[1]
    yield data, len(control), flags & socket.MSG_CTRUNC != 0
    hops, class_name = (socket.IPV6_HOPLIMIT, socket.IPV6_TCLASS) if V6 else (IP_TTL, IP_TOS)
    sent = [(level, hops, struct.pack("i", 7)), (level, class_name, struct.pack("i", 0x28))]
    yield one.sendmsg([b"chosen"], sent, 0, there), shown(other.recvmsg(100, 500))
    for bad in (0 if not V6 else 256, -2, 300):
        yield answer(one.sendmsg, [b"x"], [(level, hops, struct.pack("i", bad))], 0, there)
    yield answer(one.sendmsg, [b"x"], [(level, hops, b"ab")], 0, there)
    unicast_hops = socket.IPV6_UNICAST_HOPS if V6 else socket.IP_TTL
    yield option(one, level, unicast_hops, 9), option(one, level, unicast_hops), option(one, level, unicast_hops, 0)
    yield option(one, level, unicast_hops, 256), option(one, level, unicast_hops, -1)
    yield option(one, level, unicast_hops, 11), option(one, level, class_name, 0x48), option(one, level, class_name)
    one.sendto(b"by option", there)
    yield shown(other.recvmsg(100, 500))
    for name in wanted:
        other.setsockopt(level, name, 0)
    one.sendto(b"no more", there)
    yield other.recvmsg(100, 500)[1]
    one.close()
    other.close()


def shown(message):
    data, control, flags, _ = message
    cleaned = []
    for level, kind, value in control:
        if (level, kind) == (socket.IPPROTO_IP, IP_PKTINFO):
            cleaned.append(("pktinfo", len(value), [socket.inet_ntoa(value[at:at + 4]) == ADDRESS for at in (4, 8)]))
        elif (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO):
            cleaned.append(("pktinfo", len(value), socket.inet_ntop(socket.AF_INET6, value[:16]) == ADDRESS))
        else:
            cleaned.append((level, kind, value))
    return data, cleaned, flags & ~0x40000000


@case
def source_address():
    one, other = bound(WILDCARD), bound()
    there = other.getsockname()
    if V6:
        info = [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, socket.inet_pton(FAMILY, ADDRESS) + bytes(4))]
        wrong = [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, socket.inet_pton(FAMILY, "2001:db8::5") + bytes(4))]
    else:
        info = [(socket.IPPROTO_IP, IP_PKTINFO, bytes(4) + socket.inet_aton(ADDRESS) + bytes(4))]
        wrong = []
    yield one.sendmsg([b"from"], info, 0, there), other.recvfrom(10)[1][0] == ADDRESS
    if wrong:
        yield answer(one.sendmsg, [b"x"], wrong, 0, there)
    one.close()
    other.close()


@case
def time_stamps():
    one, other = bound(), bound()
    for name, scale in ((SO_TIMESTAMP, 1e6), (SO_TIMESTAMPNS, 1e9)):
        yield option(other, socket.SOL_SOCKET, name, 1), option(other, socket.SOL_SOCKET, name)
        one.sendto(b"when", other.getsockname())
        data, control, flags, _ = other.recvmsg(100, 500)
        level, kind, value = control[0]
        seconds, rest = struct.unpack("ll", value)
        yield len(control), (level, kind) == (socket.SOL_SOCKET, name), abs(seconds + rest / scale - time.time()) < 5
    one.close()
    other.close()


@case
def dropped():
    one, other = new(), bound()
    other.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    yield option(other, socket.SOL_SOCKET, SO_RXQ_OVFL, 1)
    for _ in range(200):
        one.sendto(bytes(500), other.getsockname())
    settle(one)
    raw(other, False)
    kept = 0
    while answer(other.recv, 1000) != "EAGAIN":
        kept += 1
    yield 0 < kept < 200
    one.sendto(b"after", other.getsockname())
    wait(other)
    data, control, flags, _ = other.recvmsg(100, 100)
    yield data, control[0][:2], struct.unpack("I", control[0][2])[0] == 200 - kept
    one.close()
    other.close()


@case
def corks():
    one, other = pair()
    raw(other, False)
    yield one.send(b"a", socket.MSG_MORE), one.send(b"b", socket.MSG_MORE), answer(other.recv, 10)
    yield one.send(b"c")
    wait(other)
    yield other.recv(10)
    yield option(one, SOL_UDP, UDP_CORK, 1), option(one, SOL_UDP, UDP_CORK), one.send(b"de"), one.send(b"fg")
    yield answer(other.recv, 10), option(one, SOL_UDP, UDP_CORK, 0)
    wait(other)
    yield other.recv(10)
    one.close()
    other.close()


@case
def segments():
    one, other = pair()
    yield option(one, SOL_UDP, UDP_SEGMENT, 100), option(one, SOL_UDP, UDP_SEGMENT)
    yield one.send(bytes(250)), [len(other.recv(1000)) for _ in range(3)]
    yield option(one, SOL_UDP, UDP_SEGMENT, 0), one.send(bytes(250)), len(other.recv(1000))
    control = [(SOL_UDP, UDP_SEGMENT, struct.pack("H", 70))]
    yield one.sendmsg([bytes(200)], control), [len(other.recv(1000)) for _ in range(3)]
    yield answer(one.sendmsg, [bytes(60000)], [(SOL_UDP, UDP_SEGMENT, struct.pack("H", 10))])
    yield option(one, SOL_UDP, UDP_SEGMENT, -1), option(one, SOL_UDP, 104, 1)
    one.close()
    other.close()


class Message(ctypes.Structure):
    _fields_ = [("name", ctypes.c_void_p), ("name_len", ctypes.c_uint), ("vector", ctypes.c_void_p),
                ("vector_len", ctypes.c_size_t), ("control", ctypes.c_void_p), ("control_len", ctypes.c_size_t),
                ("flags", ctypes.c_int), ("len", ctypes.c_uint)]


class Vector(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("len", ctypes.c_size_t)]


def messages(buffers):
    vectors = (Vector * len(buffers))(*[Vector(ctypes.addressof(one), len(one)) for one in buffers])
    made = (Message * len(buffers))()
    for index in range(len(buffers)):
        made[index].vector = ctypes.addressof(vectors) + index * ctypes.sizeof(Vector)
        made[index].vector_len = 1
    return made, vectors


@case
def many_messages():
    one, other = pair()
    out = [ctypes.create_string_buffer(bytes([65 + index]) * (index + 1), index + 1) for index in range(5)]
    sent, _keep = messages(out)
    yield LIBRARY.sendmmsg(one.fileno(), sent, 5, 0), [entry.len for entry in sent]
    settle(one)
    room = [ctypes.create_string_buffer(3) for _ in range(8)]
    got, _keep = messages(room)
    yield LIBRARY.recvmmsg(other.fileno(), got, 3, 0, None), [entry.len for entry in got]
    yield [one.raw for one in room[:3]], [entry.flags & socket.MSG_TRUNC for entry in got[:3]]
    yield LIBRARY.recvmmsg(other.fileno(), got, 8, 0x10000, None), [entry.len for entry in got[:2]]
    yield [entry.flags & socket.MSG_TRUNC != 0 for entry in got[:2]]
    yield LIBRARY.recvmmsg(other.fileno(), got, 8, socket.MSG_DONTWAIT, None), errno.errorcode[ctypes.get_errno()]
    one.send(b"x")
    wait(other)
    pause = (ctypes.c_long * 2)(0, 1000)
    yield LIBRARY.recvmmsg(other.fileno(), got, 1, 0, pause)
    one.close()
    other.close()


@case
def readiness():
    one, other = pair()
    raw(other, False)
    edge, level, once = select.epoll(), select.epoll(), select.epoll()
    edge.register(other, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)
    level.register(other, select.EPOLLIN)
    once.register(other, select.EPOLLIN | select.EPOLLONESHOT)
    events = lambda each, pause=0: [names(bits) for _, bits in each.poll(pause)]
    yield events(edge), events(edge), events(level), events(once)
    one.send(b"1")
    yield events(level, LIMIT), events(edge, LIMIT), events(once, LIMIT)
    yield events(level), events(edge), events(once)
    one.send(b"2")
    settle(one)
    yield events(edge, LIMIT), events(once)
    once.modify(other, select.EPOLLIN | select.EPOLLONESHOT)
    yield events(once, LIMIT), other.recv(9), events(level), other.recv(9), events(level)
    yield select.select([other], [other], [other], 0)[1] == [other]
    for each in (edge, level, once, one, other):
        each.close()


@case
def late_registration():
    """A socket that is registered before it is anybody's."""
    one, other = new(False), bound()
    poller = select.epoll()
    poller.register(one, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)
    events = lambda pause=0: [names(bits) for _, bits in poller.poll(pause)]
    yield events()
    one.connect(other.getsockname())
    one.send(b"ask")
    other.connect((ADDRESS, one.getsockname()[1]))
    other.recv(9)
    other.send(b"answer")
    found = events(LIMIT)
    while found == ["OUT"]:
        found = events(LIMIT)
    yield found, one.recv(9)
    poller.close()
    one.close()
    other.close()


@case
def copies():
    one, other = pair()
    copy = one.dup()
    one.close()
    yield copy.send(b"by a copy"), other.recv(20)
    child = os.fork()
    if child == 0:
        copy.send(b"by a child")
        os._exit(0)
    os.waitpid(child, 0)
    yield other.recv(20), copy.send(b"by the parent"), other.recv(20)
    left, right = socket.socketpair()
    socket.send_fds(left, [b"x"], [copy.fileno()])
    copy.close()
    _, found, _, _ = socket.recv_fds(right, 1, 1)
    passed = socket.socket(fileno=found[0])
    yield passed.type == socket.SOCK_DGRAM, passed.send(b"passed"), other.recv(20)
    other.send(b"and back")
    passed.settimeout(LIMIT)
    yield passed.recv(20)
    for each in (other, left, right, passed):
        each.close()


@case
def inherited():
    one, other = bound(), bound()
    one.set_inheritable(True)
    program = ("import socket, sys; one = socket.socket(fileno=int(sys.argv[1])); "
               "data, peer = one.recvfrom(99); one.sendto(data.upper(), peer)")
    child = os.spawnv(os.P_NOWAIT, sys.executable, [sys.executable, "-c", program, str(one.fileno())])
    other.sendto(b"through exec", one.getsockname())
    yield other.recvfrom(99)[0], os.waitpid(child, 0)[1]
    one.close()
    other.close()


@case
def options():
    one = new()
    ours = [(socket.SOL_SOCKET, name) for name in (socket.SO_BROADCAST, socket.SO_REUSEADDR, socket.SO_REUSEPORT)]
    for level, name in ours:
        yield option(one, level, name), option(one, level, name, 1), option(one, level, name)
    for name in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        yield option(one, socket.SOL_SOCKET, name, 50000), option(one, socket.SOL_SOCKET, name)
    one.bind((ADDRESS, 0))
    for name in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        yield option(one, socket.SOL_SOCKET, name), option(one, socket.SOL_SOCKET, name, 1)
        yield option(one, socket.SOL_SOCKET, name), option(one, socket.SOL_SOCKET, name, 10**9)
        yield option(one, socket.SOL_SOCKET, name)
    level, name = (socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER) if V6 else (socket.IPPROTO_IP, IP_MTU_DISCOVER)
    for value in (0, 1, 2, 3, 4, 5, 6, -1):
        yield value, option(one, level, name, value), option(one, level, name)
    yield option(one, level, 24 if V6 else 14), option(one, socket.SOL_SOCKET, 9999), option(one, 77, 1)
    yield option(one, socket.IPPROTO_TCP, socket.TCP_NODELAY), option(one, SOL_UDP, 77)
    one.close()


@case
def groups():
    level = socket.IPPROTO_IPV6 if V6 else socket.IPPROTO_IP
    one = bound(WILDCARD)
    if V6:
        group, join, leave = "ff15::77", socket.IPV6_JOIN_GROUP, socket.IPV6_LEAVE_GROUP
        wish = socket.inet_pton(FAMILY, group) + bytes(4)
        plain = socket.inet_pton(FAMILY, "2001:db8::1") + bytes(4)
        hops, loop = socket.IPV6_MULTICAST_HOPS, socket.IPV6_MULTICAST_LOOP
    else:
        group, join, leave = "224.5.6.7", socket.IP_ADD_MEMBERSHIP, socket.IP_DROP_MEMBERSHIP
        wish = socket.inet_aton(group) + socket.inet_aton(ADDRESS)
        plain = socket.inet_aton("192.0.2.1") + socket.inet_aton(ADDRESS)
        hops, loop = socket.IP_MULTICAST_TTL, socket.IP_MULTICAST_LOOP
    yield option(one, level, hops), option(one, level, loop)
    yield option(one, level, hops, 3), option(one, level, hops), option(one, level, hops, 256)
    yield option(one, level, loop, 0), option(one, level, loop), option(one, level, loop, 1)
    if not V6:
        yield option(one, level, join, wish), option(one, level, join, wish)
        yield option(one, level, join, plain), option(one, level, join, wish[:3])
        source = bound()
        yield option(source, level, socket.IP_MULTICAST_IF, socket.inet_aton(ADDRESS))
        yield source.sendto(b"to all", (group, one.getsockname()[1])), one.recv(20)
        yield option(one, level, leave, wish), option(one, level, leave, wish)
        source.close()
    one.close()


@case
def broadcasts():
    if not V6:
        one = bound()
        yield answer(one.sendto, b"x", ("255.255.255.255", 9)), answer(one.connect, ("255.255.255.255", 9))
        one.close()


@case
def closed_while_waiting():
    one = bound()
    number = one.fileno()
    one.close()
    yield answer(os.read, number, 1)


@case
def both_families():
    if V6:
        one = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        one.settimeout(LIMIT)
        yield option(one, socket.IPPROTO_IPV6, socket.IPV6_V6ONLY), answer(one.bind, ("::", 0))
        four = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        four.settimeout(LIMIT)
        place = {"::1": "127.0.0.1"}.get(ADDRESS, "198.18.0.2")
        four.bind((place, 0))
        four.sendto(b"from four", (place, one.getsockname()[1]))
        data, peer = one.recvfrom(20)
        yield data, peer[0] == "::ffff:" + place
        yield one.sendto(b"to four", peer), four.recv(20)
        yield option(one, socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1), four.sendto(
            b"told", (place, one.getsockname()[1]))
        control = one.recvmsg(20, 200)[1]
        yield [(level, kind, socket.inet_ntop(FAMILY, value[:16]) == "::ffff:" + place)
               for level, kind, value in control]
        yield answer(one.connect, ("::ffff:" + place, four.getsockname()[1])), one.getpeername()[0] == "::ffff:" + place
        only = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        only.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        yield answer(only.bind, ("::", 0)), answer(only.sendto, b"x", ("::ffff:" + place, 9))
        yield answer(four.bind, ("0.0.0.0", only.getsockname()[1]))
        for each in (one, four, only):
            each.close()


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
