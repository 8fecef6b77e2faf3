"""Prints what getifaddrs(3) gives: a line for each address, with interface, address, netmask and broadcast address.
Does so a hundred times, which must always give the same."""

import ctypes
import socket

libc = ctypes.CDLL(None, use_errno=True)


class Name(ctypes.Structure):
    _fields_ = [("family", ctypes.c_ushort), ("data", ctypes.c_ubyte * 26)]


class Entry(ctypes.Structure):
    pass


Entry._fields_ = [
    ("next", ctypes.POINTER(Entry)),
    ("name", ctypes.c_char_p),
    ("flags", ctypes.c_uint),
    ("address", ctypes.POINTER(Name)),
    ("mask", ctypes.POINTER(Name)),
    ("broadcast", ctypes.POINTER(Name)),
]


def text(name):
    if not name:
        return "-"
    family, data = name.contents.family, bytes(name.contents.data)
    if family == socket.AF_INET:
        return socket.inet_ntop(family, data[2:6])
    if family == socket.AF_INET6:
        return socket.inet_ntop(family, data[6:22])
    return "other"


def listed():
    first = ctypes.POINTER(Entry)()
    # The program's own symbols: the preloaded ones before libc's.
    if libc.getifaddrs(ctypes.byref(first)) != 0:
        raise OSError(ctypes.get_errno(), "getifaddrs")
    lines, entry = [], first
    while entry:
        one = entry.contents
        lines.append(f"{one.name.decode()} {text(one.address)} {text(one.mask)} {text(one.broadcast)}")
        entry = one.next
    libc.freeifaddrs(first)
    return lines


before = listed()
for _ in range(100):
    now = listed()
    assert now == before, (before, now)
print("\n".join(before))
