"""Servers of the lab, on IPv4 and IPv6 alike: `http PORT DIRECTORY`, `tcp PORT` (greets, then takes in what it is sent), `udp PORT` (echo).

Each prints `ready`, then one line per request with the peer's address as the server sees it.
"""

import functools
import http.server
import socket
import socketserver
import sys


def peer(address):
    """The address alone, an IPv4 one without the IPv6 dress that a dual-stack socket puts on it."""
    return address[0].removeprefix("::ffff:")


class DualStack:
    address_family = socket.AF_INET6
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 256

    def server_bind(self):
        # Not HTTPServer's own, which looks up a host name and so waits for a name server that a lab does not have.
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "lab", self.server_address[1]


class Http(DualStack, http.server.ThreadingHTTPServer):
    pass


class Tcp(DualStack, socketserver.ThreadingTCPServer):
    pass


class Files(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format, *args):
        print(peer(self.client_address), self.client_address[1], format % args)


class Greet(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.sendall(b"hello %s\n" % peer(self.client_address).encode())
        self.request.shutdown(socket.SHUT_WR)
        received = 0
        while data := self.request.recv(65536):
            received += len(data)
        print(peer(self.client_address), self.client_address[1], "sent", received, "bytes")


def echo(port):
    s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    s.bind(("::", port))
    print("ready")
    while True:
        data, address = s.recvfrom(65535)
        print(peer(address), address[1], len(data), "bytes")
        s.sendto(data, address)


def main():
    kind, port = sys.argv[1], int(sys.argv[2])
    if kind == "udp":
        echo(port)
    if kind == "http":
        server = Http(("::", port), functools.partial(Files, directory=sys.argv[3]))
    else:
        server = Tcp(("::", port), Greet)
    print("ready")
    server.serve_forever()


main()
