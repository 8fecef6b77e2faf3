"""Writes nonsense to the service's interface from the kernel's side, by a raw packet socket.

hostile_frames.py INTERFACE SERVICE_ADDRESS HOST_ADDRESS PORT SEED COUNT

Prints `sent N KIND` for each kind of nonsense. The service must survive all of it and count what it drops.
"""

import random
import socket
import struct
import sys

INTERFACE, SERVICE, HOST, PORT = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
SEED, COUNT = int(sys.argv[5]), int(sys.argv[6])
RANDOM = random.Random(SEED)
LARGEST = 1514


def neighbour():
    """The service's Ethernet address, as the kernel learnt it by ARP."""
    for line in open("/proc/net/arp").read().splitlines()[1:]:
        fields = line.split()
        if fields[0] == SERVICE:
            return bytes.fromhex(fields[3].replace(":", ""))
    raise SystemExit(f"the kernel knows no neighbour {SERVICE}")


RAW = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
RAW.bind((INTERFACE, 0))
OURS = RAW.getsockname()[4]
THEIRS = neighbour()
SERVICE_BYTES, HOST_BYTES = socket.inet_aton(SERVICE), socket.inet_aton(HOST)


def checksum(data):
    data += bytes(len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ethernet(payload, kind=0x0800, source=None, destination=None):
    return (destination or THEIRS) + (source or OURS) + struct.pack("!H", kind) + payload


def ipv4(payload, protocol=6, source=None, destination=None, fragment=0, number=1, length=None, first=0x45, ttl=64,
         options=b"", wrong=0):
    header = struct.pack("!BBHHHBBH", first + len(options) // 4, 0, length or 20 + len(options) + len(payload), number,
                         fragment, ttl, protocol, 0)
    header += (source or HOST_BYTES) + (destination or SERVICE_BYTES) + options
    right = checksum(header)
    return header[:10] + struct.pack("!H", right ^ wrong) + header[12:] + payload


def tcp(flags, seq=0, ack=0, source=None, destination=None, source_port=4000, options=b"", payload=b"", offset=None,
        window=1000, wrong=0, port=None):
    words = offset if offset is not None else 5 + len(options) // 4
    header = struct.pack("!HHIIBBHHH", source_port, port or PORT, seq, ack, words << 4, flags, window, 0, 0)
    pseudo = (source or HOST_BYTES) + (destination or SERVICE_BYTES) + struct.pack("!BBH", 0, 6, len(header + options + payload))
    right = checksum(pseudo + header + options + payload)
    return header[:16] + struct.pack("!HH", right ^ wrong, 0) + options + payload


FIN, SYN, RST, PSH, ACK, URG = 1, 2, 4, 8, 16, 32


def truncated():
    whole = ethernet(ipv4(tcp(SYN)))
    return whole[:RANDOM.randrange(14, len(whole))]


def oversized():
    return ethernet(ipv4(tcp(PSH | ACK, payload=bytes(1460)), length=RANDOM.randrange(1501, 65536)))


def wrong_ip_checksum():
    return ethernet(ipv4(tcp(SYN), wrong=RANDOM.randrange(1, 65535)))


def wrong_tcp_checksum():
    return ethernet(ipv4(tcp(SYN, wrong=RANDOM.randrange(1, 65535))))


def bad_header_length():
    return ethernet(ipv4(tcp(SYN, offset=RANDOM.choice([0, 1, 4, 15])), first=RANDOM.choice([0x45, 0x41, 0x4F, 0x05])))


def bad_options():
    kind = RANDOM.choice([2, 3, 4, 5, 8, 30, 254])
    options = bytes([kind, RANDOM.randrange(256)]) + RANDOM.randbytes(RANDOM.choice([2, 6, 10, 38]))
    return ethernet(ipv4(tcp(RANDOM.choice([SYN, ACK, SYN | ACK]), options=options)))


def all_flags():
    return ethernet(ipv4(tcp(RANDOM.randrange(256), seq=RANDOM.getrandbits(32), ack=RANDOM.getrandbits(32),
                             source_port=RANDOM.randrange(65536), window=RANDOM.randrange(65536))))


def to_itself():
    """A SYN from the service's own address and port (the LAND attack)."""
    body = tcp(SYN, source=SERVICE_BYTES, source_port=PORT)
    return ethernet(ipv4(body, source=SERVICE_BYTES))


def from_strange_addresses():
    source = RANDOM.choice([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\xe0\0\0\1", b"\x7f\0\0\1", b"\xc6\x12\0\xff"])
    return ethernet(ipv4(tcp(SYN, source=source), source=source))


def fragment():
    offset, more = RANDOM.randrange(0, 8191), RANDOM.choice([0, 0x2000])
    body = RANDOM.randbytes(8 * RANDOM.randrange(1, 100))
    return ethernet(ipv4(body, fragment=more | offset, number=RANDOM.randrange(65536), protocol=RANDOM.choice([1, 6, 17])))


def overlapping_fragment():
    offset, more = RANDOM.randrange(0, 20), RANDOM.choice([0, 0x2000])
    return ethernet(ipv4(RANDOM.randbytes(RANDOM.randrange(1, 200)), fragment=more | offset, number=7, protocol=1))


def past_the_largest_packet():
    return ethernet(ipv4(RANDOM.randbytes(1400), fragment=8191, number=9, protocol=1))


def arp():
    body = RANDOM.randbytes(28) if RANDOM.random() < 0.5 else struct.pack(
        "!HHBBH", 1, 0x0800, RANDOM.choice([6, 0, 255]), RANDOM.choice([4, 16]), RANDOM.randrange(5)) + RANDOM.randbytes(20)
    return ethernet(body[:RANDOM.randrange(0, 29)], kind=0x0806)


def icmp():
    quoted = ipv4(tcp(ACK, source=SERVICE_BYTES, destination=HOST_BYTES))[:RANDOM.randrange(0, 48)]
    body = bytes([RANDOM.choice([3, 4, 5, 11, 12, 13]), RANDOM.randrange(16), 0, 0]) + RANDOM.randbytes(4) + quoted
    body = body[:2] + struct.pack("!H", checksum(body)) + body[4:]
    return ethernet(ipv4(body, protocol=1))


def ipv6():
    body = RANDOM.randbytes(RANDOM.randrange(0, 200))
    header = struct.pack("!IHBB", 0x60000000, RANDOM.choice([len(body), 65535, 0]), RANDOM.choice([0, 6, 43, 44, 58, 60, 255]), 255)
    header += bytes.fromhex("20010002000000000000000000000001") + bytes.fromhex("20010002000000000000000000000002")
    return ethernet(header + body, kind=0x86DD)


def random_ip():
    return ethernet(bytes([RANDOM.choice([0x45, 0x46, 0x60])]) + RANDOM.randbytes(RANDOM.randrange(1, 400)),
                    kind=RANDOM.choice([0x0800, 0x86DD]))


def random_frame():
    return RANDOM.randbytes(RANDOM.randrange(14, LARGEST))


KINDS = [truncated, oversized, wrong_ip_checksum, wrong_tcp_checksum, bad_header_length, bad_options, all_flags, to_itself,
         from_strange_addresses, fragment, overlapping_fragment, past_the_largest_packet, arp, icmp, ipv6, random_ip, random_frame]

for kind in KINDS:
    sent = 0
    for _ in range(COUNT):
        try:
            RAW.send(kind()[:LARGEST])
            sent += 1
        except OSError as error:
            # The interface's queue is full: the frame is lost, as on any wire.
            if error.errno not in (105, 11):
                raise
    print(f"sent {sent} {kind.__name__}", flush=True)
