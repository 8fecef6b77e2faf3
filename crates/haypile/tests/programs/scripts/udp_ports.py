"""Echoes datagrams at several ports, a thread each, in calls that block: udp_ports.py ADDRESS PORT...

The first port is waited for by poll, the second by epoll, the third by select.
"""

import select
import socket
import sys
import threading


def wait_by(way, one):
    if way == 0:
        poll = select.poll()
        poll.register(one, select.POLLIN)
        return poll.poll
    if way == 1:
        epoll = select.epoll()
        epoll.register(one, select.EPOLLIN)
        return epoll.poll
    if way == 2:
        return lambda: select.select([one], [], [])
    return lambda: None


def echo(way, one):
    wait = wait_by(way, one)
    while True:
        wait()
        block, sender = one.recvfrom(1 << 16)
        one.sendto(block, sender)


threads = []
for way, port in enumerate(sys.argv[2:]):
    one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    one.bind((sys.argv[1], int(port)))
    threads.append(threading.Thread(target=echo, args=(way, one)))
for thread in threads:
    thread.start()
print("ready", flush=True)
