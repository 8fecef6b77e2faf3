"""An HTTP server that stores uploads, with one thread a connection: http_server.py ADDRESS PORT ROOT."""

import functools
import http.server
import os
import shutil
import socket
import sys


class Handler(http.server.SimpleHTTPRequestHandler):
    """Python's file server with PUT."""

    def do_PUT(self):
        left = int(self.headers["Content-Length"])
        path = os.path.join(self.directory, os.path.basename(self.path))
        if self.headers.get("Expect", "").lower() == "100-continue":
            self.send_response_only(100)
            self.end_headers()
        with open(path + ".part", "wb") as file:
            while left > 0:
                block = self.rfile.read(min(left, 1 << 16))
                if not block:
                    raise ConnectionError("the upload ended early")
                file.write(block)
                left -= len(block)
        os.rename(path + ".part", path)
        self.send_response(201)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments):
        pass


class Server(http.server.ThreadingHTTPServer):
    """The server for either family."""

    request_queue_size = 128
    daemon_threads = True


def main():
    address, port, root = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    if ":" in address:
        Server.address_family = socket.AF_INET6
    handler = functools.partial(Handler, directory=root)
    with Server((address, port), handler) as server:
        print("ready", flush=True)
        server.serve_forever()


main()
