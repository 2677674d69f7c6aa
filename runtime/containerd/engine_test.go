//go:build linux

package containerd_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"shoal/runtime/pods"
)

func TestLifeOfContainers(t *testing.T) {
	h := newHost(t, nil)
	for name, test := range map[string]func(*testing.T, *host){
		"a run gives exit code, both streams and an event": runAndExit,
		"the same create returns the same container":       createTwice,
		"stop waits for the grace":                         stopGrace,
		"a stubborn one is killed":                         stopKills,
		"stop before start ends it":                        stopCreated,
		"a missing program fails the start":                startFails,
		"the kernel's kill for memory is told":             oomKill,
		"limits are in the cgroup":                         limits,
		"containers of a pod share a shim and namespaces":  grouped,
		"a shared pid namespace":                           sharedPID,
		"bad specs are refused by name":                    badSpecs,
		"usage is measured":                                usage,
		"a pod's address is dialled from inside":           dial,
	} {
		t.Run(name, func(t *testing.T) {
			outer := h.t
			h.t = t
			defer func() { h.t = outer }()
			test(t, h)
		})
	}
}

func runAndExit(t *testing.T, h *host) {
	uid := h.sandbox(nil)
	spec := h.spec(uid, "exit", "7")
	spec.Labels = map[string]string{"shoal.dev/x": strings.Repeat("long", 2000)}
	before := time.Now()
	state := h.waitExit(h.run(spec).ID)
	if state.ExitCode != 7 || state.OOMKilled || state.Labels["shoal.dev/x"] != spec.Labels["shoal.dev/x"] {
		t.Errorf("state %+v", state)
	}
	if state.StartedAt.Before(before) || state.FinishedAt.Before(state.StartedAt.Add(-time.Second)) {
		t.Errorf("times %v %v", state.StartedAt, state.FinishedAt)
	}
	out := h.output(state)
	if out["stdout"] != "to stdout\n" || out["stderr"] != "to stderr\n" {
		t.Errorf("output %q", out)
	}
	eventually(t, "exit event", func() error {
		for {
			select {
			case event := <-h.engine.Events():
				if event.State.ID == state.ID && event.Kind == pods.EventExited && event.State.ExitCode == 7 {
					return nil
				}
			default:
				return errors.New("none")
			}
		}
	})
	if err := h.engine.Remove(t.Context(), state.ID); err != nil {
		t.Fatal(err)
	}
	if err := h.engine.Remove(t.Context(), state.ID); err != nil {
		t.Errorf("second remove: %v", err)
	}
	if err := h.engine.RemoveSandbox(t.Context(), uid); err != nil {
		t.Error(err)
	}
}

func createTwice(t *testing.T, h *host) {
	uid := h.sandbox(nil)
	spec := h.spec(uid, "sleep")
	first := h.run(spec)
	second := h.run(spec)
	if first.ID != second.ID || second.Status != pods.StatusRunning || second.PID != first.PID {
		t.Errorf("first %+v second %+v", first, second)
	}
	spec.Attempt = 1
	if third := h.run(spec); third.ID == first.ID || third.Attempt != 1 {
		t.Errorf("attempt 1: %+v", third)
	}
	if err := h.engine.RemoveSandbox(t.Context(), uid); err != nil {
		t.Error(err)
	}
}

func stopGrace(t *testing.T, h *host) {
	uid := h.sandbox(nil)
	state := h.run(h.spec(uid, "sleep"))
	waitOutput(h, state, "sleeping")
	begin := time.Now()
	stopped, err := h.engine.Stop(t.Context(), state.ID, 20*time.Second)
	if err != nil || stopped.Status != pods.StatusExited || stopped.ExitCode != 0 {
		t.Errorf("stop: %+v, %v", stopped, err)
	}
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("stop took %v", took)
	}
}

func stopKills(t *testing.T, h *host) {
	uid := h.sandbox(nil)
	state := h.run(h.spec(uid, "stubborn"))
	waitOutput(h, state, "stubborn")
	begin := time.Now()
	stopped, err := h.engine.Stop(t.Context(), state.ID, 300*time.Millisecond)
	if err != nil || stopped.ExitCode != 137 || stopped.OOMKilled {
		t.Errorf("stop: %+v, %v", stopped, err)
	}
	if took := time.Since(begin); took < 300*time.Millisecond {
		t.Errorf("killed after %v, before the grace was over", took)
	}
	cancelled := h.spec(uid, "stubborn")
	cancelled.Attempt, cancelled.LogPath = 1, cancelled.LogPath+".1"
	state = h.run(cancelled)
	waitOutput(h, state, "stubborn")
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := h.engine.Stop(ctx, state.ID, time.Minute); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("stop with an ended context: %v", err)
	}
	if now := h.state(state.ID); now.Status != pods.StatusRunning {
		t.Errorf("a stop that was given up killed: %+v", now)
	}
}

