# shellcheck shell=bash
# How a suite tells its results. Sourced by each suite; file descriptor 3 is what a person sees,
# standard output is the suite's log.

set -euo pipefail

# tell GOOD BAD LINE: one line for the person, both numbers for the count.
tell() {
    echo "$1 $2" >>"$MICA_TEST_RESULTS"
    echo "$3" >&3
    echo "$3"
}

pass() {
    tell 1 0 "ok    $MICA_TEST_SUITE: $*"
}

# fail CLAIM: the claim did not hold; shows the end of the log.
fail() {
    local recent
    recent=$(awk '/^--- / { count = 0 } { line[count++] = $0 }
        END { for (at = count > 40 ? count - 40 : 0; at < count; at++) print line[at] }' "$MICA_TEST_LOG")
    tell 0 1 "FAIL  $MICA_TEST_SUITE: $*; the end of $MICA_TEST_LOG:"
    echo "$recent" >&3
}

# check CLAIM COMMAND...: the claim holds when the command succeeds.
check() {
    local claim=$1
    shift
    echo "--- $claim: $*"
    # In a subshell of its own, so that `set -e` stays in force within functions.
    local status=0
    set +e
    (
        set -e
        "$@"
    )
    status=$?
    set -e
    if [[ $status -eq 0 ]]; then
        pass "$claim"
    else
        echo "status $status"
        fail "$claim"
    fi
}

# by_counts QUICK CI LONG: the one for this run.
by_counts() {
    case $MICA_TEST_COUNTS in
    quick) echo "$1" ;;
    ci) echo "$2" ;;
    long) echo "$3" ;;
    esac
}

# at_once FUNCTION ARGUMENT...: calls the function with each argument, all at the same time. Each has a
# log of its own, which joins the suite's when it has ended.
at_once() {
    local function=$1 argument status=0
    shift
    local -A running=()
    for argument in "$@"; do
        logged "$MICA_TEST_LOG.$argument" "$function" "$argument" &
        running[$argument]=$!
    done
    for argument in "$@"; do
        wait "${running[$argument]}" || status=$?
        cat "$MICA_TEST_LOG.$argument"
        rm "$MICA_TEST_LOG.$argument"
    done
    return "$status"
}

# logged LOG FUNCTION ARGUMENT...
logged() {
    local MICA_TEST_LOG=$1
    shift
    "$@" >"$MICA_TEST_LOG" 2>&1
}
