//go:build linux

package containerd_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"shoal/runtime/pods"
)

// BenchmarkCreateToRunning compares sandbox + create + start through the engine
// with a bare run of the same program from the same root file system by the same
// runtime, taking turns so that both see the same machine. One iteration is one
// of each. p50 in ms, and their ratio.
func BenchmarkCreateToRunning(b *testing.B) {
	h := newHost(b, nil)
	bundle := bareBundle(b, h)
	h.cycle(b) // the first container of an image reads its users
	var engine, bare, sandbox, create, start []time.Duration
	for b.Loop() {
		times := h.cycle(b)
		sandbox, create, start = append(sandbox, times[0]), append(create, times[1]), append(start, times[2])
		engine = append(engine, times[0]+times[1]+times[2])
		bare = append(bare, bareRun(b, bundle))
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(p50(sandbox), "sandbox-ms")
	b.ReportMetric(p50(create), "create-ms")
	b.ReportMetric(p50(start), "start-ms")
	b.ReportMetric(p50(engine), "engine-ms")
	b.ReportMetric(p99(engine), "engine-p99-ms")
	b.ReportMetric(p50(bare), "bare-ms")
	b.ReportMetric(p50(engine)/p50(bare), "ratio")
}

// BenchmarkFifty starts 50 pods of one container, 8 at a time, and removes them.
func BenchmarkFifty(b *testing.B) {
	h := newHost(b, nil)
	h.cycle(b)
	const count, width = 50, 8
	var up, down []time.Duration
	for b.Loop() {
		uids := make([]string, count)
		begin := time.Now()
		inParallel(count, width, func(i int) { uids[i] = h.sandbox(nil); h.run(h.spec(uids[i], "sleep")) })
		up = append(up, time.Since(begin))
		begin = time.Now()
		inParallel(count, width, func(i int) {
			if err := h.engine.RemoveSandbox(b.Context(), uids[i]); err != nil {
				b.Error(err)
			}
		})
		down = append(down, time.Since(begin))
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(p50(up), "up-ms")
	b.ReportMetric(p50(down), "down-ms")
}

func inParallel(count, width int, do func(int)) {
	next := make(chan int)
	var all sync.WaitGroup
	for range width {
		all.Go(func() {
			for i := range next {
				do(i)
			}
		})
	}
	for i := range count {
		next <- i
	}
	close(next)
	all.Wait()
}

// cycle makes one pod, and removes it outside of the measured time.
func (h *host) cycle(b *testing.B) [3]time.Duration {
	uid := newUID()
	begin := time.Now()
	if _, err := h.engine.CreateSandbox(b.Context(), pods.SandboxSpec{PodUID: uid, Hostname: "bench", CgroupParent: "besteffort/pod" + uid}); err != nil {
		b.Fatal(err)
	}
	sandbox := time.Since(begin)
	begin = time.Now()
	created, err := h.engine.Create(b.Context(), h.spec(uid, "sleep"))
	if err != nil {
		b.Fatal(err)
	}
	create := time.Since(begin)
	begin = time.Now()
	if _, err := h.engine.Start(b.Context(), created.ID); err != nil {
		b.Fatal(err)
	}
	start := time.Since(begin)
	if err := h.engine.RemoveSandbox(b.Context(), uid); err != nil {
		b.Fatal(err)
	}
	return [3]time.Duration{sandbox, create, start}
}

// bareBundle is an OCI bundle with the probe in it.
func bareBundle(b *testing.B, h *host) string {
	bundle := filepath.Join(h.dataDir, "bundle")
	root := filepath.Join(bundle, "rootfs")
	if err := os.MkdirAll(root, 0o755); err != nil {
		b.Fatal(err)
	}
	program, err := os.ReadFile(programs.probe)
	if err != nil {
		b.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "probe"), program, 0o755); err != nil {
		b.Fatal(err)
	}
	spec := specs.Spec{
		Version: specs.Version,
		Root:    &specs.Root{Path: "rootfs"},
		Process: &specs.Process{Args: []string{"/probe", "sleep"}, Cwd: "/", Env: []string{"PATH=/"}},
		Mounts:  []specs.Mount{{Destination: "/proc", Type: "proc", Source: "proc"}, {Destination: "/dev", Type: "tmpfs", Source: "tmpfs"}},
		Linux: &specs.Linux{
			CgroupsPath: filepath.Join(h.cgroupRoot, "bare"),
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.NetworkNamespace},
				{Type: specs.IPCNamespace}, {Type: specs.UTSNamespace},
			},
		},
	}
	data, err := json.Marshal(spec)
	if err != nil {
		b.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bundle, "config.json"), data, 0o644); err != nil {
		b.Fatal(err)
	}
	return bundle
}

// bareRun times "run --detach" and deletes the container.
func bareRun(b *testing.B, bundle string) time.Duration {
	root := filepath.Join(filepath.Dir(bundle), "runc")
	runc := func(args ...string) {
		command := exec.Command(programs.shim, append([]string{"--root", root}, args...)...)
		if out, err := command.CombinedOutput(); err != nil {
			b.Fatalf("%v: %v: %s", args, err, out)
		}
	}
	id := fmt.Sprintf("bare-%d", time.Now().UnixNano())
	command := exec.Command(programs.shim, "--root", root, "run", "--detach", "--bundle", bundle, id)
	begin := time.Now()
	if err := command.Run(); err != nil {
		b.Fatal(err)
	}
	took := time.Since(begin)
	runc("delete", "--force", id)
	return took
}

func sorted(list []time.Duration) []time.Duration { return slices.Sorted(slices.Values(list)) }

// p50 and p99 are in milliseconds.
func p50(list []time.Duration) float64 {
	return float64(sorted(list)[len(list)/2].Microseconds()) / 1000
}

func p99(list []time.Duration) float64 {
	return float64(sorted(list)[len(list)*99/100].Microseconds()) / 1000
}
