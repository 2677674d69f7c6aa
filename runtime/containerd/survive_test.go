//go:build linux

package containerd_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"shoal/runtime/containerd"
	"shoal/runtime/pods"
)

// killDaemon kills containerd and returns its process ID.
func (h *host) killDaemon() int {
	h.t.Helper()
	pid := h.daemon.PID()
	if pid == 0 {
		h.t.Fatal("containerd does not run")
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		h.t.Fatal(err)
	}
	return pid
}

func TestContainersSurviveContainerd(t *testing.T) {
	h := newHost(t, nil)
	uid := h.sandbox(nil)
	steady := h.run(h.spec(uid, "sleep"))
	counting := h.spec(uid, "count", "100")
	counting.Name, counting.LogPath = "counting", counting.LogPath+".count"
	counted := h.run(counting)
	short := h.spec(uid, "sleep", "0.3")
	short.Name, short.LogPath = "short", short.LogPath+".short"
	ended := h.run(short)

	// Down for a while: containers end and write with nobody there.
	old := h.killDaemon()
	eventually(t, "containerd runs again", func() error {
		if pid := h.daemon.PID(); pid == 0 || pid == old {
			return errors.New("not yet")
		}
		return nil
	})
	if state := h.waitExit(ended.ID); state.ExitCode != 0 {
		t.Errorf("ended: %+v", state)
	}
	if state := h.waitExit(counted.ID); state.ExitCode != 0 {
		t.Errorf("counted: %+v", state)
	} else if n := strings.Count(h.output(state)["stdout"], "\n"); n != 100 {
		t.Errorf("%d of 100 lines", n)
	}
	if state := h.state(steady.ID); state.Status != pods.StatusRunning || state.PID != steady.PID {
		t.Errorf("steady: %+v", state)
	}
	code, err := h.engine.Exec(t.Context(), steady.ID, []string{"/probe", "exit", "3"}, pods.Stdio{})
	if err != nil || code != 3 {
		t.Errorf("exec after the restart: %d, %v", code, err)
	}
}

func TestExitsWhileEverythingIsDown(t *testing.T) {
	h := newHost(t, nil)
	first := h.sandbox(nil)
	state := h.run(h.spec(h.sandbox(nil), "sleep"))
	long := h.run(h.spec(first, "sleep", "0.4"))
	hungry := h.spec(h.sandbox(nil), "eat", "200")
	hungry.Resources.Memory = 16 << 20
	created, err := h.engine.Create(t.Context(), hungry)
	if err != nil {
		t.Fatal(err)
	}

	// The peer dies, then containerd with it.
	killed, err := h.engine.Start(t.Context(), created.ID)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.engine.Close(); err != nil {
		t.Fatal(err)
	}
	if err := h.daemon.Close(true); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the two end", func() error {
		for _, c := range []pods.ContainerState{long, killed} {
			if c.PID != 0 && unix.Kill(c.PID, 0) == nil {
				return errors.New("still runs")
			}
		}
		return nil
	})
	h.startDaemon()
	h.open()
	if now := h.state(state.ID); now.Status != pods.StatusRunning || now.PID != state.PID || !now.StartedAt.Equal(state.StartedAt) {
		t.Errorf("running one: %+v, was %+v", now, state)
	}
	if now := h.state(long.ID); now.Status != pods.StatusExited || now.ExitCode != 0 || now.FinishedAt.IsZero() {
		t.Errorf("ended one: %+v", now)
	}
	if now := h.state(created.ID); now.Status != pods.StatusExited || now.ExitCode != 137 || !now.OOMKilled {
		t.Errorf("killed one: %+v", now)
	}
	stopped, err := h.engine.Stop(t.Context(), state.ID, 10*time.Second)
	if err != nil || stopped.ExitCode != 0 {
		t.Errorf("stop of an adopted one: %+v, %v", stopped, err)
	}
}

func TestDaemonIsAdopted(t *testing.T) {
	h := newHost(t, nil)
	pid := h.daemon.PID()
	if err := h.daemon.Close(false); err != nil {
		t.Fatal(err)
	}
	h.startDaemon()
	if h.daemon.PID() != pid {
		t.Errorf("process %d, want the one that ran: %d", h.daemon.PID(), pid)
	}
	old := h.killDaemon()
	eventually(t, "adopted containerd is started again", func() error {
		if now := h.daemon.PID(); now == 0 || now == old {
			return errors.New("not yet")
		}
		return nil
	})
}

func TestDaemonThatCannotStartSaysWhy(t *testing.T) {
	dir := t.TempDir()
	_, err := containerd.StartDaemon(t.Context(), containerd.DaemonConfig{Program: "/bin/false", Root: dir, StateDir: containerd.StateDir(dir)})
	t.Cleanup(func() { os.RemoveAll(containerd.StateDir(dir)) })
	if err == nil || !strings.Contains(err.Error(), "ended at start") {
		t.Errorf("error %v", err)
	}
}

