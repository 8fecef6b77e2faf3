"""Echo server of streams and datagrams that locks itself in first: jailed.py ADDRESS PORT EMPTY_FOLDER.

Opens both sockets at PORT, changes its root to the folder, becomes nobody, and forks two children that serve. Says
"ready", and "end" when both have ended, each with the first error of its own sockets: "error WHERE WHY".
"""

import errno
import os
import select
import socket
import sys

NOBODY = 65534


def say(text):
    # One call a line, so that lines of several processes stay whole.
    os.write(1, (text + "\n").encode())


def lock_in(folder):
    os.chroot(folder)
    os.chdir("/")
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)


def echo(connection):
    with connection:
        try:
            while block := connection.recv(1 << 16):
                connection.sendall(block)
        except ConnectionError:
            pass


def serve(streams, datagrams):
    poller = select.poll()
    for one in (streams, datagrams):
        one.setblocking(False)
        poller.register(one, select.POLLIN)
    while True:
        where = "poll"
        try:
            ready = [number for number, _ in poller.poll()]
            if datagrams.fileno() in ready:
                where = "datagram"
                block, peer = datagrams.recvfrom(2000)
                datagrams.sendto(block, peer)
            if streams.fileno() in ready:
                where = "accept"
                connection = streams.accept()[0]
                connection.setblocking(True)
                echo(connection)
        except BlockingIOError:
            pass
        except OSError as error:
            say(f"error {where} {errno.errorcode.get(error.errno, error.errno)}")
            return


def main():
    address, port, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    streams = socket.create_server((address, port), backlog=64)
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.bind((address, port))
    lock_in(folder)
    for _ in range(2):
        if os.fork() == 0:
            try:
                serve(streams, datagrams)
            finally:
                os._exit(0)
    streams.close()
    datagrams.close()
    say("ready")
    for _ in range(2):
        os.wait()
    say("end")


main()
