# SPDX-License-Identifier: Apache-2.0
# A server that answers on its own port and on every port of the node proxy that it can get.
import socket
import sys
import threading
import time

NAME, PORT, GREEDY = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "greedy"


def answer(connection):
    try:
        connection.settimeout(5)
        connection.sendall(b"HTTP/1.0 200 OK\r\n\r\ncanary of " + NAME.encode() + b".\n")
        connection.recv(1000)
        connection.close()
    except OSError:
        pass


def serve(port):
    while True:
        listener = socket.socket()
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.bind(("0.0.0.0", port))
            listener.listen(64)
            break
        except OSError:
            listener.close()
            time.sleep(0.05)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=answer, args=(connection,), daemon=True).start()


ports = [PORT] + ([15001, 15006, 15008, 15053] if GREEDY else [])
for number in ports:
    threading.Thread(target=serve, args=(number,), daemon=True).start()
time.sleep(1e9)
