#!/usr/bin/env bash
# Checks that each sentence of a document is followed by the name of a test, and that this test exists.
#
#   ci/semantics.sh [FILE]    (default: runtime/SEMANTICS.md)
#
# From the first heading of the second level on the document is headings and lists. Each item of a list is one sentence,
# and after it the name of its test in backquotes. A test is a function with #[test] (or tokio's) in core, sim, fuzz or
# runtime that is not ignored.
#
# Last line: semantics: sentences=N missing=0

set -euo pipefail
# shellcheck source=ci/lib.sh
source "$(dirname "$0")/lib.sh"

case ${1:-} in
-h | --help) print_usage; exit 0 ;;
-*) usage_error "unknown argument $1" ;;
esac
[ $# -le 1 ] || usage_error "there is one document"
document=$(realpath "${1:-$root/runtime/SEMANTICS.md}")
cd "$root"

# The names of all tests, one a line.
tests() {
    find core sim fuzz runtime -name '*.rs' -print0 | sort -z | xargs -0 awk '
        FNR == 1 { test = 0 }
        /^[[:space:]]*#\[((tokio::)?test)(\]|\()/ { test = 1; next }
        test && /^[[:space:]]*#\[ignore/ { test = 0 }
        test && match($0, /fn [a-z0-9_]+/) { print substr($0, RSTART + 3, RLENGTH - 3); test = 0 }'
}

# Sentence by sentence "LINE<TAB>NAME", or "LINE<TAB>!<TAB>what is wrong".
sentences() {
    awk '
        function wrong(line, what) { print line "\t!\t" what }
        function finish(  name, plain) {
            if (item == "") return
            if (!match(item, / `[a-z0-9_]+`$/)) { wrong(begin, "no name of a test after: " item); item = ""; return }
            name = substr(item, RSTART + 2, RLENGTH - 3)
            plain = substr(item, 1, RSTART - 1)
            if (plain !~ /[.]$/) wrong(begin, "not a sentence: " plain)
            else if (plain ~ /[.!?] [A-Z]/) wrong(begin, "more than one sentence: " plain)
            else print begin "\t" name
            item = ""
        }
        /^## / { finish(); within = 1; next }
        !within || /^$/ || /^#/ { finish(); next }
        /^- / { finish(); item = substr($0, 3); begin = FNR; next }
        /^  [^ ]/ && item != "" { item = item " " substr($0, 3); next }
        { finish(); wrong(FNR, "neither a heading nor a sentence with its test: " $0) }
        END { finish() }' "$document"
}

known=$(tests | sort -u)
count=0
missing=0
while IFS=$'\t' read -r line name what; do
    count=$((count + 1))
    if [ "$name" = '!' ]; then
        printf '%s\n' "semantics: line $line: $what" >&2
    elif grep -qxF "$name" <<<"$known"; then
        continue
    else
        printf '%s\n' "semantics: line $line: there is no test $name" >&2
    fi
    missing=$((missing + 1))
done < <(sentences)
[ "$count" -gt 0 ] || die "$document has no sentence"

echo "semantics: sentences=$count missing=$missing"
[ "$missing" = 0 ]
