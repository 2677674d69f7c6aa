# Everything a developer or CI does, by name. `just` alone lists it; where just is missing: npx -y rust-just <recipe>.

export GOFLAGS := "-trimpath -buildvcs=false"
# The peer needs no C. Without it the linker leaves out what only Go plugins would need, a quarter of the file, and the binary is static.
export CGO_ENABLED := "0"

version := `git describe --tags --always --dirty 2>/dev/null || echo dev`
ldflags := "-s -w -X shoal/cli.version=" + version

default:
    @just --list --unsorted

# three peers on this machine: real containers, raft, tunnel and VIPs; Ctrl-C ends it and leaves nothing behind (root)
lab *ARGS: build
    bin/peer lab {{ARGS}}

# the whole suite, set-up included: this is what CI runs (root)
test: setup shim lint
    bash hack/test.sh

# whole clusters under failure, simulated from seeds, fixed and fresh ones; minutes
sim *ARGS:
    bash hack/sim.sh {{ARGS}}

# the same for hours, seed after seed: --for 2h; what fails is made short and saved in soak-failures; Ctrl-C ends it
soak *ARGS: build
    bin/peer sim soak {{ARGS}}

# whole peers under virtual time, a fleet per CPU, for hours: --for 2h --seed N --virtual 5m; what fails leaves its log in soak-failures
soak-fleet *ARGS:
    bash hack/soak-fleet.sh {{ARGS}}

# real processes under faults while clients record what they see; minutes, or --for 2h; --seed N repeats the faults (root)
robustness *ARGS: build
    go run ./cli/robustness run {{ARGS}}

# random bytes for everything that peers send each other, and for files that may be damaged; `just fuzz 1m` for a minute each
fuzz TIME="5s":
    bash hack/fuzz.sh {{TIME}}

# the linter with the import rules of ARCHITECTURE.md
lint: setup
    bash hack/lint.sh

# the figures of the README's table, as ratios measured in one run (root)
bench *ARGS: build
    go build -ldflags "-s -w" -o bin/ ./cli/bench/etcdref ./cli/bench/storeref
    go test -c -ldflags "-s -w" -o bin/peerbench ./peer
    bin/peer bench {{ARGS}}

# bin/peer, with the two small programs carried inside
build: setup shim
    go build -ldflags "{{ldflags}}" -o bin/ ./cli/peer

# the two small programs that run beside the peer (shim and OCI runtime; container daemon), compressed for embedding
shim: setup
    bash hack/shim.sh

# the Debian packages that building and testing need, only if missing
setup:
    bash hack/setup.sh

# remove what was built
clean:
    rm -rf bin .tools
