//go:build linux

package containerd_test

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"shoal/runtime/pods"
)

func TestWhatContainersSee(t *testing.T) {
	h := newHost(t, nil)
	uid := h.sandbox(func(s *pods.SandboxSpec) {
		s.Hostname = "seen"
		s.Sysctls = map[string]string{"net.ipv4.ip_unprivileged_port_start": "80"}
	})
	host := filepath.Join(h.dataDir, "mounted")
	if err := os.MkdirAll(host, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(host, "file"), []byte("from the host"), 0o644); err != nil {
		t.Fatal(err)
	}
	number := func(n int64) *int64 { return &n }

	for name, test := range map[string]struct {
		args   []string
		change func(*pods.ContainerSpec)
		code   int
		want   []string
		absent []string
	}{
		"image defaults": {args: []string{"show", "env", "cwd", "hostname", "ids"},
			want: []string{"env FROM_IMAGE=yes", "env BOTH=image", "env PATH=/usr/local/sbin:", "cwd /etc", "hostname seen", "ids 0 0 [0]"}},
		"environment and folder": {args: []string{"show", "env", "cwd"}, change: func(s *pods.ContainerSpec) {
			s.Env = []pods.EnvVar{{Name: "BOTH", Value: "first"}, {Name: "BOTH", Value: "pod=x"}}
			s.WorkDir = "/made/for/it"
		}, want: []string{"env BOTH=pod=x", "cwd /made/for/it"}, absent: []string{"BOTH=image", "BOTH=first"}},
		"named user of the image": {args: []string{"show", "ids"}, change: func(s *pods.ContainerSpec) {
			s.Security.User, s.Security.SupplementalGroups = number(1000), []int64{5000}
		}, want: []string{"ids 1000 2000 [2000 3000 5000]"}},
		"strict groups": {args: []string{"show", "ids"}, change: func(s *pods.ContainerSpec) {
			s.Security.User, s.Security.Group, s.Security.StrictSupplemental = number(1000), number(7), true
		}, want: []string{"ids 1000 7 [7]"}},
		"mounts": {args: []string{"cat", "/data/file"}, change: func(s *pods.ContainerSpec) {
			s.Mounts = []pods.Mount{{HostPath: host, ContainerPath: "/data", ReadOnly: true}}
		}, want: []string{"from the host"}},
		"read-only mounts": {args: []string{"write", "/data/new"}, code: 1, change: func(s *pods.ContainerSpec) {
			s.Mounts = []pods.Mount{{HostPath: host, ContainerPath: "/data", ReadOnly: true, RecursiveReadOnly: true}}
		}, want: []string{"read-only file system"}},
		"read-only root": {args: []string{"write", "/new"}, code: 1, change: func(s *pods.ContainerSpec) {
			s.Security.ReadOnlyRoot = true
		}, want: []string{"read-only file system"}},
		"default security": {args: []string{"show", "status"},
			want: []string{"Seccomp:\t2", "CapEff:\t00000000a80425fb", "NoNewPrivs:\t0"}},
		"restricted": {args: []string{"show", "status"}, change: func(s *pods.ContainerSpec) {
			s.Security.DropCaps, s.Security.AddCaps, s.Security.NoNewPrivileges = []string{"ALL"}, []string{"NET_BIND_SERVICE"}, true
		}, want: []string{"CapEff:\t0000000000000400", "CapBnd:\t0000000000000400", "NoNewPrivs:\t1"}},
		"privileged": {args: []string{"show", "status"}, change: func(s *pods.ContainerSpec) {
			s.Security.Privileged = true
		}, want: []string{"Seccomp:\t0"}, absent: []string{"CapEff:\t00000000a80425fb"}},
		"unconfined": {args: []string{"show", "status"}, change: func(s *pods.ContainerSpec) {
			s.Security.Seccomp = "unconfined"
		}, want: []string{"Seccomp:\t0", "CapEff:\t00000000a80425fb"}},
		"masked proc":          {args: []string{"cat", "/proc/timer_list", "/proc/sys/net/ipv4/ip_unprivileged_port_start"}, want: []string{"80"}},
		"proc is not writable": {args: []string{"write", "/proc/sys/net/ipv4/ip_forward"}, code: 1, want: []string{"read-only"}},
		"own memory limit is seen": {args: []string{"cat", "/sys/fs/cgroup/memory/memory.limit_in_bytes"}, change: func(s *pods.ContainerSpec) {
			s.Resources.Memory = 48 << 20
			if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
				s.Args = []string{"cat", "/sys/fs/cgroup/memory.max"}
			}
		}, want: []string{"50331648"}},
		"a device": {args: []string{"cat", "/dev/nothing"}, change: func(s *pods.ContainerSpec) {
			s.Devices = []pods.Device{{HostPath: "/dev/null", ContainerPath: "/dev/nothing", Permissions: "rwm"}}
		}},
		"shared memory": {args: []string{"write", "/dev/shm/x"}},
	} {
		t.Run(name, func(t *testing.T) {
			spec := h.spec(uid, test.args...)
			spec.Name = strings.ReplaceAll(name, " ", "-")
			spec.LogPath = filepath.Join(h.logs, spec.Name+".log")
			if test.change != nil {
				test.change(&spec)
			}
			state, out := h.finished(spec)
			if state.ExitCode != test.code {
				t.Errorf("exit code %d", state.ExitCode)
			}
			for _, want := range test.want {
				if !strings.Contains(out, want) {
					t.Errorf("output %q does not contain %q", out, want)
				}
			}
			for _, absent := range test.absent {
				if strings.Contains(out, absent) {
					t.Errorf("output %q contains %q", out, absent)
				}
			}
		})
	}
}

// The main thread must never be lent to a pod's namespaces: it could not leave
// them, and others take them for the process's.
func TestMainThreadStaysAtHome(t *testing.T) {
	home := namespaceOf(t, os.Getpid(), "net")
	h := newHost(t, nil)
	for range 30 {
		uid := h.sandbox(nil)
		if _, err := h.engine.DialPod(t.Context(), uid, "tcp", "127.0.0.1:1"); err == nil {
			t.Fatal("somebody listens")
		}
		if now := namespaceOf(t, os.Getpid(), "net"); now != home {
			t.Fatalf("the process is in %s, was in %s", now, home)
		}
	}
}

func TestHostNamespaces(t *testing.T) {
	h := newHost(t, nil)
	uid := h.sandbox(func(s *pods.SandboxSpec) { s.HostNetwork, s.HostIPC, s.HostPID = true, true, true })
	spec := h.spec(uid, "sleep")
	spec.HostPID = true
	state := h.run(spec)
	for _, kind := range []string{"net", "ipc", "uts", "pid"} {
		ours, err := os.Readlink("/proc/self/ns/" + kind)
		if err != nil {
			t.Fatal(err)
		}
		if theirs := namespaceOf(t, state.PID, kind); theirs != ours {
			t.Errorf("%s namespace %s, ours is %s", kind, theirs, ours)
		}
	}
	if stopped, err := h.engine.Kill(t.Context(), state.ID); err != nil || stopped.ExitCode != 137 {
		t.Errorf("kill: %+v, %v", stopped, err)
	}
}

func namespaceOf(t *testing.T, pid int, kind string) string {
	t.Helper()
	link, err := os.Readlink(filepath.Join("/proc", strconv.Itoa(pid), "ns", kind))
	if err != nil {
		t.Fatal(err)
	}
	return link
}
