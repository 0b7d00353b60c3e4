#!/usr/bin/env bash
# From a fresh checkout to a mounted Kiseki: installs what is missing, builds, makes a volume on a local folder, mounts
# it, copies a real tree into it, reads it back and compares, and leaves it mounted.
#
#   ci/quickstart.sh             the tree: this checkout and the sources of the libraries it was built from
#   ci/quickstart.sh --no-copy   only build, make and mount
#
# KISEKI_HOME: where the volume is (~/.kiseki/quickstart). KISEKI_MOUNT: where it is mounted (~/.kiseki/quickstart/mnt).
# A second run takes seconds: it uses what is there.

set -euo pipefail
# shellcheck source=ci/lib.sh
source "$(dirname "$0")/lib.sh"

copy=1
case ${1:-} in
-h | --help) print_usage; exit 0 ;;
--no-copy) copy= ;;
'') ;;
*) usage_error "unknown argument $1" ;;
esac

home=${KISEKI_HOME:-$HOME/.kiseki/quickstart}
mnt=${KISEKI_MOUNT:-$home/mnt}
bash "$root/ci/dep.sh"
say "building (the first time, RocksDB's C++ takes about 15 minutes on 2 cores)"
(cd "$root" && cargo build --release --locked -p kiseki)

mkdir -p "$home/bucket"
# A folder that the mount of a killed process covers cannot be made, and need not be.
[ -n "$(mounts_under "$mnt")" ] || mkdir -p "$mnt"
if [ ! -e "$home/meta" ]; then
    say "making a volume: metadata in $home/meta, data in $home/bucket"
    "$kiseki" format "$home/meta" quickstart --storage file --bucket "$home/bucket"
fi
mount_it() { "$kiseki" mount "$home/meta" "$mnt" -d --log "$home/mount.log"; }
fresh=
if mountpoint -q "$mnt" && stat -f "$mnt" >/dev/null 2>&1; then
    say "mounted at $mnt already"
else
    say "mounting it at $mnt"
    mount_it
    fresh=1
fi

if [ -n "$copy" ]; then
    # What is there in any case once this was built: thousands of real files. The checkout goes without its target folder.
    mapfile -t crates < <(find "${CARGO_HOME:-$HOME/.cargo}/registry/src" -mindepth 2 -maxdepth 2 -type d | sort | sed -n 1,60p)
    say "copying a tree into it"
    mkdir -p "$mnt/tree"
    tar -C "$root" --exclude=./target --exclude=./.git -cf - . | tar -C "$mnt/tree" -xf -
    cp -r "${crates[@]}" "$mnt/tree/"
    if [ -n "$fresh" ]; then
        # So that what is read comes from the store and not from memory.
        say "unmounting and mounting again"
        "$kiseki" umount "$mnt"
        mount_it
    fi
    say "reading it back and comparing"
    differ=0
    diff -r --no-dereference --exclude=target --exclude=.git "$root" "$mnt/tree" | grep -v "^Only in $mnt/tree: " && differ=1
    for crate in "${crates[@]}"; do
        diff -r --no-dereference "$crate" "$mnt/tree/${crate##*/}" || differ=1
    done
    files=$(find "$mnt/tree" -type f | wc -l)
    [ "$differ" = 0 ] || die "what was read back differs from what was written: please report this"
    say "$files files are the same"
fi

cat <<EOF

Kiseki is mounted at $mnt. Try:
  cp -r some-folder $mnt/
  $kiseki status $mnt
  $kiseki info $mnt/tree/README.md
  $kiseki fsck $mnt --data
Unmount it, and mount it again:
  $kiseki umount $mnt
  $kiseki mount $home/meta $mnt -d
EOF
