# SPDX-License-Identifier: Apache-2.0
# A server for tests that ends as a good one does: told to end, it serves on for a while and says that it goes, then closes
# what is idle and finishes what is under way.
import http.server
import os
import signal
import threading
import time

# Seconds in which clients learn that it is no endpoint any more.
NOTICE = 3


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        time.sleep(0.01)
        self.send_response(200)
        self.send_header("Content-Length", "3")
        if ending.is_set():
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(b"ok\n")

    do_POST = do_GET

    def log_message(self, *_):
        pass


def end(*_):
    ending.set()
    threading.Timer(NOTICE, os._exit, (0,)).start()


ending = threading.Event()
signal.signal(signal.SIGTERM, end)
server = http.server.ThreadingHTTPServer(("", 8080), Handler)
server.serve_forever()
