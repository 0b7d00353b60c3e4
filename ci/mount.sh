#!/usr/bin/env bash
# Mounts the volume `kiseki` in the MinIO of this machine (ci/minio.sh) at /tmp/kiseki; makes it the first time.
#
#   ci/mount.sh         (just mount)
#   ci/mount.sh umount  (just umount)
#
# KISEKI_META: where its metadata is (~/.kiseki/minio-meta). KISEKI_MOUNT: where it is mounted (/tmp/kiseki).
# KISEKI_MINIO: where MinIO answers (http://127.0.0.1:9000). KISEKI_ACCESS_KEY, KISEKI_SECRET_KEY: its credentials (those
# of ci/minio.sh).

set -euo pipefail
# shellcheck source=ci/lib.sh
source "$(dirname "$0")/lib.sh"

meta=${KISEKI_META:-$HOME/.kiseki/minio-meta}
mnt=${KISEKI_MOUNT:-/tmp/kiseki}
minio=${KISEKI_MINIO:-http://127.0.0.1:9000}
export KISEKI_ACCESS_KEY=${KISEKI_ACCESS_KEY:-kiseki} KISEKI_SECRET_KEY=${KISEKI_SECRET_KEY:-kiseki-secret}

command=mount
case ${1:-} in
-h | --help) print_usage; exit 0 ;;
umount) command=umount ;;
'') ;;
*) usage_error "unknown argument $1" ;;
esac
[ -x "$kiseki" ] || die "$kiseki is not there: build it with \`just build\`"

if [ "$command" = umount ]; then
    [ -n "$(mounts_under "$mnt")" ] || { say "nothing is mounted at $mnt"; exit 0; }
    "$kiseki" umount "$mnt"
    say "unmounted $mnt; \`just mount\` mounts it again"
    exit 0
fi

# statfs fails at a mount whose process is gone (the kernel may remember the rest of it); that one is mounted over.
if mountpoint -q "$mnt" && stat -f "$mnt" >/dev/null 2>&1; then
    say "mounted at $mnt already:"
    "$kiseki" status "$mnt"
    exit 0
fi

# A mount would wait for MinIO, as it does in an outage; nobody wants to wait for one that was never started.
address=${minio#http://}
answers() (
    exec 2>/dev/null 3<>"/dev/tcp/${address%:*}/${address##*:}" || exit 1
    printf 'GET /minio/health/live HTTP/1.0\r\nHost: %s\r\n\r\n' "$address" >&3
    read -r -t 5 _ status _ <&3 && [ "$status" = 200 ]
)
answers || die "MinIO does not answer at $minio: start it with \`just minio\`"

if [ ! -e "$meta" ]; then
    say "making a volume: metadata in $meta, data in $minio/kiseki"
    mkdir -p "$(dirname "$meta")"
    "$kiseki" format "$meta" kiseki --storage minio --bucket "$minio/kiseki" >/dev/null
fi
# A folder that a dead mount covers cannot be made, and need not be.
[ -n "$(mounts_under "$mnt")" ] || mkdir -p "$mnt"
"$kiseki" mount "$meta" "$mnt" -d --log "$meta.log"
cat <<EOT

Kiseki is mounted at $mnt. Try:
  cp -r some-folder $mnt/
  $kiseki status $mnt
  $kiseki bench $mnt
Unmount it: just umount
EOT
