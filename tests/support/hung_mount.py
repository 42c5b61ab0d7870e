"""`python hung_mount.py FOLDER`: mounts over it a filesystem that never answers, like a network share that went away.

A FUSE server of one answer: it agrees to be mounted. Ending it ends the hang. Runs on any Python, of itself alone.
"""

import ctypes
import os
import signal
import struct
import sys

_HEADER = struct.Struct("=IIQQIIII")  # fuse_in_header: length, opcode, unique, node, uid, gid, pid, padding
_ANSWER = struct.Struct("=IiQ")  # fuse_out_header: length, error, unique
_AGREED = struct.Struct("=IIIIHHII32x")  # fuse_init_out up to time_gran
_VERSION = (7, 31)


def main(folder: str) -> None:
    """Mount, complete the handshake, report it, and never answer again."""
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"hung", folder.encode(), b"fuse", 0, options.encode()) != 0:
        raise OSError(ctypes.get_errno(), f"cannot mount over {folder}")
    asked = os.read(device, 1 << 20)
    _, _, unique, *_ = _HEADER.unpack_from(asked)
    agreed = _AGREED.pack(*_VERSION, 4096, 0, 1, 1, 4096, 1)
    os.write(device, _ANSWER.pack(_ANSWER.size + len(agreed), 0, unique) + agreed)
    print("mounted", flush=True)
    # Not even read: as with NFS, whoever waits can be killed; whose request was read could not.
    signal.pause()


if __name__ == "__main__":
    main(sys.argv[1])
