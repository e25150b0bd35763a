# SPDX-License-Identifier: Apache-2.0
# Writes every packet that passes through this network namespace to a file, until it is ended.
import socket
import sys

tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.ntohs(3))
with open(sys.argv[1], "wb", buffering=0) as out:
    out.write(b"listening\n")
    while True:
        out.write(tap.recv(65535))
