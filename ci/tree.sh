#!/usr/bin/env bash
# Works with real trees and real programs on a mounted volume, unmounts, mounts again, and compares every checksum.
#
#   ci/tree.sh file|minio [--short]     (minio: one of its own, built if it is not there)
#
# A source tree of at least 5,000 files is copied in, put under git, cloned and packed (git gc), archived with tar,
# compared with rsync -c; a small crate is built by cargo; an SQLite database is written and checked. The tree has some
# 10,000 files, or 5,000 with --short. Last line: tree: files=N differ=N

set -euo pipefail
# shellcheck source=ci/lib.sh
source "$(dirname "$0")/lib.sh"

short=
store=
for word in "$@"; do
    case $word in
    -h | --help) print_usage; exit 0 ;;
    --short) short=1 ;;
    file | minio) store=$word ;;
    *) usage_error "unknown argument $word" ;;
    esac
done
[ -n "$store" ] || usage_error "the store is needed: file or minio"
least=5000
enough=$([ -n "$short" ] && echo 5000 || echo 10000)

build kiseki
[ "$store" = file ] || bash "$root/ci/minio.sh" build
make_work tree

# The sources of this workspace's dependencies, as cargo keeps them: real trees of all sorts.
say "collecting the source tree"
(cd "$root" && cargo fetch --quiet --locked)
mkdir "$work/tree"
count=0
for crate in "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/*/; do
    cp -a "$crate" "$work/tree/"
    count=$(find "$work/tree" -type f | wc -l)
    [ "$count" -lt "$enough" ] || break
done
[ "$count" -ge "$least" ] || die "only $count files in cargo's registry; the test needs $least"

# Every file, link and folder below a folder: mode, time of change, kind, and what is in it.
sums() {
    (
        cd "$1"
        find . -mindepth 1 -printf '%m %T@ %y %p\n' | LC_ALL=C sort -k 4
        find . -type l -printf '%p -> %l\n' | LC_ALL=C sort
        find . -type f -print0 | LC_ALL=C sort -z | xargs -0 -r sha256sum
    )
}

format_volume "$store"
mount_volume
cd "$work/mnt"

say "copying $count files"
cp -a "$work/tree" tree
rsync -a -c --dry-run --itemize-changes "$work/tree/" tree/ >"$work/rsync.out"
[ ! -s "$work/rsync.out" ] || { head "$work/rsync.out" >&2; die "rsync -c sees differences"; }

say "git: commit, clone, gc"
export GIT_CONFIG_GLOBAL=/dev/null GIT_AUTHOR_NAME=ci GIT_AUTHOR_EMAIL=ci@localhost GIT_COMMITTER_NAME=ci GIT_COMMITTER_EMAIL=ci@localhost
mkdir origin
# Two commits, so that packing has deltas to find.
cp -a "$work/tree/." origin/
git -C origin init --quiet
git -C origin add --all
git -C origin -c gc.auto=0 commit --quiet --message first
find origin -name '*.rs' -not -path '*/.git/*' | sed -n 1,500p | while read -r file; do echo "// more" >>"$file"; done
git -C origin -c gc.auto=0 commit --quiet --all --message second
git clone --quiet --no-local origin clone
git -C clone gc --quiet --prune=now
git -C clone fsck --full --strict --no-progress
git -C origin gc --quiet
git -C clone diff --quiet HEAD

say "tar"
tar -cf tree.tar tree
mkdir untarred
tar -xf tree.tar -C untarred
diff -r --no-dereference "$work/tree" untarred/tree

say "cargo build"
cp -r "$root/ci/bench/jbench" crate
(cd crate && CARGO_TARGET_DIR=$work/mnt/crate/target cargo build --quiet --release --offline)
mkdir run
NOSYNC=1 CHECK=1 crate/target/release/jbench run big=8 count=20 small=16 >"$work/jbench.out"

say "sqlite"
for mode in delete wal; do
    sqlite3 "$mode.db" >"$work/sqlite.out" <<SQL
PRAGMA journal_mode = $mode;
CREATE TABLE t (id INTEGER PRIMARY KEY, k TEXT, v BLOB);
CREATE INDEX by_k ON t (k);
WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)
INSERT INTO t SELECT i, hex(randomblob(8)), randomblob(100 + i % 900) FROM n;
BEGIN; UPDATE t SET v = randomblob(2000) WHERE id % 7 = 0; COMMIT;
BEGIN; DELETE FROM t WHERE id % 3 = 0; ROLLBACK;
DELETE FROM t WHERE id % 5 = 0;
VACUUM;
SQL
    [ "$(sqlite3 "$mode.db" 'PRAGMA integrity_check; SELECT count(*) FROM t;' | tr '\n' ' ')" = "ok 16000 " ] ||
        die "the $mode database is damaged"
done

say "checksums, unmount, mount, checksums"
sums "$work/mnt" >"$work/before"
cd "$work"
unmount_volume
check_volume
mount_volume
sums "$work/mnt" >"$work/after"
diff -r --no-dereference "$work/tree" "$work/mnt/tree"
git -C mnt/clone fsck --full --strict --no-progress
for mode in delete wal; do
    [ "$(sqlite3 "mnt/$mode.db" 'PRAGMA integrity_check;')" = ok ] || die "the $mode database is damaged after mounting again"
done
unmount_volume

files=$(grep -c ' f ' "$work/before")
differ=$(diff "$work/before" "$work/after" | grep -c '^[<>]' || true)
[ "$differ" = 0 ] || diff "$work/before" "$work/after" | sed -n 1,20p >&2 || true
echo "tree: files=$files differ=$differ"
[ "$differ" = 0 ]
