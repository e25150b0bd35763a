# SPDX-License-Identifier: Apache-2.0
# Asks a server in several ways until /tmp/stop exists, then says how often each was answered, and everything that was lost:
# new connections, kept ones of HTTP/1.1 that are busy or pause, and streams of HTTP/2. What a client is told not to expect an
# answer to (a stream after the last one of GOAWAY, RFC 9113 §6.8) it asks again.
import collections
import http.client
import os
import socket
import struct
import sys
import threading
import time

HOST, PORT = sys.argv[1], int(sys.argv[2])
results, lost, lock = collections.Counter(), [], threading.Lock()
DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY, WINDOW = 0, 1, 3, 4, 6, 7, 8


def stopped():
    return os.path.exists("/tmp/stop")


def note(kind, outcome):
    with lock:
        if outcome == 200:
            results[kind] += 1
        else:
            lost.append(f"{kind}: {outcome}")


def http1(kind, method, pause, keep):
    connection = None
    while not stopped():
        try:
            connection = connection or http.client.HTTPConnection(HOST, PORT, timeout=120)
            connection.request(method, "/", body=b"abc" if method == "POST" else None)
            answer = connection.getresponse()
            answer.read()
            outcome = answer.status
            if not keep:
                connection.close()
            if answer.will_close or not keep:
                connection = None
        except Exception as error:
            outcome, connection = f"{type(error).__name__} {error}", None
        note(kind, outcome)
        time.sleep(pause)


def frame(kind, flags, stream, body=b""):
    return struct.pack("!I", len(body))[1:] + bytes([kind, flags]) + struct.pack("!I", stream) + body


class Http2:
    def __init__(self):
        self.socket = socket.create_connection((HOST, PORT), timeout=120)
        self.socket.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0))
        self.open, self.next, self.last, self.lock = set(), 1, None, threading.Lock()
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    # Whether there was a stream left for it.
    def ask(self):
        with self.lock:
            if self.last is not None or not self.reader.is_alive():
                return False
            # GET / with http; the host as a literal (RFC 7541 §6.2.2).
            head = b"\x82\x86\x84" + bytes([1, len(HOST)]) + HOST.encode()
            self.open.add(self.next)
            self.socket.sendall(frame(HEADERS, 5, self.next, head))
            self.next += 2
            return True

    def take(self, size):
        got = b""
        while len(got) < size:
            more = self.socket.recv(size - len(got))
            if not more:
                raise OSError("the connection has ended")
            got += more
        return got

    def ended(self, stream, outcome):
        if stream in self.open:
            self.open.remove(stream)
            if outcome is not None:
                note("streams of HTTP/2", outcome)

    def read(self):
        try:
            while self.last is None or self.open:
                self.frame()
        except Exception as error:
            with self.lock:
                for stream in list(self.open):
                    self.ended(stream, f"{type(error).__name__} {error}")
        self.socket.close()

    def frame(self):
        head = self.take(9)
        size, kind, flags = int.from_bytes(head[:3], "big"), head[3], head[4]
        stream, body = int.from_bytes(head[5:], "big") & 0x7FFFFFFF, self.take(size)
        with self.lock:
            if kind in (SETTINGS, PING) and not flags & 1:
                self.socket.sendall(frame(kind, 1, 0, body if kind == PING else b""))
            elif kind == GOAWAY:
                self.last = int.from_bytes(body[:4], "big") & 0x7FFFFFFF
                for later in [s for s in self.open if s > self.last]:
                    self.ended(later, None)
            elif kind == RESET:
                # REFUSED_STREAM: nobody has looked at it.
                code = int.from_bytes(body, "big")
                self.ended(stream, None if code == 7 else f"RST_STREAM {code}")
            elif kind == HEADERS and not body.startswith(b"\x88"):
                self.ended(stream, "another status than 200")
            elif kind == DATA and size:
                self.socket.sendall(frame(WINDOW, 0, 0, struct.pack("!I", size)))
            if kind in (DATA, HEADERS) and flags & 1:
                self.ended(stream, 200)


def http2(pause):
    connections = []
    while not stopped():
        try:
            if not connections or not connections[-1].ask():
                connections.append(Http2())
                continue
        except Exception as error:
            note("streams of HTTP/2", f"{type(error).__name__} {error}")
        time.sleep(pause)
    for connection in connections:
        patience = time.monotonic() + 60
        while connection.open and time.monotonic() < patience:
            time.sleep(0.05)
        for stream in list(connection.open):
            note("streams of HTTP/2", "never answered")


ways = [(http1, ("kept", "GET", 0.02, True)), (http1, ("kept with a body", "POST", 0.05, True))]
ways += [(http1, ("kept that pause", "POST", 1.5, True)), (http1, ("new", "GET", 0.05, False))]
ways += [(http2, (0.03,)), (http2, (1,))]
threads = [threading.Thread(target=way, args=arguments) for way, arguments in ways]
for thread in threads:
    thread.start()
print("begun", flush=True)
for thread in threads:
    thread.join()
for outcome in lost:
    print("LOST", outcome)
print("answered", dict(results))
print("finished", flush=True)
# A container that ends is started again, and its log begins anew.
threading.Event().wait()
