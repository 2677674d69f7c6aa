#!/usr/bin/env bash
# Fleets of whole peers under virtual time, seed after seed, a process per CPU. What fails leaves its log in soak-failures.
#   hack/soak-fleet.sh [--for 2h] [--seed N] [--virtual 5m]
# --for is real time (h, m or s; an hour), --seed the first seed (drawn), --virtual how long the faults of one fleet last.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() { sed -n 2,4p "$0" | sed 's/^# \{0,1\}//' >&2; exit 2; }
seconds() {
    [[ $1 =~ ^([0-9]+)(h|m|s)$ ]] || { echo "soak-fleet: $1 is no time: a number with h, m or s, as in 90m" >&2; exit 2; }
    case ${BASH_REMATCH[2]} in h) echo $((BASH_REMATCH[1] * 3600)) ;; m) echo $((BASH_REMATCH[1] * 60)) ;; s) echo "${BASH_REMATCH[1]}" ;; esac
}
lasts=1h seed=$((RANDOM * 32768 + RANDOM)) virtual=5m
while [ $# -gt 0 ]; do
    [ $# -ge 2 ] || usage
    case $1 in
    --for) lasts=$2 ;;
    --seed) seed=$2 ;;
    --virtual) virtual=$2 ;;
    *) usage ;;
    esac
    shift 2
done
[[ $seed =~ ^[0-9]+$ ]] || { echo "soak-fleet: --seed $seed is no number" >&2; exit 2; }
# Not in a subshell's exit: a bad time ends the script.
until=$(seconds "$lasts")
seconds "$virtual" > /dev/null
until=$((SECONDS + until))

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
trap 'exit 130' INT TERM
echo "building"
go test -c -o "$dir/fleet.test" ./sim/fleet
workers=$(nproc)
echo "seeds from $seed on, $workers at a time"

tests=(TestStorms TestFaults TestNinePeers)
one() {
    local n=$1 name=${tests[$(($1 % 3))]} log="$dir/$1.log"
    if (cd sim/fleet && SHOAL_FLEET_SEEDS=$n-$n SHOAL_FLEET_FOR=$virtual GOMAXPROCS=1 \
        "$dir/fleet.test" -test.run "^$name\$" -test.v -test.timeout 1h -peerlog info > "$log" 2>&1); then
        grep -aoE 'simulated: .*' "$log" | tee -a "$dir/held"
    else
        mkdir -p soak-failures
        cp "$log" "soak-failures/fleet-$name-$n.log"
        echo "FAILED: seed $n, soak-failures/fleet-$name-$n.log; again: SHOAL_FLEET_SEEDS=$n-$n SHOAL_FLEET_FOR=$virtual go test ./sim/fleet -v -run '^$name\$'" | tee -a "$dir/failed"
    fi
    rm -f "$log"
}
for worker in $(seq 0 $((workers - 1))); do
    (for ((n = seed + worker; SECONDS < until; n += workers)); do one "$n"; done) &
done
wait
touch "$dir/held" "$dir/failed"
echo "$(wc -l < "$dir/held") fleets held, $(wc -l < "$dir/failed") failed"
[ ! -s "$dir/failed" ]
