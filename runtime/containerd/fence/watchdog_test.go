//go:build linux

package fence

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"shoal/internal/boottime"
	"shoal/internal/polling"
)

// newCgroup makes a cgroup of its own, in a hierarchy of v1 or in v2.
func newCgroup(t *testing.T) string {
	t.Helper()
	mount := "/sys/fs/cgroup/pids"
	if _, err := os.Stat(mount); err != nil {
		mount = "/sys/fs/cgroup"
	}
	path := filepath.Join(mount, fmt.Sprintf("shoal-fence-%d-%d", os.Getpid(), time.Now().UnixNano()))
	if err := os.Mkdir(path, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		poll(t, "cgroup is removed", func() bool {
			err := unix.Rmdir(path)
			return err == nil || errors.Is(err, unix.ENOENT)
		})
	})
	return path
}

func subgroup(t *testing.T, parent, name string) string {
	t.Helper()
	path := filepath.Join(parent, name)
	if err := os.Mkdir(path, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { poll(t, "cgroup is removed", func() bool { return unix.Rmdir(path) == nil }) })
	return path
}

// process runs a script in a cgroup and returns a channel that is closed at its end.
func process(t *testing.T, cgroup, script string) <-chan struct{} {
	t.Helper()
	command := exec.Command("sh", "-c", "read _; "+script)
	in, err := command.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	gone := make(chan struct{})
	go func() {
		_ = command.Wait() // killed, by the test or by its clean-up
		close(gone)
	}()
	t.Cleanup(func() {
		_ = command.Process.Kill() // most are dead
		<-gone
	})
	if err := os.WriteFile(filepath.Join(cgroup, "cgroup.procs"), []byte(strconv.Itoa(command.Process.Pid)), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := in.Write([]byte("\n")); err != nil {
		t.Fatal(err)
	}
	return gone
}

func over(gone <-chan struct{}) bool {
	select {
	case <-gone:
		return true
	default:
		return false
	}
}

func poll(t *testing.T, what string, check func() bool) {
	t.Helper()
	polling.Until(t, 5*time.Millisecond, 10*time.Second, what, func(context.Context) error {
		if !check() {
			return errors.New("it did not happen")
		}
		return nil
	})
}

func TestWatchdogKillsTheListed(t *testing.T) {
	dir := Dir(t.TempDir())
	listed, other := newCgroup(t), newCgroup(t)
	top := process(t, listed, "exec sleep 100")
	deep := process(t, subgroup(t, subgroup(t, listed, "a"), "b"), "exec sleep 100")
	forking := process(t, subgroup(t, listed, "c"), "while :; do sleep 0.001 & sleep 0.001; done")
	spare := process(t, subgroup(t, listed, "pause"), "exec sleep 100")
	bystander := process(t, other, "exec sleep 100")
	if err := dir.Add(Pod{UID: "one", Cgroups: []string{filepath.Join(listed, "none"), listed}, Spare: "pause"}); err != nil {
		t.Fatal(err)
	}
	if err := dir.Add(Pod{UID: "broken"}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir.pod("broken"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}

	w := Watchdog{Dir: dir, KillAfter: KillAfter, Logger: slog.New(slog.DiscardHandler)}
	now, err := boottime.Now()
	if err != nil {
		t.Fatal(err)
	}
	w.look(now + time.Hour)
	if over(top) || over(deep) {
		t.Fatal("killed without a heartbeat")
	}
	if err := dir.Renewed(time.Now()); err != nil {
		t.Fatal(err)
	}
	w.look(now + KillAfter - 1) // not a nanosecond early: the renewal is later than now
	if over(top) || over(deep) {
		t.Fatal("killed while the lease was young")
	}
	// A heartbeat that cannot be read is not a sign of life.
	if err := os.Remove(dir.heartbeat()); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(dir.heartbeat(), 0o700); err != nil {
		t.Fatal(err)
	}
	w.look(now + KillAfter + time.Minute)
	poll(t, "listed processes end", func() bool { return over(top) && over(deep) && over(forking) })
	if over(spare) || over(bystander) {
		t.Error("killed what is not listed")
	}
	late := process(t, listed, "exec sleep 100")
	w.look(now + KillAfter + time.Minute + pollEvery)
	poll(t, "what was started during the silence ends", func() bool { return over(late) })

	if err := os.Remove(dir.heartbeat()); err != nil {
		t.Fatal(err)
	}
	if err := dir.Renewed(time.Now()); err != nil {
		t.Fatal(err)
	}
	again := process(t, listed, "exec sleep 100")
	if now, err = boottime.Now(); err != nil {
		t.Fatal(err)
	}
	w.look(now)
	if over(again) || over(spare) || over(bystander) {
		t.Error("killed after the lease was renewed")
	}
}

func TestRunFollowsTheHeartbeat(t *testing.T) {
	dir, cgroup := Dir(t.TempDir()), newCgroup(t)
	if err := dir.Add(Pod{UID: "one", Cgroups: []string{cgroup}}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- (&Watchdog{Dir: dir, KillAfter: 800 * time.Millisecond, Logger: slog.New(slog.DiscardHandler)}).Run(ctx)
	}()
	gone := process(t, cgroup, "exec sleep 100")
	for range 20 {
		if err := dir.Renewed(time.Now()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(100 * time.Millisecond) // the pace of renewals is what is tested
	}
	if over(gone) {
		t.Error("killed while the lease was renewed")
	}
	poll(t, "the process ends", func() bool { return over(gone) })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestFiles(t *testing.T) {
	dir := Dir(t.TempDir())
	overdue := func(limit time.Duration) bool {
		t.Helper()
		old, err := dir.Overdue(limit)
		if err != nil {
			t.Fatal(err)
		}
		return old
	}
	if overdue(0) {
		t.Error("overdue without a heartbeat")
	}
	if err := dir.Arm(); err != nil || !overdue(1000*time.Hour) {
		t.Errorf("armed and not overdue, %v", err)
	}
	if err := dir.Renewed(time.Now().Add(-time.Minute)); err != nil || overdue(61*time.Second) || !overdue(time.Minute) {
		t.Errorf("renewed a minute ago, %v", err)
	}
	if err := dir.Arm(); err != nil || overdue(61*time.Second) {
		t.Errorf("arming again forgot a renewal, %v", err)
	}
	if err := dir.Extend(time.Now().Add(time.Minute)); err != nil || !overdue(time.Minute) {
		t.Errorf("an old lease was extended, %v", err)
	}
	if err := errors.Join(dir.Renewed(time.Now()), dir.Extend(time.Now().Add(KillAfter))); err != nil || overdue(time.Second) {
		t.Errorf("extended to the end it has, %v", err)
	}
	if err := dir.Extend(time.Now().Add(KillAfter + time.Minute)); err != nil || overdue(0) {
		t.Errorf("a young lease was not extended, %v", err)
	}
	if pods, err := dir.Pods(); err != nil || pods != nil {
		t.Errorf("list %v, %v", pods, err)
	}
	want := Pod{UID: "b", Cgroups: []string{"/x", "/y"}, Spare: "z"}
	if err := errors.Join(dir.Add(want), dir.Add(Pod{UID: "a"}), dir.Remove("a"), dir.Remove("unknown")); err != nil {
		t.Fatal(err)
	}
	pods, err := dir.Pods()
	if err != nil || len(pods) != 1 || pods[0].UID != "b" || !slices.Equal(pods[0].Cgroups, want.Cgroups) || pods[0].Spare != "z" {
		t.Errorf("list %+v, %v", pods, err)
	}
}
