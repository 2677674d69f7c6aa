package fleet

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"shoal/runtime/pods"
)

// start runs a container of a pod on a machine, as its agent would.
func start(t *testing.T, m *Machine, uid, name string, identity bool, attempt int) {
	t.Helper()
	r := runtime{Engine: m.engine, process: process{m, func() bool { return true }}}
	ctx := t.Context()
	if err := r.Renewed(time.Now()); err != nil {
		t.Fatal(err)
	}
	if _, err := r.CreateSandbox(ctx, pods.SandboxSpec{PodUID: uid, Namespace: "ns", Name: name, Identity: identity}); err != nil {
		t.Fatal(err)
	}
	c, err := r.Create(ctx, pods.ContainerSpec{PodUID: uid, Namespace: "ns", PodName: name, Name: "c", Attempt: attempt, Image: Image})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Start(ctx, c.ID); err != nil {
		t.Fatal(err)
	}
}

// TestCheckersCanFail shows each checker that watches machines what it must blame.
func TestCheckersCanFail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := Open(t.TempDir(), 1, logger())
		defer f.Close()
		r := &run{fleet: f, begun: time.Now(), wrong: map[string]bool{}, hurt: map[string]bool{}, lost: map[string]bool{}}
		a, b := f.Add(""), f.Add("")
		start(t, a, "uid-1", "db-0", true, 0)
		start(t, b, "uid-2", "db-0", true, 0)
		start(t, b, "uid-3", "web-x", false, 1)
		ctx, stop := context.WithTimeout(t.Context(), 2*time.Second)
		defer stop()
		go r.watchRestarts(ctx)
		r.watchIdentities(ctx)
		for _, want := range []string{"identity", "restarts"} {
			found := false
			for _, v := range r.report.Violations {
				found = found || strings.HasPrefix(v.String(), want)
			}
			if !found {
				t.Errorf("%s blamed nothing: %v", want, r.report.Violations)
			}
		}
	})
}

// TestTheWatchdogStopsIdentities: what must not run twice ends when nobody renews the lease.
func TestTheWatchdogStopsIdentities(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := Open(t.TempDir(), 1, logger())
		defer f.Close()
		m := f.Add("")
		start(t, m, "uid-1", "db-0", true, 0)
		start(t, m, "uid-2", "web-x", false, 0)
		time.Sleep(10 * time.Second)
		if running := m.engine.RunningPods(); len(running) != 1 || running[0] != "uid-2" {
			t.Errorf("running: %v", running)
		}
	})
}
