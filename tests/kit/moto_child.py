"""Moto's S3 as a process of its own, run by the Python of the clients' environment, not by ours.

It says at which port it listens and ends when its standard input does, so that it never outlives its test.
Requests are answered one after the other: moto looks whether a name is taken and writes it in two steps.
"""

import os
import sys
import threading

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

turn = threading.Lock()
moto = DomainDispatcherApplication(create_backend_app)


class Quiet(WSGIRequestHandler):
    """Says nothing of requests."""

    def log(self, *args):
        """Nothing."""


def one_by_one(environ, start_response):
    """Moto, asked once at a time."""
    with turn:
        return [b"".join(moto(environ, start_response))]


def end_with_the_test():
    """The test holds the other end of standard input."""
    sys.stdin.read()
    os._exit(0)


server = make_server("127.0.0.1", 0, one_by_one, threaded=True, request_handler=Quiet)
threading.Thread(target=end_with_the_test, daemon=True).start()
sys.stdout.write(f"{server.server_port}\n")
sys.stdout.flush()
server.serve_forever()
