#!/usr/bin/env bash
# Runs the same random system calls on a mounted volume and on ext4 (a loop device), side by side, and compares results,
# errno, attributes and contents after each.
#
#   ci/diff.sh [--store file|minio] [--seed S] [--ops N] [--acl] [--without KIND,...] [--limit N] [--replay FILE] [--allowed FILE] [-- MOUNT-ARGUMENT...]
#              (default: file, seed 1, 100,000 calls, ten different differences at most)
#
# A difference is made as short as it can be and printed with both answers; its calls are kept as
# difference-N.jsonl in the temporary folder of this user, for --replay. ci/diff/allowed.txt lists the differences that
# the documentation explains. With --acl both file systems have POSIX ACLs. Needs root.
#
# Last line: diff: ops=N differences=N allowed=N

set -euo pipefail
# shellcheck source=ci/lib.sh
source "$(dirname "$0")/lib.sh"

store="file"
acl=
allowed=$root/ci/diff/allowed.txt
format_arguments=()
mount_arguments=()
arguments=()
all=("$@")
while [ $# -gt 0 ]; do
    case $1 in
    -h | --help) print_usage; exit 0 ;;
    --store) store=${2:-}; shift ;;
    --acl) acl=1 ;;
    --allowed) allowed=${2:-}; shift ;;
    --seed | --ops | --without | --limit | --replay) arguments+=("$1" "${2:-}"); shift ;;
    --) shift; mount_arguments=("$@"); break ;;
    *) usage_error "unknown argument $1" ;;
    esac
    [ $# -gt 0 ] || usage_error "the last argument needs a value"
    shift
done

build kiseki diff
[ "$store" = file ] || bash "$root/ci/minio.sh" build
need_root ${all[@]+"${all[@]}"}
make_work diff

if [ -n "$acl" ]; then
    arguments+=(--acl)
    format_arguments=(--enable-acl)
fi
# Attributes of 64 KiB, as Linux allows them; ext4 keeps them in inodes of their own.
truncate -s 8G "$work/ext4.img"
mkfs.ext4 -q -O ea_inode -E nodiscard "$work/ext4.img"
mkdir "$work/ext4"
mount -o loop,relatime "$work/ext4.img" "$work/ext4"

format_volume "$store" ${format_arguments[@]+"${format_arguments[@]}"}
mount_volume ${mount_arguments[@]+"${mount_arguments[@]}"}
out=${TMPDIR:-/tmp}/kiseki-diff-$(id -u)
mkdir -p "$out"
status=0
"$target/release/diff" run --reference "$work/ext4" --tested "$work/mnt" --allowed "$allowed" \
    --docs "$root" --out "$out" --command "ci/diff.sh --store $store${acl:+ --acl}" ${arguments[@]+"${arguments[@]}"} \
    >"$work/out" 2>&1 || status=$?
sed '$d' "$work/out" >&2
[ "$status" = 0 ] || mount_log
umount "$work/ext4"
unmount_volume
check_volume
tail -n 1 "$work/out"
exit "$status"
