package lab

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"shoal/runtime/containerd"
)

// tools are the programs under test and those that test them. They are built once per run of the package.
var tools struct {
	peer    string // the peer, with its runtime inside
	kubectl string // unmodified, of the version whose API we serve
	image   string // tarball of testImage
}

// TestMain builds the programs, and proves at the end that the host's own network is as it was.
func TestMain(m *testing.M) {
	if os.Getenv(clockReader) != "" {
		readClock()
		return
	}
	status, err := testMain(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		status = 1
	}
	os.Exit(status)
}

func testMain(m *testing.M) (int, error) {
	if os.Geteuid() != 0 {
		return 1, fmt.Errorf("these tests make network namespaces and containers: run them as root")
	}
	// Most of a test's time is waiting for a cluster, so more of them run at once than there are processors.
	if err := flag.Set("test.parallel", "4"); err != nil {
		return 1, err
	}
	dir, err := os.MkdirTemp("", "shoal-e2e-")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir)
	if err := buildTools(dir); err != nil {
		return 1, err
	}
	before, err := hostNetwork()
	if err != nil {
		return 1, err
	}
	status := m.Run()
	after, err := hostNetwork()
	if err != nil {
		return 1, err
	}
	if before != after {
		return 1, fmt.Errorf("the host's own network was changed.\nBefore:\n%s\nAfter:\n%s", before, after)
	}
	return status, nil
}

// hostNetwork is the host's network as text: addresses, routes and rules.
func hostNetwork() (string, error) {
	var text strings.Builder
	for _, command := range [][]string{
		{"ip", "-o", "addr", "show"}, {"ip", "route", "show", "table", "all"}, {"ip", "rule"}, {"nft", "-s", "list", "ruleset"},
	} {
		out, err := exec.Command(command[0], command[1:]...).Output()
		if err != nil {
			return "", fmt.Errorf("%s: %w", strings.Join(command, " "), err)
		}
		for line := range strings.Lines(string(out)) {
			// The remaining life of a leased address is not configuration.
			if !strings.Contains(line, "valid_lft") {
				text.WriteString(line)
				continue
			}
			address, _, _ := strings.Cut(line, "valid_lft")
			text.WriteString(address + "\n")
		}
	}
	return text.String(), nil
}

func buildTools(dir string) error {
	root, err := filepath.Abs("../..")
	if err != nil {
		return err
	}
	cache := filepath.Join(root, ".tools")
	tools.peer, tools.kubectl = filepath.Join(dir, "peer"), filepath.Join(cache, "kubectl")
	e2e := filepath.Join(dir, "e2e")
	// It does nothing when nothing has changed.
	if err := run(root, "bash", "hack/shim.sh"); err != nil {
		return err
	}
	for _, build := range [][]string{
		{"-ldflags", "-s -w", "-o", tools.peer, "./cli/peer"},
		{"-ldflags", "-s -w", "-o", tools.kubectl, "k8s.io/kubernetes/cmd/kubectl"},
		{"-ldflags", "-s -w", "-o", e2e, e2eSource},
	} {
		if err := run(root, "go", append([]string{"build", "-trimpath", "-buildvcs=false"}, build...)...); err != nil {
			return err
		}
	}
	tools.image = filepath.Join(dir, "image.tar")
	return writeTestImage(tools.image, e2e)
}

// e2eSource is the program inside testImage.
const e2eSource = "./cli/lab/testdata/e2e"

func run(dir, program string, args ...string) error {
	command := exec.Command(program, args...)
	command.Dir = dir
	if args[len(args)-1] == e2eSource {
		command.Env = append(os.Environ(), "CGO_ENABLED=0") // it runs where there is no C library
	}
	var out bytes.Buffer
	command.Stdout, command.Stderr = &out, &out
	if err := command.Run(); err != nil {
		return fmt.Errorf("%s %s: %w\n%s", program, strings.Join(args, " "), err, &out)
	}
	return nil
}

// leftovers lists what a closed lab has left on the machine.
func leftovers(l *Lab, sockets []string) []string {
	var found []string
	for _, socket := range sockets {
		if _, err := os.Stat(socket); err == nil {
			found = append(found, socket)
		}
	}
	name := l.cgroup
	namespaces, _ := filepath.Glob("/run/netns/" + name + "*")
	found = append(found, namespaces...)
	for _, pattern := range []string{"/sys/fs/cgroup/" + name, "/sys/fs/cgroup/*/" + name, l.Dir} {
		dirs, _ := filepath.Glob(pattern)
		found = append(found, dirs...)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		found = append(found, err.Error())
	}
	folders := []string{l.Dir}
	for _, peer := range l.Peers {
		folders = append(folders, stateDir(peer))
		if _, err := os.Stat(stateDir(peer)); err == nil {
			found = append(found, stateDir(peer))
		}
	}
	for line := range strings.Lines(string(mounts)) {
		for _, folder := range folders {
			if strings.Contains(line, folder) {
				found = append(found, "mount "+strings.TrimSpace(line))
			}
		}
	}
	for _, pid := range processesOf(name, folders, name) {
		line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		found = append(found, fmt.Sprintf("process %d %s", pid, bytes.ReplaceAll(line, []byte{0}, []byte(" "))))
	}
	return found
}

var tunnelUp = regexp.MustCompile(`msg="tunnel is up" interface=(\w+)`)

// tunnelSockets are the control sockets that the lab's userspace tunnels have, as its peers' logs name them.
func tunnelSockets(l *Lab) []string {
	var sockets []string
	for _, peer := range l.Peers {
		text, _ := os.ReadFile(peer.Log)
		for _, match := range tunnelUp.FindAllSubmatch(text, -1) {
			sockets = append(sockets, "/var/run/wireguard/"+string(match[1])+".sock")
		}
	}
	return sockets
}

func stateDir(peer *Peer) string { return containerd.StateDir(peer.Dir) }
