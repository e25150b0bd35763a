# SPDX-License-Identifier: Apache-2.0
# Opens a new connection ten times a second until it is told to stop, and counts those that got no answer.
import socket
import sys
import time

ADDRESS, PORT = sys.argv[1], int(sys.argv[2])
# Longest for a connection and its answer: a machine may be slow, a lost one never comes.
PATIENCE = 30

total, lost = 0, []
while True:
    try:
        open("/tmp/stop").close()
        break
    except OSError:
        pass
    total += 1
    try:
        with socket.create_connection((ADDRESS, PORT), PATIENCE) as client:
            client.settimeout(PATIENCE)
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            if b"hello" not in b"".join(iter(lambda: client.recv(4096), b"")):
                lost.append(f"{total}: no answer")
    except OSError as error:
        lost.append(f"{total}: {error!r}")
    if total == 5:
        print("knocking", flush=True)
    time.sleep(0.1)
print(f"total {total} lost {len(lost)} {lost[:5]}", flush=True)
