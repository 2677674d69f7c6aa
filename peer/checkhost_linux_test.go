package peer

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
)

func TestThisHostCanRunAPeer(t *testing.T) {
	before, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	if err := CheckHost(); err != nil {
		t.Fatal(err)
	}
	after, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	if len(before) != len(after) {
		t.Errorf("the probes left devices: %d before, %d after", len(before), len(after))
	}
}

func TestMissingFeaturesAreNamedWithTheRemedy(t *testing.T) {
	fine := feature{"bridges", "modprobe bridge", func() error { return nil }}
	veth := feature{"veth pairs", "modprobe veth", func() error { return errors.New("operation not supported") }}
	overlay := feature{"overlayfs", "modprobe overlay", func() error { return errors.New("no such device") }}
	err := checkFeatures([]feature{fine, veth, overlay})
	const want = "this host lacks veth pairs (operation not supported; remedy: modprobe veth) and overlayfs (no such device; remedy: modprobe overlay)"
	if err == nil || err.Error() != want {
		t.Errorf("%v", err)
	}
	if err := checkFeatures([]feature{fine}); err != nil {
		t.Error(err)
	}
}

// TestMissingRoot runs this test's own program as nobody.
func TestMissingRoot(t *testing.T) {
	if os.Getenv("SHOAL_TEST_CHECK_HOST") != "" {
		if err := CheckHost(); err == nil || !strings.Contains(err.Error(), "needs root") {
			t.Fatalf("%v", err)
		}
		return
	}
	program, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "shoal-root-*") // t.TempDir's parents are closed to others
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := errors.Join(os.Chmod(dir, 0o755), os.WriteFile(dir+"/test", program, 0o755)); err != nil {
		t.Fatal(err)
	}
	command := exec.CommandContext(t.Context(), dir+"/test", "-test.run=^TestMissingRoot$")
	command.Dir = "/"
	command.Env = []string{"SHOAL_TEST_CHECK_HOST=1"}
	command.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if out, err := command.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}