func stopCreated(t *testing.T, h *host) {
	uid := h.sandbox(nil)
	created, err := h.engine.Create(t.Context(), h.spec(uid, "sleep"))
	if err != nil {
		t.Fatal(err)
	}
	if state, err := h.engine.Stop(t.Context(), created.ID, time.Second); err != nil || state.Status != pods.StatusExited || state.ExitCode != 137 {
		t.Errorf("stop: %+v, %v", state, err)
	}
}

func startFails(t *testing.T, h *host) {
	uid := h.sandbox(nil)
	spec := h.spec(uid)
	spec.Command = []string{"/no/such/program"}
	created, err := h.engine.Create(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	state, err := h.engine.Start(t.Context(), created.ID)
	if !errors.Is(err, pods.ErrStart) || !strings.Contains(err.Error(), "/no/such/program") {
		t.Errorf("error %v", err)
	}
	if state.Status != pods.StatusExited || state.ExitCode != 127 || state.Message == "" || !state.StartedAt.Equal(state.FinishedAt) {
		t.Errorf("state %+v", state)
	}
	t.Log(err)
	h.reopen()
	if again := h.state(state.ID); again.ExitCode != 127 || again.Message != state.Message {
		t.Errorf("after reopening: %+v", again)
	}
}

func oomKill(t *testing.T, h *host) {
	uid := h.sandbox(nil)
	spec := h.spec(uid, "eat", "200")
	spec.Resources.Memory = 32 << 20
	if state := h.waitExit(h.run(spec).ID); !state.OOMKilled || state.ExitCode != 137 {
		t.Errorf("state %+v", state)
	}
}

func limits(t *testing.T, h *host) {
	uid := h.sandbox(func(s *pods.SandboxSpec) { s.Resources = pods.Resources{CPUShares: 512, Memory: 200 << 20} })
	spec := h.spec(uid, "sleep")
	spec.Resources = pods.Resources{CPUShares: 256, CPUQuota: 20000, CPUPeriod: 100000, Memory: 64 << 20, PidsLimit: 77, OOMScoreAdj: 900}
	state := h.run(spec)
	pod := filepath.Join(h.cgroupRoot, "besteffort/pod"+uid)
	inside := filepath.Join(pod, state.ID)
	check := func(controller, cgroup, v1, v2, want, wantV2 string) {
		t.Helper()
		path := filepath.Join("/sys/fs/cgroup", controller, cgroup, v1)
		if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
			path, want = filepath.Join("/sys/fs/cgroup", cgroup, v2), wantV2
		}
		if data, err := os.ReadFile(path); err != nil || strings.TrimSpace(string(data)) != want {
			t.Errorf("%s: %q, %v; want %q", path, data, err, want)
		}
	}
	check("memory", inside, "memory.limit_in_bytes", "memory.max", "67108864", "67108864")
	check("cpu", inside, "cpu.cfs_quota_us", "cpu.max", "20000", "20000 100000")
	check("pids", inside, "pids.max", "pids.max", "77", "77")
	check("memory", pod, "memory.limit_in_bytes", "memory.max", "209715200", "209715200")
	if data, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", state.PID)); err != nil || strings.TrimSpace(string(data)) != "900" {
		t.Errorf("oom_score_adj %q, %v", data, err)
	}
	if err := h.engine.Update(t.Context(), state.ID, pods.Resources{CPUQuota: 50000, CPUPeriod: 100000, Memory: 96 << 20}); err != nil {
		t.Fatal(err)
	}
	check("memory", inside, "memory.limit_in_bytes", "memory.max", "100663296", "100663296")
	check("cpu", inside, "cpu.cfs_quota_us", "cpu.max", "50000", "50000 100000")
}

func grouped(t *testing.T, h *host) {
	uid := h.sandbox(nil)
	first := h.run(h.spec(uid, "serve", "127.0.0.1:8123"))
	second := h.spec(uid, "sleep")
	second.Name = "second"
	state := h.run(second)
	if parent(t, first.PID) != parent(t, state.PID) {
		t.Errorf("parents %d and %d: not one shim", parent(t, first.PID), parent(t, state.PID))
	}
	for _, kind := range []string{"net", "ipc", "uts"} {
		a, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", first.PID, kind))
		b, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", state.PID, kind))
		own, _ := os.Readlink("/proc/self/ns/" + kind)
		if a == "" || a != b || a == own {
			t.Errorf("%s namespaces %q %q, ours %q", kind, a, b, own)
		}
	}
	if a, b := pidNamespace(first.PID), pidNamespace(state.PID); a == b {
		t.Errorf("pid namespaces are shared: %s", a)
	}
}

func pidNamespace(pid int) string {
	link, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid))
	return link
}

