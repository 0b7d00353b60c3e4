#!/usr/bin/env bash
# Changes the core at places of nobody's choice, one at a time, and shows which test notices: cargo-mutants lists the
# changes, a fixed shuffle picks.
#
#   ci/mutants.sh [N] [FIRST]     N changes (40), from place FIRST (1) of the shuffled list on
#
# Each is tried by the unit tests of the core, by the fuzz targets, and by the simulator for up to 60 s of seeds, until
# the first failure; a test that takes ten times as long as it should notices it too. (Seconds of every processor's time:
# a busy machine changes nothing.) A change that the compiler refuses is passed over. Those that alter nothing that anybody could see are in ci/mutants.equivalent, with the reason.
#
# Works on a copy of the tree, in target/mutants, with a target folder of its own that stays: a change costs a build of
# the core and of what is run. Prints a row of a table for each; the last line is
# `mutants: run=N caught=N equivalent=N missed=N unbuildable=N`. Fails if one is missed.
#
# KISEKI_MUTANTS_SECONDS: seconds of seeds (60); 0: without the simulator.

set -euo pipefail
# shellcheck source=ci/lib.sh
. "$(dirname "$0")/lib.sh"

# Seconds of seeds; and of a processor, beyond them, after which a step is stuck: unit tests and fuzz targets take five.
seeds_s=${KISEKI_MUTANTS_SECONDS:-60}
stuck_s=30
# Who is stuck without working is stuck after so long.
asleep_s=1200
# What an endless loop may allocate before it is ended, in KiB.
memory=8388608

case ${1:-} in -h | --help) print_usage; exit 0 ;; esac
count=${1:-40}
first=${2:-1}
{ [ $# -le 2 ] && [[ $count$first =~ ^[0-9]+$ ]] && [ "$first" -ge 1 ]; } || usage_error "not numbers: $*"
cargo mutants --version >/dev/null 2>&1 || die "cargo-mutants is missing: ci/dep.sh mutants"

tree=$target/mutants/tree
export CARGO_TARGET_DIR=$target/mutants/target
# A variable would hide the flags in .cargo/config.toml, without which there is no simulator. The fuzz targets try the
# same inputs for every change.
unset RUSTFLAGS CARGO_ENCODED_RUSTFLAGS
export BOLERO_RANDOM_SEED=1
make_work mutants
log=$work/log

# A fresh copy, with the times of this moment: cargo may have built a change to the former one last.
rm -rf "$tree"
mkdir -p "$tree"
cd "$root"
git ls-files -z --cached --others --exclude-standard | while IFS= read -r -d '' file; do
    [ ! -e "$file" ] || cp --parents "$file" "$tree"
done
cd "$tree"

# The shuffle's source is the key stream of AES-128 in counter mode with key and counter 0: the same for the same list.
zero=00000000000000000000000000000000
cargo mutants --list --json --diff -p kiseki-core \
    -f 'core/src/file/**' -f 'core/src/meta/**' -f 'core/src/client/**' >"$work/list"
jq -c '.[]' "$work/list" |
    shuf --random-source=<(openssl enc -aes-128-ctr -K $zero -iv $zero -in /dev/zero 2>/dev/null) >"$work/shuffled"

# How cargo-mutants marks the line that it changed.
marker='/\* ~ changed by cargo-mutants ~ \*/'

# Why a change alters nothing, if somebody has shown it: of a paragraph whose first two lines are its name and the
# changed line, the rest.
equivalent() {
    awk -v RS= -v FS='\n' -v name="$1" -v line="$2" '
        $1 == name && $2 == line { for (i = 3; i <= NF; i++) printf "%s%s", (i > 3 ? " " : ""), $i }
    ' "$root/ci/mutants.equivalent"
}

# Seconds of seeds in it, arguments of `cargo test`, then what the program gets. Sets `caught` if a test fails; fails if something does not build.
try() {
    local build=() word status=0 limit=$(($1 * $(nproc) + stuck_s))
    shift
    for word in "$@"; do
        [ "$word" != -- ] || break
        build+=("$word")
    done
    cargo test --quiet --locked "${build[@]}" --no-run >"$log" 2>&1 || return 1
    (ulimit -v "$memory" -t "$limit" && exec timeout -k 5 "$asleep_s" cargo test --quiet --locked "$@") >"$log" 2>&1 ||
        status=$?
    case $status in
    0) return 0 ;;
    124 | 137) caught="asleep: $*" ;;
    *) # A test's name, a seed's judge, or how the process ended: by SIGXCPU (24) if it was stuck.
        caught=$(sed -n -e 's/^---- \(.*\) stdout ----$/\1/p' -e 's/^seed \([0-9]*\) failed; /seed \1: /p' "$log" | head -n 1)
        [ -n "$caught" ] || caught="$* ($(sed -n 's/.*(\(signal: [^)]*\)).*/\1/p' "$log" | head -n 1))"
        ;;
    esac
}

# Everything in turn, with $1 seconds of seeds, until something notices. Fails if something does not build.
try_all() {
    caught=
    try 0 -p kiseki-core --lib || return 1
    [ -z "$caught" ] || return 0
    try 0 -p kiseki-core -p fuzz --test '*' || return 1
    [ -z "$caught" ] && [ "$seeds_s" != 0 ] || return 0
    try "$1" -p sim --test sim -- first "$1"
}

# The unchanged tree must pass, or everything would be caught.
say "trying the tree as it is"
try_all 5 || { cat "$log" >&2; die "it does not build"; }
[ -z "$caught" ] || { cat "$log" >&2; die "a test fails without any change: $caught"; }

run=0 noticed=0 same=0 missed=0 unbuildable=0
place=$((first - 1))
echo "| place | line | change | noticed by | s |"
echo "|---|---|---|---|---|"
while [ "$run" -lt "$count" ] && IFS= read -r mutant <&3; do
    place=$((place + 1))
    file=$(jq -r .file <<<"$mutant")
    name=$(jq -r '.name | sub("^[^ ]* "; "")' <<<"$mutant")
    line=$(jq -r .span.start.line <<<"$mutant")
    jq -r .diff <<<"$mutant" >"$work/diff"
    changed=$(sed -n "\\|$marker|{s|^+ *||;s|$marker||;s/  */ /g;s/ \$//;p;q}" "$work/diff")
    changed=${changed:-$name}
    begin=$SECONDS
    reason=$(equivalent "$file: $name" "$changed")
    if [ -n "$reason" ]; then
        verdict="equivalent: $reason"
        same=$((same + 1))
    else
        cp "$file" "$work/original"
        patch --quiet "$file" "$work/diff" || die "place $place: the change does not apply"
        built=1
        try_all "$seeds_s" || built=
        cp "$work/original" "$file"
        if [ -z "$built" ]; then
            unbuildable=$((unbuildable + 1))
            continue
        fi
        verdict=${caught:-**MISSED**: $changed}
        if [ -n "$caught" ]; then noticed=$((noticed + 1)); else missed=$((missed + 1)); fi
    fi
    run=$((run + 1))
    printf '| %d | %s:%d | %s | %s | %d |\n' "$place" "${file#core/src/}" "$line" "${name//|/\\|}" "${verdict//|/\\|}" \
        $((SECONDS - begin))
done 3< <(tail -n +"$first" "$work/shuffled")
echo "mutants: run=$run caught=$noticed equivalent=$same missed=$missed unbuildable=$unbuildable"
[ "$missed" = 0 ]
