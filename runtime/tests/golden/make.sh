#!/bin/sh
# make.sh KISEKI OUT.tar [VERSION]: makes a golden volume with the command KISEKI (as root; needs python3, setfacl and
# chattr). Of VERSION 2, which is the default, and not 1, it has ACLs, flags, shared slices, holes and reservations.
#
# The archive holds `meta` and `bucket`, as they lie on the disk after a clean unmount, `MANIFEST`, what list.sh says of
# the mounted tree, and from version 2 on `FEATURES`, what features.py says of it. It is made once for each version of the
# volume format and never changed: newer code must read it.
set -eu
kiseki=$(realpath "$1")
out=$(realpath "$2")
version=${3:-2}
here=$(dirname "$(realpath "$0")")
work=$(mktemp -d)
mnt=$work/mnt
mkdir "$mnt"
features=
[ "$version" = 1 ] || features=--enable-acl
"$kiseki" format "$work/meta" golden --storage file --bucket "$work/bucket" --block-size 64K $features
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
    [ "$version" != 1 ] || exit 0
    mkdir features features/inherits
    seq 1 300 >features/acl
    setfacl -m u:1234:rw,g:5678:r,m::rw features/acl
    chmod 4640 features/acl
    setfacl -d -m u:1234:rwx,o::- features/inherits
    mkdir features/inherits/sub
    printf 'x' >features/inherits/file
    # Both files refer to the same slices, one of them under new bytes.
    seq 1 14000 >features/shared
    sync features/shared
    python3 -c 'import os
a, b = os.open("features/shared", os.O_RDONLY), os.open("features/copy", os.O_WRONLY | os.O_CREAT, 0o644)
assert os.copy_file_range(a, b, 68000, 7, 100) == 68000'
    printf 'OVER THE COPY' | dd of=features/copy bs=1 seek=50000 conv=notrunc,fsync status=none
    seq 1 14000 >features/holes
    sync features/holes
    fallocate --punch-hole --offset 10000 --length 40000 features/holes
    fallocate --keep-size --offset 500000 --length 123456 features/holes
    fallocate --length 300000 features/reserved
    printf 'in the middle' | dd of=features/reserved bs=1 seek=150000 conv=notrunc,fsync status=none
    python3 -c 'import os; os.setxattr("features/acl", "user.long", b"v" * 1000); os.setxattr("features", "trusted.t", b"t")
os.setxattr("features/inherits/file", "security.s", b"s")'
    seq 1 1000 >features/append-only
    seq 1 1000 >features/immutable
    mkdir features/nodump
    chattr +d features/nodump
    printf 'x' >features/nodump/heir
    chattr +A features/nodump/heir
    chattr +a features/append-only
    printf 'appended' >>features/append-only
    chattr +i features/immutable
)
sync "$mnt"
"$here/list.sh" "$mnt" >"$work/MANIFEST"
[ "$version" = 1 ] || "$here/features.py" "$mnt" >"$work/FEATURES"
"$kiseki" umount "$mnt"
"$kiseki" fsck --data "$work/meta"
rm -f "$work"/meta/LOG* "$work"/meta/OPTIONS*
tar -C "$work" --sort=name --owner=0 --group=0 --numeric-owner -cf "$out" \
    meta bucket $(cd "$work" && ls MANIFEST FEATURES 2>/dev/null)
ls -l "$out"