// parent reads a process's parent from /proc.
func parent(t *testing.T, pid int) int {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	var ppid int
	after := string(data[strings.LastIndexByte(string(data), ')')+2:])
	if _, err := fmt.Sscanf(after, "%*c %d", &ppid); err != nil {
		var state string
		if _, err := fmt.Sscan(after, &state, &ppid); err != nil {
			t.Fatal(err)
		}
	}
	return ppid
}

func sharedPID(t *testing.T, h *host) {
	uid := h.sandbox(func(s *pods.SandboxSpec) { s.ShareProcessNamespace = true })
	spec := h.spec(uid, "show", "pid")
	spec.SharePID = true
	if _, out := h.finished(spec); out == "pid 1\n" || !strings.HasPrefix(out, "pid ") {
		t.Errorf("output %q", out)
	}
	inventory, err := h.engine.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, c := range inventory.Containers {
		if c.PodUID == uid {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d containers are listed, want 1: the pause process is nobody's", n)
	}
	if err := h.engine.RemoveSandbox(t.Context(), uid); err != nil {
		t.Error(err)
	}
}

func badSpecs(t *testing.T, h *host) {
	uid := h.sandbox(nil)
	for name, test := range map[string]struct {
		change func(*pods.ContainerSpec)
		want   error
		text   string
	}{
		"image":      {func(s *pods.ContainerSpec) { s.Image = "shoal.test/none:1" }, pods.ErrImageNotFound, "shoal.test/none:1"},
		"reference":  {func(s *pods.ContainerSpec) { s.Image = "UPPER/Case" }, pods.ErrImageInvalid, "UPPER/Case"},
		"sandbox":    {func(s *pods.ContainerSpec) { s.PodUID = "none" }, pods.ErrNotFound, "none"},
		"mount":      {func(s *pods.ContainerSpec) { s.Mounts = []pods.Mount{{HostPath: "/no/such", ContainerPath: "/x"}} }, pods.ErrConfig, "/no/such"},
		"capability": {func(s *pods.ContainerSpec) { s.Security.AddCaps = []string{"NO_SUCH"} }, pods.ErrConfig, "NO_SUCH"},
		"seccomp":    {func(s *pods.ContainerSpec) { s.Security.Seccomp = "/no/profile.json" }, pods.ErrConfig, "/no/profile.json"},
		"signal":     {func(s *pods.ContainerSpec) { s.StopSignal = "SIGNONE" }, pods.ErrConfig, "SIGNONE"},
		"workdir":    {func(s *pods.ContainerSpec) { s.WorkDir = "relative" }, pods.ErrConfig, "relative"},
	} {
		spec := h.spec(uid, "sleep")
		spec.Name = "bad-" + name
		test.change(&spec)
		if _, err := h.engine.Create(t.Context(), spec); !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.text) {
			t.Errorf("%s: error %v, want %v naming %q", name, err, test.want, test.text)
		}
	}
}

func usage(t *testing.T, h *host) {
	uid := h.sandbox(nil)
	spec := h.spec(uid, "eat", "20")
	state := h.run(spec)
	waitOutput(h, state, "ate 20")
	all, err := h.engine.Stats(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, pod := range all {
		if pod.PodUID != uid {
			continue
		}
		if len(pod.Containers) != 1 || pod.Containers[0].ID != state.ID {
			t.Fatalf("containers %+v", pod.Containers)
		}
		u := pod.Containers[0].Usage
		if u.WorkingSetBytes < 20<<20 || u.CPUNanos == 0 || u.Processes == 0 || pod.Usage.MemoryBytes < 20<<20 {
			t.Errorf("usage %+v, pod %+v", u, pod.Usage)
		}
		return
	}
	t.Errorf("pod is not in %+v", all)
}

func dial(t *testing.T, h *host) {
	uid := h.sandbox(func(s *pods.SandboxSpec) { s.Hostname = "served" })
	h.run(h.spec(uid, "serve", "127.0.0.1:8123"))
	eventually(t, "answer through the pod's loopback", func() error {
		conn, err := h.engine.DialPod(t.Context(), uid, "tcp", "localhost:8123")
		if err != nil {
			return err
		}
		defer conn.Close()
		request, err := http.NewRequest(http.MethodGet, "http://pod/", nil)
		if err != nil {
			return err
		}
		request.Close = true
		if err := request.Write(conn); err != nil {
			return err
		}
		answer, err := io.ReadAll(conn)
		if err != nil {
			return err
		}
		if !strings.Contains(string(answer), "hello from served") {
			return fmt.Errorf("answer %q", answer)
		}
		return nil
	})
}

// waitOutput polls until the log holds text.
func waitOutput(h *host, state pods.ContainerState, text string) {
	h.t.Helper()
	eventually(h.t, "output "+text, func() error {
		data, err := os.ReadFile(state.LogPath)
		if err != nil {
			return err
		}
		if !strings.Contains(string(data), text) {
			return fmt.Errorf("log is %q", data)
		}
		return nil
	})
}