func TestOpenWithoutContainerd(t *testing.T) {
	dir := t.TempDir()
	state := containerd.StateDir(dir)
	t.Cleanup(func() { os.RemoveAll(state) })
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	_, err := containerd.Open(ctx, containerd.Config{Socket: filepath.Join(dir, "none.sock"), StateDir: state, Shim: programs.shim, CgroupRoot: "/shoal-engine-none/pods"})
	if err == nil {
		t.Error("opened without containerd")
	}
}

func TestTwoEnginesSideBySide(t *testing.T) {
	a, b := newHost(t, nil), newHost(t, nil)
	uid := a.sandbox(nil)
	one := a.run(a.spec(uid, "sleep"))
	// The same pod UID on another peer gives the same container ID.
	if _, err := b.engine.CreateSandbox(t.Context(), pods.SandboxSpec{PodUID: uid, Name: "pod", Hostname: "other"}); err != nil {
		t.Fatal(err)
	}
	two := b.run(b.spec(uid, "sleep"))
	if one.PID == two.PID {
		t.Fatalf("one process: %d", one.PID)
	}
	if err := b.engine.RemoveSandbox(t.Context(), uid); err != nil {
		t.Fatal(err)
	}
	if now := a.state(one.ID); now.Status != pods.StatusRunning {
		t.Errorf("the other engine's removal reached it: %+v", now)
	}
	if err := b.daemon.Close(true); err != nil {
		t.Fatal(err)
	}
	if code, err := a.engine.Exec(t.Context(), one.ID, []string{"/probe", "exit", "0"}, pods.Stdio{}); err != nil || code != 0 {
		t.Errorf("exec: %d, %v", code, err)
	}
	b.startDaemon() // for its teardown
}

func TestSweepAfterLostState(t *testing.T) {
	h := newHost(t, nil)
	uid := h.sandbox(nil)
	state := h.run(h.spec(uid, "stubborn"))
	if err := h.engine.Close(); err != nil {
		t.Fatal(err)
	}
	// As if the peer had been killed before it wrote the records.
	for _, file := range []string{filepath.Join("k", state.ID, "container.json"), filepath.Join("p", uid, "sandbox.json")} {
		if err := os.Remove(filepath.Join(h.stateDir, file)); err != nil {
			t.Fatal(err)
		}
	}
	h.open()
	inventory, err := h.engine.List(t.Context())
	if err != nil || len(inventory.Containers) != 0 || len(inventory.Sandboxes) != 0 {
		t.Errorf("inventory %+v, %v", inventory, err)
	}
	eventually(t, "the orphan is dead", func() error {
		if unix.Kill(state.PID, 0) == nil {
			return fmt.Errorf("process %d lives", state.PID)
		}
		return nil
	})
	for _, rest := range []string{
		filepath.Join(h.stateDir, "k", state.ID), filepath.Join(h.stateDir, "p", uid),
		filepath.Join("/sys/fs/cgroup/memory", h.cgroupRoot, "besteffort/pod"+uid),
	} {
		if _, err := os.Stat(rest); err == nil {
			t.Errorf("%s is still there", rest)
		}
	}
	// The identity can be used again.
	if _, err := h.engine.CreateSandbox(t.Context(), pods.SandboxSpec{PodUID: uid, Name: "pod", Hostname: "pod"}); err != nil {
		t.Fatal(err)
	}
	h.run(h.spec(uid, "sleep"))
}

func TestKilledShimIsAnExit(t *testing.T) {
	h := newHost(t, nil)
	uid := h.sandbox(nil)
	state := h.run(h.spec(uid, "sleep"))
	if err := unix.Kill(parent(t, state.PID), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if ended := h.waitExit(state.ID); ended.ExitCode != 137 {
		t.Errorf("state %+v", ended)
	}
	// The pod can go on: its next container gets a shim again.
	again := h.spec(uid, "sleep")
	again.Attempt = 1
	if next := h.run(again); next.Status != pods.StatusRunning {
		t.Errorf("after the shim's death: %+v", next)
	}
	if err := h.engine.RemoveSandbox(t.Context(), uid); err != nil {
		t.Error(err)
	}
}

// Stock is taken a second after every start of the peer, when pods that waited
// for it start: what containerd listed before a container began says nothing
// about it.
func TestTakingStockWhileContainersStart(t *testing.T) {
	h := newHost(t, nil)
	uid := h.sandbox(nil)
	ctx, cancel := context.WithCancel(t.Context())
	var taking sync.WaitGroup
	for range 4 {
		taking.Go(func() {
			for ctx.Err() == nil {
				if err := h.engine.TakeStock(ctx); err != nil && ctx.Err() == nil {
					t.Error(err)
				}
			}
		})
	}
	var started []pods.ContainerState
	for attempt := range 30 {
		spec := h.spec(uid, "sleep")
		spec.Attempt = attempt
		started = append(started, h.run(spec))
	}
	cancel()
	taking.Wait()
	for _, state := range started {
		if now := h.state(state.ID); now.Status != pods.StatusRunning || now.PID != state.PID {
			t.Errorf("attempt %d, started as process %d, is %s: %q", state.Attempt, state.PID, now.Status, now.Message)
		}
	}
}
