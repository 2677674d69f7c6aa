#!/usr/bin/env bash
# Runs the whole suite as root: unit, property, in-process and real-kernel tests. A skipped test fails the run, because nobody sees it.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ "$(id -u)" != 0 ]; then
    echo "test: the suite makes network namespaces, mounts and containers: run it as root" >&2
    exit 1
fi
log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0
export CGO_ENABLED=0
# Besides the fixed seeds, clusters that nobody has simulated before; the last lines say which.
export SHOAL_SIM_FRESH=${SHOAL_SIM_FRESH:-2}
# peer-shim is the one program with C in it; the tests of runtime/containerd build and run it.
packages=$(go list ./... | grep -v /cli/peer-shim)
go vet $packages || status=1
# Two packages at a time: more would only fight for the machine, and timing is part of what is tested.
go test -p 2 -timeout 20m -v $packages 2>&1 | tee "$log" | grep --line-buffered -aE '^(FAIL|ok|panic:)|^--- (FAIL|SKIP)' || true
# Deliberate bugs, which are in no other build: the checkers of the fleet must find each.
go test -tags deliberatebugs -timeout 20m -v ./sim/fleet -run TestDeliberateBugs 2>&1 | tee -a "$log" | grep --line-buffered -aE '^(FAIL|ok|panic:)|^--- (FAIL|SKIP)' || true
grep -qaE '^(FAIL|panic:)' "$log" && status=1
grep -aoE 'simulated: .*' "$log" || true
passed=$(grep -caE '^--- PASS' "$log" || true)
failed=$(grep -caE '^--- FAIL' "$log" || true)
skipped=$(grep -caE '^\s*--- SKIP' "$log" || true)
if [ "$skipped" != 0 ]; then
    echo "test: $skipped tests were skipped:"
    grep -aE '^\s*--- SKIP' "$log"
    status=1
fi
if [ $status != 0 ]; then
    echo "test: what the failed ones said:"
    grep -aE -B25 -A25 '^\s*--- FAIL|^panic:|\[build failed\]' "$log" | tail -n 600
fi
echo "$passed passed, $failed failed, $skipped skipped"
exit $status
