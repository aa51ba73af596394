"""Mounts a FUSE filesystem of the type fuse.ambit on a file, and answers nothing but INIT."""
import ctypes
import os
import struct
import sys

path = sys.argv[1]
device = os.open("/dev/fuse", os.O_RDWR)
options = f"fd={device},rootmode=100444,user_id=0,group_id=0,allow_other"
libc = ctypes.CDLL(None, use_errno=True)
if libc.mount(b"ambit", path.encode(), b"fuse.ambit", 0, options.encode()):
    sys.exit(f"mount: {os.strerror(ctypes.get_errno())}")
print("it runs", flush=True)
while True:
    _, operation, unique = struct.unpack_from("IIQ", os.read(device, 1 << 20))
    if operation == 26:
        answer = struct.pack("IIIIHHI", 7, 31, 0, 0, 0, 0, 4096) + bytes(40)
        os.write(device, struct.pack("IiQ", 16 + len(answer), 0, unique) + answer)
