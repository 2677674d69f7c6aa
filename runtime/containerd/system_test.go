//go:build linux

package containerd_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"shoal/runtime/containerd"
)

// TestSystemShim runs containers as a system's containerd would: by the shim
// and the runc that it finds in $PATH, without our logs and exit records inside.
func TestSystemShim(t *testing.T) {
	h := emptyHost(t, func(c *containerd.Config) { c.SystemShim = true })
	bin := filepath.Join(h.dataDir, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(programs.shim)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"containerd-shim-runc-v2", "runc"} {
		if err := os.WriteFile(filepath.Join(bin, name), program, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	h.startDaemon()
	h.open()
	if _, err := h.engine.Import(t.Context(), strings.NewReader(string(probeTarball(t)))); err != nil {
		t.Fatal(err)
	}
	uid := h.sandbox(nil)
	first := h.run(h.spec(uid, "sleep"))
	second := h.spec(uid, "exit", "6")
	second.Name, second.LogPath = "second", second.LogPath+".second"
	state := h.waitExit(h.run(second).ID)
	if state.ExitCode != 6 {
		t.Errorf("state %+v", state)
	}
	eventually(t, "log of the program beside the shim", func() error {
		_, err := os.Stat(state.LogPath)
		return err
	})
	waitOutput(h, state, "to stderr")
	out := h.output(state)
	if out["stdout"] != "to stdout\n" || out["stderr"] != "to stderr\n" {
		t.Errorf("output %q", out)
	}
	h.reopen()
	if now := h.state(state.ID); now.ExitCode != 6 {
		t.Errorf("after reopening: %+v", now)
	}
	if stopped, err := h.engine.Stop(t.Context(), first.ID, 5*time.Second); err != nil || stopped.ExitCode != 0 {
		t.Errorf("stop: %+v, %v", stopped, err)
	}
}
