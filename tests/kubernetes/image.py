#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A container image without a registry and without Docker.

usage: image.py NAME OUT.tar ENTRYPOINT FILE:/PATH | ->TARGET:/PATH ...

Writes a one-layer archive that `ctr -n k8s.io images import` takes.
"""
import hashlib, io, json, os, sys, tarfile

name, out, entrypoint, *files = sys.argv[1:]
layer = io.BytesIO()
with tarfile.open(fileobj=layer, mode="w") as t:
    for d in ("tmp", "etc", "var", "var/run", "run", "bin", "usr", "usr/local", "usr/local/bin"):
        i = tarfile.TarInfo(d); i.type = tarfile.DIRTYPE; i.mode = 0o1777 if d == "tmp" else 0o755; t.addfile(i)
    for f in files:
        source, path = f.rsplit(":", 1)
        i = tarfile.TarInfo(path.lstrip("/")); i.mode = 0o755
        if source.startswith("->"): i.type = tarfile.SYMTYPE; i.linkname = source[2:]; t.addfile(i)
        else: i.size = os.path.getsize(source); t.addfile(i, open(source, "rb"))
layer = layer.getvalue(); digest = hashlib.sha256(layer).hexdigest()
config = json.dumps({"architecture": "amd64", "os": "linux", "config": {"Entrypoint": entrypoint.split() or None, "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]}, "rootfs": {"type": "layers", "diff_ids": ["sha256:" + digest]}}).encode()
config_name = hashlib.sha256(config).hexdigest() + ".json"
manifest = json.dumps([{"Config": config_name, "RepoTags": [name], "Layers": [digest + "/layer.tar"]}]).encode()
with tarfile.open(out, "w") as t:
    for n, b in ((config_name, config), (digest + "/layer.tar", layer), ("manifest.json", manifest)):
        i = tarfile.TarInfo(n); i.size = len(b); t.addfile(i, io.BytesIO(b))
