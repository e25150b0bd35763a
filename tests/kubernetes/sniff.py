#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Looks for a text in every packet of this network namespace, on all interfaces. usage: sniff.py TEXT"""
import socket, sys

text = sys.argv[1].encode()
everything = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
print("SNIFFING", flush=True)
while True:
    packet, where = everything.recvfrom(65536)
    if text in packet:
        print("FOUND on", where[0], flush=True)
