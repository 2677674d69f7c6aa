//go:build linux

package containerd_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"shoal/internal/polling"
	"shoal/runtime/containerd"
	"shoal/runtime/containerd/fence"
	"shoal/runtime/pods"
)

// renew is a peer whose lease is renewed until stop is called.
func (h *host) renew() (stop func()) {
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			if err := h.engine.Renewed(time.Now()); err != nil {
				h.t.Error(err)
			}
			select {
			case <-done:
				return
			case <-time.After(200 * time.Millisecond):
			}
		}
	}()
	var once sync.Once
	stop = func() {
		once.Do(func() { close(done) })
		<-ended
	}
	h.t.Cleanup(stop)
	return stop
}

func running(pid int) bool { return unix.Kill(pid, 0) == nil }

// TestSilentPeerIsFenced lets the peer die, and keeps containerd itself from
// doing anything, with the limit that is used in earnest.
func TestSilentPeerIsFenced(t *testing.T) {
	h := newHost(t, func(c *containerd.Config) { c.Lease = true })
	identity := h.sandbox(func(s *pods.SandboxSpec) { s.Identity = true })
	created, err := h.engine.Create(t.Context(), h.spec(identity, "stubborn"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.engine.Start(t.Context(), created.ID); !errors.Is(err, pods.ErrUnavailable) {
		t.Errorf("started before the first renewal: %v", err)
	}
	stop := h.renew()
	eventually(t, "the lease lets it start", func() error {
		_, err := h.engine.Start(t.Context(), created.ID)
		return err
	})
	one := h.state(created.ID)
	shared := h.sandbox(func(s *pods.SandboxSpec) { s.Identity, s.ShareProcessNamespace = true, true })
	withPause := h.spec(shared, "stubborn")
	withPause.SharePID = true
	two := h.run(withPause)
	other := h.run(h.spec(h.sandbox(nil), "stubborn"))

	stop()
	last := time.Now()
	if err := h.engine.Close(); err != nil { // the peer is dead
		t.Fatal(err)
	}
	polling.Until(t, 5*time.Millisecond, fence.KillAfter+3*time.Second, "containers that must not run twice end with the peer's lease", func(context.Context) error {
		if running(one.PID) || running(two.PID) {
			return errors.New("one runs")
		}
		return nil
	})
	if silent := time.Since(last); silent < fence.KillAfter-time.Second {
		t.Errorf("killed %s after the last renewal", silent)
	}
	if !running(other.PID) {
		t.Error("a container that may run twice was killed")
	}

	// The next peer finds it so, and starts anew once its lease is renewed.
	h.open()
	for _, id := range []string{one.ID, two.ID} {
		if state := h.waitExit(id); state.ExitCode != 137 {
			t.Errorf("state %+v", state)
		}
	}
	next := h.spec(identity, "sleep")
	next.Attempt = 1
	withPause.Attempt = 1
	if created, err = h.engine.Create(t.Context(), next); err != nil {
		t.Fatal(err)
	}
	if _, err := h.engine.Start(t.Context(), created.ID); !errors.Is(err, pods.ErrUnavailable) {
		t.Errorf("started although the lease is old: %v", err)
	}
	h.renew()
	eventually(t, "the lease lets it start", func() error {
		_, err := h.engine.Start(t.Context(), created.ID)
		return err
	})
	second := h.run(withPause)
	again := h.state(created.ID)
	// For two looks of the watchdog.
	polling.Throughout(t, 100*time.Millisecond, 1200*time.Millisecond, "nothing is killed while the lease is renewed", func() error {
		for _, state := range []pods.ContainerState{again, second, other} {
			if !running(state.PID) {
				return fmt.Errorf("it was: %+v", state)
			}
		}
		return nil
	})

	if err := h.engine.RemoveSandbox(t.Context(), identity); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(h.stateDir, "fence", identity)); err == nil {
		t.Error("a removed pod is still listed")
	}
}

// TestRestartedDaemonFences: the age counts from the renewal, not from the
// watchdog's start.
func TestRestartedDaemonFences(t *testing.T) {
	h := newHost(t, nil)
	uid := h.sandbox(func(s *pods.SandboxSpec) { s.Identity = true })
	state := h.run(h.spec(uid, "stubborn")) // no heartbeat: nothing is held back
	if err := h.engine.Renewed(time.Now().Add(-fence.KillAfter + 2*time.Second)); err != nil {
		t.Fatal(err)
	}
	h.killDaemon()
	begun := time.Now()
	eventually(t, "the container is killed", func() error {
		if running(state.PID) {
			return errors.New("it runs")
		}
		return nil
	})
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("it took %s", took)
	}
	h.waitExit(state.ID)
}

// TestHangingContainerdFences: a daemon whose containerd waits for a database
// that another holds, for ever, still watches.
func TestHangingContainerdFences(t *testing.T) {
	h := newHost(t, nil)
	uid := h.sandbox(func(s *pods.SandboxSpec) { s.Identity = true })
	state := h.run(h.spec(uid, "stubborn"))
	listed, err := fence.Dir(h.stateDir).Pods()
	if err != nil || len(listed) != 1 || listed[0].UID != uid {
		t.Fatalf("list %+v, %v", listed, err)
	}
	dir := t.TempDir()
	if err := errors.Join(fence.Dir(dir).Add(listed[0]), fence.Dir(dir).Renewed(time.Now())); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "c.sock")
	command := exec.Command(programs.daemon, "--root", filepath.Join(h.dataDir, "containerd"), "--state", filepath.Join(dir, "c"),
		"--address", socket, "--shim-sockets", filepath.Join(dir, "s"), "--fence", dir, "--fence-after", "1s")
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := command.Process.Kill(); err != nil {
			t.Error(err)
		}
		_ = command.Wait() // killed
	})
	eventually(t, "the container is killed", func() error {
		if running(state.PID) {
			return errors.New("it runs")
		}
		return nil
	})
	if _, err := os.Stat(socket); err == nil {
		t.Error("containerd did not hang")
	}
	h.waitExit(state.ID)
}
