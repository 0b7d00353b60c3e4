#!/usr/bin/env bash
# Makes very many entries in one directory, lists them, removes them; watches the memory of the mount process.
#
#   ci/entries.sh file|minio [--count N]     (default: 1,000,000)
#
# Last line: entries: n=N create_s=S list_s=S remove_s=S rss_grown_mib=N. Fails if listing takes longer than 10 s for a
# million (5 s for fewer), if the process has grown by more than 256 MiB while it worked, or if an entry is missing or left.

set -euo pipefail
# shellcheck source=ci/lib.sh
source "$(dirname "$0")/lib.sh"

store=
count=1000000
while [ $# -gt 0 ]; do
    case $1 in
    -h | --help) print_usage; exit 0 ;;
    --count) count=${2:-}; shift ;;
    file | minio) store=$1 ;;
    *) usage_error "unknown argument $1" ;;
    esac
    [ $# -gt 0 ] || usage_error "--count needs a number"
    shift
done
[ -n "$store" ] || usage_error "the store is needed: file or minio"
build kiseki
[ "$store" = file ] || bash "$root/ci/minio.sh" build
make_work entries

rss_mib() { awk '/^VmRSS/ { print int($2 / 1024) }' "/proc/$mount_pid/status"; }
now_ms() { date +%s%3N; }
seconds() { awk -v ms="$1" 'BEGIN { printf "%.1f", ms / 1000 }'; }

format_volume "$store"
mount_volume
# What the first requests take is not growth.
mkdir "$work/mnt/first" && seq -f "$work/mnt/first/f%.0f" 1000 | xargs touch && rm -r "$work/mnt/first"
before=$(rss_mib)
most=$before
watch_rss() {
    local rss
    rss=$(rss_mib)
    say "$1: $rss MiB"
    [ "$rss" -le "$most" ] || most=$rss
}

mkdir "$work/mnt/many"
begin=$(now_ms)
(cd "$work/mnt/many" && seq -f 'entry-%.0f' "$count" | xargs touch)
create=$(($(now_ms) - begin))
watch_rss "created"
begin=$(now_ms)
listed=$(cd "$work/mnt/many" && ls -f | wc -l)
list=$(($(now_ms) - begin))
watch_rss "listed"
# `.` and `..` are listed, too.
[ "$listed" = $((count + 2)) ] || die "$listed entries are listed, not $((count + 2))"
different=$(cd "$work/mnt/many" && ls -f | sort -u | wc -l)
[ "$different" = "$listed" ] || die "$((listed - different)) entries are listed twice"
begin=$(now_ms)
rm -r "$work/mnt/many"
remove=$(($(now_ms) - begin))
watch_rss "removed"
[ -z "$(ls -A "$work/mnt")" ] || die "something is left"
unmount_volume
check_volume

grown=$((most - before))
echo "entries: n=$count create_s=$(seconds "$create") list_s=$(seconds "$list") remove_s=$(seconds "$remove") rss_grown_mib=$grown"
[ "$list" -le $((count < 1000000 ? 5000 : 10000)) ] || die "listing takes too long"
[ "$grown" -le 256 ] || die "the mount process has grown by $grown MiB"
