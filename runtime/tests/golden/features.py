#!/usr/bin/env python3
"""features.py DIR: what list.sh leaves out of the tree in DIR: attributes, ACLs, flags, blocks; one line for each name."""
import fcntl
import os
import stat
import struct
import sys

FS_IOC_GETFLAGS = 0x80086601

root = sys.argv[1]
paths = [os.path.join(folder, name) for folder, folders, files in os.walk(root) for name in folders + files]
for path in sorted(paths, key=os.fsencode):
    status = os.lstat(path)
    names = sorted(os.listxattr(path, follow_symlinks=False))
    attributes = [f"{name}={os.getxattr(path, name, follow_symlinks=False).hex()}" for name in names]
    flags = 0
    if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode):
        fd = os.open(path, os.O_RDONLY | os.O_NOATIME)
        (flags,) = struct.unpack("l", fcntl.ioctl(fd, FS_IOC_GETFLAGS, struct.pack("l", 0)))
        os.close(fd)
    print(os.path.relpath(path, root), f"blocks {status.st_blocks}", f"flags {flags:x}", *attributes, sep="|")
