#!/usr/bin/python3
"""A client of the Container Runtime Interface (runtime.v1), in the place of a kubelet. Messages are written by hand, with the
field numbers of the interface's api.proto, so that no generated code is needed.
  cri.py archive FOLDER NAME FILE          writes an image with this root; its program is /busybox
  cri.py SOCKET run JSON                   starts a pod with one container, prints the ids of both
  cri.py SOCKET exec CONTAINER COMMAND...  prints what it prints
  cri.py SOCKET remove POD
"""
import hashlib
import io
import json
import sys
import tarfile
import time

POD, CONTAINER = 0, 1  # NamespaceMode


def encode(message):
    """A message from {field: value}: numbers, strings, messages, lists of those."""
    out = b""
    for field, value in message.items():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, int):
                out += number(field << 3) + number(int(one))
                continue
            data = encode(one) if isinstance(one, dict) else one.encode()
            out += number(field << 3 | 2) + number(len(data)) + data
    return out


def number(value):
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def decode(data):
    """The fields of a message: numbers and bytes. Of a repeated field the last one."""
    fields, at = {}, 0

    def take():
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at, value, shift = at + 1, value | (byte & 127) << shift, shift + 7
            if byte < 128:
                return value

    while at < len(data):
        key = take()
        value = take()
        if key & 7 == 2:
            value, at = data[at:at + value], at + value
        fields[key >> 3] = value
    return fields


def archive(folder, name, path):
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        tar.add(folder, arcname=".")
    layer = layer.getvalue()
    config = json.dumps({
        "architecture": "amd64", "os": "linux", "config": {"Entrypoint": ["/busybox", "sleep", "1000000"]},
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(layer).hexdigest()]},
    }).encode()
    manifest = json.dumps([{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]).encode()
    with tarfile.open(path, "w") as tar:
        for member, data in (("layer.tar", layer), ("config.json", config), ("manifest.json", manifest)):
            info = tarfile.TarInfo(member)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


class Cri:
    def __init__(self, socket):
        # Only here, because the archive needs no client.
        import grpc
        self.channel = grpc.insecure_channel("unix://" + socket)

    def call(self, method, message, service="RuntimeService"):
        ask = self.channel.unary_unary(f"/runtime.v1.{service}/{method}", encode, decode)
        return ask(message, timeout=60)

    def run(self, given):
        # An imported image is known a moment later.
        image = {1: given["image"]}
        until = time.monotonic() + 20
        while 1 not in self.call("ImageStatus", {1: image}, "ImageService"):
            if time.monotonic() > until:
                sys.exit("cri.py: the image is unknown")
            time.sleep(0.02)
        name, privileged = given["name"], int(given["privileged"])
        namespaces = {2: CONTAINER}
        if given["users"]:
            # host_id, container_id, length
            ids = {1: 100000, 2: 0, 3: 65536}
            namespaces[5] = {1: POD, 2: ids, 3: ids}
        # name, uid, namespace
        pod = {1: {1: name, 2: name, 3: "default"}, 3: given["logs"], 8: {1: given["cgroup"], 2: {1: namespaces, 6: privileged}}}
        sandbox = self.call("RunPodSandbox", {1: pod, 2: given["handler"]})[1].decode()
        # cpu_period, cpu_quota, cpu_shares, memory_limit_in_bytes
        resources = {1: 100000, 2: given["quota"], 3: 1024, 4: given["memory"]}
        container = {
            1: {1: name}, 2: image, 3: given["command"], 6: [{1: key, 2: value} for key, value in given["environment"].items()],
            7: [{1: to, 2: source, 3: 1} for to, source in given["mounts"].items()], 11: "log",
            15: {1: resources, 2: {1: {1: given["rights"]}, 2: privileged, 3: namespaces}},
        }
        made = self.call("CreateContainer", {1: sandbox, 2: container, 3: pod})[1].decode()
        self.call("StartContainer", {1: made})
        print(sandbox, made)

    def exec(self, container, command):
        said = self.call("ExecSync", {1: container, 2: command})
        for field in (1, 2):
            sys.stdout.buffer.write(said.get(field, b""))
        return said.get(3, 0)

    def remove(self, pod):
        self.call("StopPodSandbox", {1: pod})
        self.call("RemovePodSandbox", {1: pod})


def main():
    if sys.argv[1] == "archive":
        return archive(*sys.argv[2:])
    cri, (action, argument, *rest) = Cri(sys.argv[1]), sys.argv[2:]
    if action == "run":
        return cri.run(json.loads(argument))
    if action == "exec":
        return cri.exec(argument, rest)
    return cri.remove(argument)


sys.exit(main())
