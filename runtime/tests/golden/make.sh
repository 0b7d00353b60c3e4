#!/bin/sh
# make.sh KISEKI OUT.tar: makes a golden volume with the command KISEKI (as root; needs python3 for extended attributes).
#
# The archive holds `meta` and `bucket`, as they lie on the disk after a clean unmount, and `MANIFEST`, what list.sh says
# of the mounted tree. It is made once for each version of the volume format and never changed: newer code must read it.
set -eu
kiseki=$(realpath "$1")
out=$(realpath "$2")
here=$(dirname "$(realpath "$0")")
work=$(mktemp -d)
mnt=$work/mnt
mkdir "$mnt"
"$kiseki" format "$work/meta" golden --storage file --bucket "$work/bucket" --block-size 64K
"$kiseki" mount -d --log "$work/log" "$work/meta" "$mnt"
trap '"$kiseki" umount --force "$mnt" 2>/dev/null || true; rm -rf "$work"' EXIT
(
    cd "$mnt"
    mkdir -p docs/deep/er sticky
    chmod 1777 sticky
    printf 'a file so small that it is stored in its metadata\n' >docs/inline
    seq 1 14000 >docs/blocks # two blocks
    # Slices over slices, in two commits.
    printf 'OVERWRITTEN' | dd of=docs/blocks bs=1 seek=1000 conv=notrunc,fsync status=none
    printf 'ACROSS A BLOCK BORDER' | dd of=docs/blocks bs=1 seek=65530 conv=notrunc,fsync status=none
    # A truncation, a hole, and bytes after it.
    seq 1 3000 >docs/cut
    sync docs/cut
    truncate -s 5000 docs/cut
    truncate -s 100000 docs/cut
    printf 'the end' >>docs/cut
    # Sparse: the second chunk.
    printf 'far out' | dd of=docs/sparse bs=1 seek=67108865 conv=fsync status=none
    : >docs/empty
    ln docs/inline docs/deep/second-name
    ln -s ../blocks docs/deep/link
    ln -s "$(printf '%0200d' 7)" docs/deep/long-link
    mkfifo docs/fifo
    mknod docs/null c 1 3
    printf 'x' >"$(printf 'name with \303\244, blank and \\ and "quotes"')"
    printf 'x' >"$(printf '%0255d' 1)"
    seq 1 2000 >docs/deleted
    sync docs/deleted
    rm docs/deleted
    mv docs/deep/er docs/deep/renamed
    chown 1234:5678 docs/cut
    chmod 4751 docs/blocks
    python3 -c 'import os; os.setxattr("docs/inline", "user.note", b"a\0b"); os.setxattr("docs", "user.folder", b"")'
    touch -d '1969-12-31T23:59:58.5Z' docs/empty
    touch -d '2038-01-20T00:00:00.123456789Z' docs/sparse
)
"$here/list.sh" "$mnt" >"$work/MANIFEST"
"$kiseki" umount "$mnt"
"$kiseki" fsck --data "$work/meta"
rm -f "$work"/meta/LOG* "$work"/meta/OPTIONS*
tar -C "$work" --sort=name --owner=0 --group=0 --numeric-owner -cf "$out" meta bucket MANIFEST
ls -l "$out"
