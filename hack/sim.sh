#!/usr/bin/env bash
# Simulates whole clusters: the scenarios, fixed and fresh seeds, the proof that the checkers can fail, and whole peers under virtual time.
# Arguments go to `go test`. The last lines say which seeds ran, and for how much virtual time.
set -euo pipefail
cd "$(dirname "$0")/.."

log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0
export SHOAL_SIM_FRESH=${SHOAL_SIM_FRESH:-6}
go test -v ./sim/... "$@" > "$log" 2>&1 || status=1
# The bugs of consensus/bugs are not in any other build.
go test -v -tags deliberatebugs ./sim/fleet -run TestDeliberateBugs >> "$log" 2>&1 || status=1
if [ $status != 0 ]; then
    grep -aE -B40 -A10 '^\s*--- FAIL|^panic:|\[build failed\]' "$log" | tail -n 400 || tail -n 50 "$log"
fi
grep -aE '^(ok|FAIL)\s' "$log" || true
grep -aoE 'simulated: .*' "$log" || true
exit $status
