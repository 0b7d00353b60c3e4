#!/usr/bin/env bash
# Works with real programs on a mounted volume, unmounts, mounts again, and compares every checksum.
#
#   ci/programs.sh file|minio [--short] [--only NAME]... [-- FORMAT-ARGUMENT...]     (minio: one of its own)
#
# Programs: copy, git, tar, rsync, c, rust, sqlite, editors, packages, execute. Each is judged by what it says itself and
# by comparison with the same on the local disk. The tree has some 10,000 files, or 5,000 with --short; packages are a
# hundred, or twenty. Needs root: owners, devices and trusted attributes are kept. Last line: programs: run=N failed=N

set -euo pipefail
# shellcheck source=ci/lib.sh
source "$(dirname "$0")/lib.sh"

short=
store=
only=()
format_arguments=()
all=("$@")
while [ $# -gt 0 ]; do
    case $1 in
    -h | --help) print_usage; exit 0 ;;
    --short) short=1 ;;
    --only) only+=("${2:-}"); shift ;;
    file | minio) store=$1 ;;
    --) shift; format_arguments=("$@"); break ;;
    *) usage_error "unknown argument $1" ;;
    esac
    [ $# -gt 0 ] || usage_error "--only needs a name"
    shift
done
[ -n "$store" ] || usage_error "the store is needed: file or minio"
least=5000
enough=$([ -n "$short" ] && echo 5000 || echo 10000)

if [ -z "${KISEKI_BUILT:-}" ]; then
    bash "$root/ci/dep.sh" test --without-minio
    [ "$store" = file ] || bash "$root/ci/minio.sh" build
    (cd "$root" && cargo fetch --quiet --locked)
fi
build kiseki
need_root "${all[@]}"
make_work programs

# Every file, link and folder below a folder: mode, owner, time of change, kind, and what is in it.
sums() {
    (
        cd "$1"
        find . -mindepth 1 -printf '%m %U %G %T@ %y %p\n' | LC_ALL=C sort -k 6
        find . -type l -printf '%p -> %l\n' | LC_ALL=C sort
        find . -type f -print0 | LC_ALL=C sort -z | xargs -0 -r sha256sum
    )
}

copy() {
    cp -a "$work/tree" tree
    rsync -a -c --dry-run --itemize-changes "$work/tree/" tree/ >"$work/rsync.out"
    [ ! -s "$work/rsync.out" ] || { head "$work/rsync.out"; return 1; }
}

git_() {
    export GIT_CONFIG_GLOBAL=/dev/null GIT_AUTHOR_NAME=ci GIT_AUTHOR_EMAIL=ci@localhost GIT_COMMITTER_NAME=ci GIT_COMMITTER_EMAIL=ci@localhost
    mkdir origin
    # Several commits, so that packing has deltas to find.
    cp -a "$work/tree/." origin/
    git -C origin init --quiet
    git -C origin add --all --force
    git -C origin -c gc.auto=0 commit --quiet --message first
    local round file
    for round in 2 3; do
        find origin -name '*.rs' -not -path '*/.git/*' | sed -n 1,500p | while read -r file; do echo "// $round" >>"$file"; done
        git -C origin -c gc.auto=0 commit --quiet --all --message "$round"
    done
    git clone --quiet --bare --no-local origin bare.git
    git clone --quiet --no-local bare.git clone
    git -C clone gc --quiet --prune=now
    git -C clone fsck --full --strict --no-progress
    git -C clone checkout --quiet HEAD~2
    [ -z "$(git -C clone status --porcelain)" ]
    git -C clone checkout --quiet -
    [ -z "$(git -C clone status --porcelain)" ]
    git -C origin gc --quiet
    git -C clone diff --quiet HEAD
    diff -r --no-dereference -x .git origin clone
}

# What tar and rsync must carry along: links, holes, devices, odd names, attributes of every namespace that root may set.
make_special() {
    mkdir "$1" "$1/sub"
    echo text >"$1/a file
with a line end"
    ln "$1/a file
with a line end" "$1/sub/hard"
    ln -s nowhere "$1/dangling"
    truncate -s 5M "$1/holes"
    echo end >>"$1/holes"
    mkfifo -m 640 "$1/fifo"
    mknod -m 600 "$1/null" c 1 3
    mknod "$1/block" b 4000 1
    printf 'x' >"$1/$(printf 'b\377\376')"
    touch -d '1960-01-02 03:04:05.123456789' "$1/sub/old"
    touch -d '2100-01-02 03:04:05.987654321' "$1/sub/late"
    cp -p /bin/true "$1/sub/suid"
    chown 1001:1002 "$1/sub/suid"
    chmod 6755 "$1/sub/suid"
    setfattr -n user.colour -v blue "$1/holes"
    setfattr -n trusted.kept -v 0x00ff00 "$1/sub"
    setfattr -n security.test -v yes "$1/holes"
    if [ -n "$acl" ]; then
        setfacl -m u:1001:rw-,g:1002:r--,m::rw- "$1/holes"
        setfacl -d -m u:1001:rwx "$1/sub"
    fi
    chmod 3775 "$1/sub"
}

# Names, attributes and contents of two trees.
same_trees() {
    diff <(cd "$1" && special "$1") <(cd "$2" && special "$2") && diff -r --no-dereference -x fifo -x null -x block "$1" "$2"
}
special() {
    find . -mindepth 1 -printf '%p %y %m %U %G %n %T@ %l\n' | LC_ALL=C sort
    find . -mindepth 1 -print0 | LC_ALL=C sort -z | xargs -0 getfattr -h -d -m - 2>/dev/null | grep -v posix_acl
    [ -z "$acl" ] || find . -mindepth 1 -not -type l -print0 | LC_ALL=C sort -z | xargs -0 getfacl -n 2>/dev/null
}

tar_() {
    local options=(--xattrs --xattrs-include='*' --numeric-owner)
    [ -z "$acl" ] || options+=(--acls)
    make_special made
    mkdir untarred "$work/untarred"
    tar "${options[@]}" -S -cf special.tar made
    tar "${options[@]}" -xpf special.tar -C untarred
    same_trees "$PWD/made" "$PWD/untarred/made"
    tar "${options[@]}" -xpf special.tar -C "$work/untarred"
    same_trees "$PWD/made" "$work/untarred/made"
    tar -cf tree.tar -C "$work" tree
    tar -xf tree.tar -C untarred
    diff -r --no-dereference "$work/tree" untarred/tree
}

rsync_() {
    # By itself rsync compares whole seconds, and leaves times be that are equal so.
    local options=(-aHX --modify-window=-1)
    [ -z "$acl" ] || options+=(-A)
    make_special "$work/special"
    rsync "${options[@]}" "$work/special/" in/
    same_trees "$work/special" "$PWD/in"
    rsync "${options[@]}" in/ "$work/out/"
    same_trees "$work/special" "$work/out"
    rsync "${options[@]}" -c --dry-run --itemize-changes in/ "$work/special/" >"$work/rsync.out"
    [ ! -s "$work/rsync.out" ] || { cat "$work/rsync.out"; return 1; }
    # A second run finds nothing to do, a third with changes does only them.
    rsync "${options[@]}" "$work/tree/" mirror/
    [ -z "$(rsync "${options[@]}" --itemize-changes "$work/tree/" mirror/)" ]
}

# bzip2 as its crate carries it: compiled, linked and tested by its own Makefile.
c() {
    local crate
    mkdir "$work/fetch" "$work/fetch/src"
    printf '[package]\nname = "fetch"\nversion = "0.0.0"\n[dependencies]\nbzip2-sys = "=0.1.13"\n[workspace]\n' >"$work/fetch/Cargo.toml"
    touch "$work/fetch/src/lib.rs"
    (cd "$work/fetch" && cargo fetch --quiet)
    crate=$(echo "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/bzip2-sys-0.1.13*/bzip2-1.0.8)
    cp -r "$crate" bzip2
    # The crate leaves the samples out that `make test` wants; the compiled library is one.
    make -s -j4 -C bzip2 libbz2.a bzip2 bzip2recover 2>&1
    bzip2/bzip2 -k9 bzip2/libbz2.a
    bzip2/bzip2 -dc bzip2/libbz2.a.bz2 | cmp - bzip2/libbz2.a
    # Make goes by times: nothing to do, then one file.
    make -q -C bzip2 libbz2.a bzip2
    touch bzip2/compress.c
    ! make -q -C bzip2 libbz2.a
    [ "$(make -C bzip2 libbz2.a | grep -c -- '-c .*\.c')" = 1 ]
}

rust() {
    cp -r "$root/ci/bench/jbench" crate
    export CARGO_TARGET_DIR=$PWD/crate/target
    (cd crate && cargo build --quiet --release --offline)
    mkdir run
    NOSYNC=1 CHECK=1 crate/target/release/jbench run big=8 count=20 small=16
    # Cargo goes by times, too.
    (cd crate && cargo build --release --offline 2>&1) | tee "$work/cargo.out"
    ! grep -q Compiling "$work/cargo.out"
    echo "// more" >>crate/src/main.rs
    (cd crate && cargo build --release --offline 2>&1) | grep -q Compiling
}

# Two processes add to one table at once.
sqlite_rivals() {
    local process
    for process in 1 2; do
        for _ in $(seq 20); do
            sqlite3 -cmd '.timeout 60000' "$1" "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 10) INSERT INTO r SELECT $process, randomblob(500) FROM n;"
        done &
    done
    wait
    [ "$(sqlite3 "$1" 'PRAGMA integrity_check; SELECT count(*) FROM r;' | tr '\n' ' ')" = "ok 400 " ]
}

sqlite() {
    local mode
    for mode in delete wal; do
        sqlite3 "$mode.db" <<SQL
PRAGMA journal_mode = $mode;
CREATE TABLE r (p INTEGER, v BLOB);
CREATE TABLE t (id INTEGER PRIMARY KEY, k TEXT, v BLOB);
CREATE INDEX by_k ON t (k);
WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)
INSERT INTO t SELECT i, hex(randomblob(8)), randomblob(100 + i % 900) FROM n;
BEGIN; UPDATE t SET v = randomblob(2000) WHERE id % 7 = 0; COMMIT;
BEGIN; DELETE FROM t WHERE id % 3 = 0; ROLLBACK;
DELETE FROM t WHERE id % 5 = 0;
VACUUM;
SQL
        [ "$(sqlite3 "$mode.db" 'PRAGMA integrity_check; SELECT count(*) FROM t;' | tr '\n' ' ')" = "ok 16000 " ]
        sqlite_rivals "$mode.db"
    done
}

# vim in its ways of saving; and what others do: a temporary file, synced, the old one kept as a link, renamed over.
editors() {
    local backupcopy round
    for backupcopy in yes no auto; do
        printf 'one\ntwo\n' >"text-$backupcopy"
        chmod 640 "text-$backupcopy"
        chown 1001:1002 "text-$backupcopy"
        vim.tiny -u NONE -N -es -c "set backup writebackup backupskip= backupcopy=$backupcopy fsync" -c '%s/one/ONE/' -c 'wq' "text-$backupcopy"
        [ "$(cat "text-$backupcopy")" = "$(printf 'ONE\ntwo')" ]
        [ "$(cat "text-$backupcopy~")" = "$(printf 'one\ntwo')" ]
        [ "$(stat -c '%a %u %g' "text-$backupcopy")" = "640 1001 1002" ]
    done
    echo 0 >saved
    for round in $(seq 200); do
        echo "$round" >saved.tmp
        sync saved.tmp
        ln -f saved saved~
        mv saved.tmp saved
        [ "$(cat saved) $(cat saved~)" = "$round $((round - 1))" ]
    done
    [ "$(find . -name 'saved*' | wc -l)" = 2 ]
}

# The packages that this machine has, small ones first, as its mirror has them.
packages() {
    local number=100 package
    [ -z "$short" ] || number=20
    mkdir -p "$work/debs" extracted "$work/extracted"
    dpkg-query -W -f='${Installed-Size} ${Status} ${Package}:${Architecture}\n' | awk '$1 > 100 && $4 == "installed" { print $1, $5 }' |
        sort -n | awk -v n="$number" 'NR <= n { print $2 }' >"$work/packages"
    (cd "$work/debs" && xargs -a "$work/packages" apt-get download -qq 2>&1) || true
    [ "$(find "$work/debs" -name '*.deb' | wc -l)" -ge "$number" ] || {
        echo "only $(find "$work/debs" -name '*.deb' | wc -l) of $number packages can be had from this machine's mirror"
        return 1
    }
    for package in "$work"/debs/*.deb; do
        dpkg-deb -x "$package" "extracted/$(basename "$package" .deb)"
        dpkg-deb -x "$package" "$work/extracted/$(basename "$package" .deb)"
    done
    # A folder that a package does not list has the time of its making.
    untimed() { sums "$1" | sed -E 's/^([0-9]+ [0-9]+ [0-9]+) [0-9.]+ d /\1 d /'; }
    diff <(untimed extracted) <(untimed "$work/extracted")
}

# A running program cannot be written, can be replaced and removed, and goes on.
execute() {
    local pid
    cp /bin/sleep program
    ./program 1000 &
    pid=$!
    until [ "$(readlink "/proc/$pid/exe")" = "$PWD/program" ]; do :; done
    ! (echo broken >program) 2>"$work/busy" && grep -q 'Text file busy' "$work/busy"
    ! truncate -s 0 program 2>"$work/busy" && grep -q 'Text file busy' "$work/busy"
    cp /bin/true program.tmp
    mv program.tmp program
    ./program
    [ "$(readlink "/proc/$pid/exe")" = "$PWD/program (deleted)" ]
    cmp "/proc/$pid/exe" /bin/sleep
    kill "$pid"
    ! wait "$pid"
    ./program
    # Written, and only then executed: no program may be open for writing.
    exec 5>>program
    ! ./program 2>"$work/busy" && grep -q 'Text file busy' "$work/busy"
    exec 5>&-
    ./program
}

run=0
failed=0
attempt() {
    local name=$1
    [ ${#only[@]} = 0 ] || [[ " ${only[*]} " == *" $name "* ]] || return 0
    say "$name"
    run=$((run + 1))
    mkdir "$work/mnt/$name"
    # A shell of its own: `set -e` does nothing in a function that is part of a condition.
    (cd "$work/mnt/$name" && set -e && "$2") >"$work/$name.out" 2>&1 &
    if wait $!; then return 0; fi
    failed=$((failed + 1))
    echo "programs: $name failed:" >&2
    tail -n 30 "$work/$name.out" >&2
}

copy_crates "$work/tree" "$enough"
[ "$count" -ge "$least" ] || die "only $count files in cargo's registry; the test needs $least"
format_volume "$store" ${format_arguments[@]+"${format_arguments[@]}"}
mount_volume
# POSIX ACLs are a choice at `format`.
acl=$(touch "$work/mnt/acl" && setfacl -m u:1001:r "$work/mnt/acl" 2>/dev/null && echo 1 || true)
attempt copy copy
attempt git git_
attempt tar tar_
attempt rsync rsync_
attempt c c
attempt rust rust
attempt sqlite sqlite
attempt editors editors
attempt packages packages
attempt execute execute

say "checksums, unmount, mount, checksums"
sums "$work/mnt" >"$work/before"
unmount_volume
check_volume
mount_volume
sums "$work/mnt" >"$work/after"
if ! diff "$work/before" "$work/after" >"$work/differ"; then
    failed=$((failed + 1))
    echo "programs: after mounting again:" >&2
    sed -n 1,20p "$work/differ" >&2
fi
[ ! -d "$work/mnt/git/clone" ] || git -C "$work/mnt/git/clone" fsck --full --strict --no-progress || failed=$((failed + 1))
for mode in delete wal; do
    [ ! -e "$work/mnt/sqlite/$mode.db" ] || [ "$(sqlite3 "$work/mnt/sqlite/$mode.db" 'PRAGMA integrity_check;')" = ok ] || failed=$((failed + 1))
done
[ "$failed" = 0 ] || mount_log
unmount_volume
echo "programs: run=$run failed=$failed"
[ "$failed" = 0 ]
