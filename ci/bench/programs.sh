#!/usr/bin/env bash
# Times real programs in a folder. Rows as jbench prints them: name, rate, unit; more is better.
#
#   ci/bench/programs.sh prepare MATERIAL [FILES]     makes what `run` works with: sources of crates that cargo has fetched
#   ci/bench/programs.sh run MATERIAL DIR             in a new folder in DIR, which is removed afterwards
#
# untar: `tar -xf`. git_clone: a clone without hard links, checked out. cargo_build: of ci/bench/jbench, without
# optimization. sqlite_commits: inserts of a row, each a transaction of its own, in the default journal mode.
# FILES: in the archive and the repository (2000). What is read lies in MATERIAL, on a local disk, in the page cache.

set -euo pipefail
# shellcheck source=ci/lib.sh
source "$(dirname "$0")/../lib.sh"

commits=300

prepare() {
    local material=$1 files=$2 git
    copy_crates "$material/tree" "$files"
    [ "$count" -ge "$files" ] || die "only $count files in cargo's registry; $files are needed: cargo fetch"
    echo "$count" >"$material/count"
    tar -C "$material" -cf "$material/tree.tar" tree
    git=(git -C "$material/tree" -c user.name=bench -c user.email=bench@localhost)
    "${git[@]}" init --quiet
    "${git[@]}" add --all --force
    "${git[@]}" commit --quiet --message all
    "${git[@]}" gc --quiet
    mv "$material/tree/.git" "$material/repository.git"
    rm -rf "$material/tree"
    cp -r "$root/ci/bench/jbench" "$material/crate"
}

# Runs the rest and prints row $1: $2 of unit $3, in the time that it took.
timed() {
    local row=$1 amount=$2 unit=$3 begin end
    shift 3
    begin=$(date +%s%N)
    "$@" >/dev/null
    end=$(date +%s%N)
    awk -v row="$row" -v amount="$amount" -v unit="$unit" -v ns=$((end - begin)) \
        'BEGIN { printf "%-16s %10.2f %s\n", row, amount * 1e9 / ns, unit }'
}

run() {
    local material=$1 dir count
    count=$(cat "$material/count")
    dir=$(mktemp -d "$2/programs.XXXXXX")
    # shellcheck disable=SC2064 # the folder is known here only
    trap "rm -rf '$dir'" EXIT
    # Read once, so that the first system is not the one that finds them on the disk.
    cat "$material/tree.tar" "$material"/repository.git/objects/pack/* >/dev/null
    cp -r "$material/crate" "$dir/crate"
    cd "$dir"
    timed untar "$count" files/s tar -xf "$material/tree.tar"
    timed git_clone "$count" files/s git -c safe.directory='*' clone --quiet --no-local "$material/repository.git" clone
    timed cargo_build 60 1/min env CARGO_TARGET_DIR="$dir/target" cargo build --quiet --offline --manifest-path crate/Cargo.toml
    sqlite3 rows.db 'CREATE TABLE t (id INTEGER PRIMARY KEY, v BLOB);'
    seq "$commits" | sed 's/.*/INSERT INTO t VALUES (&, randomblob(200));/' >inserts.sql
    timed sqlite_commits "$commits" 1/s sqlite3 rows.db '.read inserts.sql'
    [ "$(sqlite3 rows.db 'SELECT count(*) FROM t;')" = "$commits" ] || die "sqlite lost rows"
}

case ${1:-} in
-h | --help) print_usage ;;
prepare) prepare "$2" "${3:-2000}" ;;
run) run "$2" "$3" ;;
*) usage_error "prepare or run?" ;;
esac
