#!/usr/bin/env bash
# Fuzzes: bolero's targets, guided by libFuzzer, on stable Rust and without a sanitizer (nothing here is unsafe).
#
#   ci/fuzz.sh SECONDS            all targets; they share the time
#   ci/fuzz.sh SECONDS TARGET...  these (the names of the tests in fuzz/tests)
#   ci/fuzz.sh keep               adds to the inputs that are kept in the repository what they lack of the inputs found
#
# What is found goes to target/fuzz-inputs/TARGET, where the next run goes on. `cargo test -p fuzz` replays the inputs
# in fuzz/tests/__fuzz__/TARGET/corpus (for each target at most 64 of at most 4 KiB, the longest of few that reach as
# much as all; 64 KiB together) and those that failed, in .../crashes: keep such an input until the bug is mended, then
# move it to the corpus.
#
# Installs cargo-bolero if it is missing (ci/dep.sh fuzz). A target that cannot be built or run fails the script.
# Last line: fuzz: targets=N seconds=N execs=N crashes=N. Fails if there are crashes.

set -euo pipefail
# shellcheck source=ci/lib.sh
. "$(dirname "$0")/lib.sh"

# Bytes and inputs kept of one target, and bytes of one input.
kept_max=65536
count_max=64
input_max=4096

case ${1:-} in -h | --help) print_usage; exit 0 ;; esac
cd "$root"
# A variable would be joined with bolero's own flags.
unset RUSTFLAGS CARGO_ENCODED_RUSTFLAGS
found=$target/fuzz-inputs
home=fuzz/tests/__fuzz__

all_targets() { sed -n '/^#\[test\]/{n;s/^fn \([a-z_]*\)() {$/\1/p}' fuzz/tests/*.rs; }

count_in() { if [ -d "$1" ]; then find "$1" -type f | wc -l; else echo 0; fi; }

# One run of libFuzzer: target, folder for new inputs, folder for failures, then what cargo-bolero takes.
bolero() {
    local name=$1 corpus=$2 crashes=$3
    shift 3
    mkdir -p "$corpus" "$crashes"
    cargo bolero test --package fuzz "$name" --sanitizer NONE --target-dir "$target/fuzz" \
        --corpus-dir "$corpus" --crashes-dir "$crashes" --max-input-length "$input_max" "$@"
}

fuzz() {
    local seconds=$1 name log execs=0 crashes=0 share before status
    shift
    log=$(mktemp)
    # shellcheck disable=SC2064 # the file is known here only
    trap "rm -f '$log'" EXIT
    share=$((seconds / $#))
    [ "$share" -gt 0 ] || usage_error "$seconds seconds are too few for $# targets"
    for name in "$@"; do
        say "$name for $share s"
        mkdir -p "$found/$name" "$home/$name/corpus"
        cp -n "$home/$name/corpus/"* "$found/$name/" 2>/dev/null || true
        before=$(count_in "$home/$name/crashes")
        status=0
        bolero "$name" "$found/$name" "$PWD/$home/$name/crashes" -T "${share}s" --timeout 20s \
            --engine-args=-print_final_stats=1 >"$log" 2>&1 || status=$?
        execs=$((execs + $(awk '/^stat::number_of_executed_units:/ { n = $2 } END { print n + 0 }' "$log")))
        if [ "$(count_in "$home/$name/crashes")" -gt "$before" ]; then
            crashes=$((crashes + 1))
            cat "$log" >&2
            say "the input is kept in $home/$name/crashes; replay it: cargo test -p fuzz -- --nocapture --exact $name"
        elif [ "$status" != 0 ]; then
            cat "$log" >&2
            die "$name cannot be fuzzed (status $status)"
        fi
        rmdir "$home/$name/crashes" "$home/$name/corpus" "$home/$name" 2>/dev/null || true
    done
    echo "fuzz: targets=$# seconds=$((share * $#)) execs=$execs crashes=$crashes"
    [ "$crashes" = 0 ]
}

# libFuzzer's merge takes few inputs that reach together what all of them do.
keep() {
    local name work file size sum
    work=$(mktemp -d)
    # shellcheck disable=SC2064 # the folder is known here only
    trap "rm -rf '$work'" EXIT
    for name in "$@"; do
        [ -d "$found/$name" ] || continue
        bolero "$name" "$work/$name" "$found/$name" --engine-args=-set_cover_merge=1 >"$work/log" 2>&1 ||
            { cat "$work/log" >&2; die "the inputs of $name cannot be merged"; }
        mkdir -p "$home/$name/corpus"
        # What was kept stays: it may be the story of a bug.
        sum=$(find "$home/$name/corpus" -type f -printf '%s\n' | awk '{ sum += $1 } END { print sum + 0 }')
        while read -r size file; do
            [ $((sum + size)) -le "$kept_max" ] && [ "$(count_in "$home/$name/corpus")" -lt "$count_max" ] || break
            [ -e "$home/$name/corpus/$(basename "$file")" ] && continue
            cp "$file" "$home/$name/corpus/"
            sum=$((sum + size))
        done < <(find "$work/$name" -type f -printf '%s %p\n' | sort -rn)
        say "$name: $(count_in "$home/$name/corpus") inputs kept, $sum bytes"
    done
}

mapfile -t targets < <(all_targets)
case ${1:-} in
keep)
    [ $# = 1 ] || usage_error "keep takes no argument"
    bash ci/dep.sh fuzz
    keep "${targets[@]}"
    ;;
*)
    [[ ${1:-} =~ ^[0-9]+$ ]] || usage_error "for how many seconds?"
    for name in "${@:2}"; do
        printf '%s\n' "${targets[@]}" | grep -qx "$name" || usage_error "no target is called $name (there are: ${targets[*]})"
    done
    [ $# = 1 ] || targets=("${@:2}")
    bash ci/dep.sh fuzz
    fuzz "$1" "${targets[@]}"
    ;;
esac
