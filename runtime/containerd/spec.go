//go:build linux

package containerd

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/contrib/seccomp"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/cap"
	"github.com/containerd/containerd/v2/pkg/oci"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"

	"shoal/runtime/pods"
)

const (
	defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	shimGroup   = "io.containerd.runc.v2.group" // containers with the same value share a shim
)

// specInput is all that one container's OCI spec is made from.
type specInput struct {
	id      string
	spec    pods.ContainerSpec
	sandbox *sandbox
	image   ocispec.ImageConfig
	files   imageFiles
	target  int // process whose pid namespace is joined; 0 = a new one
}

// buildSpec makes the OCI spec. Errors are the caller's mistakes (pods.ErrConfig).
func (e *Engine) buildSpec(ctx context.Context, in specInput) (*oci.Spec, error) {
	s, err := oci.GenerateSpec(ctx, nil, &containers.Container{ID: in.id})
	if err != nil {
		return nil, err
	}
	for _, part := range []func(context.Context, *oci.Spec, specInput) error{
		specProcess, specUser, e.specNamespaces, e.specMounts, specDevices, e.specResources, specSecurity,
	} {
		if err := part(ctx, s, in); err != nil {
			return nil, fmt.Errorf("%w: %w", pods.ErrConfig, err)
		}
	}
	return s, nil
}

// specProcess sets command, environment and folder by the rules of
// https://kubernetes.io/docs/tasks/inject-data-application/define-command-argument-container/
func specProcess(_ context.Context, s *oci.Spec, in specInput) error {
	entrypoint, arguments := in.image.Entrypoint, in.image.Cmd
	if len(in.spec.Command) > 0 {
		entrypoint, arguments = in.spec.Command, in.spec.Args
	} else if len(in.spec.Args) > 0 {
		arguments = in.spec.Args
	}
	s.Process.Args = slices.Concat(entrypoint, arguments)
	if len(s.Process.Args) == 0 {
		return fmt.Errorf("neither the container nor its image says what to run")
	}
	s.Process.Env = environment(in)
	s.Process.Cwd = "/"
	if in.spec.WorkDir != "" {
		s.Process.Cwd = in.spec.WorkDir
	} else if in.image.WorkingDir != "" {
		s.Process.Cwd = in.image.WorkingDir
	}
	if !filepath.IsAbs(s.Process.Cwd) {
		return fmt.Errorf("working directory %q is not absolute", s.Process.Cwd)
	}
	s.Process.Terminal = in.spec.TTY
	s.Process.NoNewPrivileges = in.spec.Security.NoNewPrivileges
	s.Process.Rlimits = nil // the node's own, as with other runtimes
	s.Root.Readonly = in.spec.Security.ReadOnlyRoot
	s.Annotations = map[string]string{shimGroup: in.spec.PodUID}
	return nil
}

// environment lays the container's variables over the image's; a later one
// replaces an earlier one in its place.
func environment(in specInput) []string {
	var env []string
	place := map[string]int{}
	add := func(name, entry string) {
		if i, ok := place[name]; ok {
			env[i] = entry
			return
		}
		place[name] = len(env)
		env = append(env, entry)
	}
	add("PATH", defaultPath)
	if in.spec.TTY {
		add("TERM", "TERM=xterm")
	}
	for _, entry := range in.image.Env {
		name, _, _ := strings.Cut(entry, "=")
		add(name, entry)
	}
	for _, v := range in.spec.Env {
		add(v.Name, v.Name+"="+v.Value)
	}
	return env
}

func (e *Engine) specNamespaces(_ context.Context, s *oci.Spec, in specInput) error {
	list := []specs.LinuxNamespace{{Type: specs.MountNamespace}}
	pin := func(kind specs.LinuxNamespaceType, name string) {
		list = append(list, specs.LinuxNamespace{Type: kind, Path: filepath.Join(in.sandbox.folder, name)})
	}
	if !in.sandbox.HostNetwork {
		pin(specs.NetworkNamespace, pinNet)
		pin(specs.UTSNamespace, pinUTS)
	}
	if !in.sandbox.HostIPC {
		pin(specs.IPCNamespace, pinIPC)
	}
	switch {
	case in.spec.HostPID:
	case in.target != 0:
		list = append(list, specs.LinuxNamespace{Type: specs.PIDNamespace, Path: fmt.Sprintf("/proc/%d/ns/pid", in.target)})
	default:
		list = append(list, specs.LinuxNamespace{Type: specs.PIDNamespace})
	}
	// With v1 the cgroup mount shows the container's own cgroups anyway.
	if e.cgroups.unified && !in.spec.Security.Privileged {
		list = append(list, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	}
	s.Linux.Namespaces = list
	s.Hostname = "" // the uts namespace has it
	return nil
}

func (e *Engine) specMounts(_ context.Context, s *oci.Spec, in specInput) error {
	s.Mounts = slices.DeleteFunc(s.Mounts, func(m specs.Mount) bool {
		return m.Destination == "/run" || m.Destination == "/dev/shm"
	})
	shm := "/dev/shm"
	if !in.sandbox.HostIPC {
		shm = filepath.Join(in.sandbox.folder, "shm")
	}
	mode := "ro"
	if in.spec.Security.Privileged {
		mode = "rw"
		for i := range s.Mounts {
			if s.Mounts[i].Destination == "/sys" {
				s.Mounts[i].Options = []string{"nosuid", "noexec", "nodev", "rw"}
			}
		}
	}
	s.Mounts = append(s.Mounts,
		specs.Mount{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", mode}},
		specs.Mount{Destination: "/dev/shm", Type: "bind", Source: shm, Options: []string{"rbind", "rw", "nosuid", "nodev", "noexec"}},
	)
	for _, m := range in.spec.Mounts {
		mount, err := bindMount(m)
		if err != nil {
			return err
		}
		// The caller's mount replaces a default one at the same place.
		s.Mounts = slices.DeleteFunc(s.Mounts, func(old specs.Mount) bool { return old.Destination == mount.Destination })
		s.Mounts = append(s.Mounts, mount)
		if strings.HasSuffix(mount.Options[1], "shared") || strings.HasSuffix(mount.Options[1], "slave") {
			// Mount events only reach the container when its root takes part.
			s.Linux.RootfsPropagation = mount.Options[1]
		}
	}
	return nil
}

func bindMount(m pods.Mount) (specs.Mount, error) {
	propagation := m.Propagation
	switch propagation {
	case "", "private":
		propagation = "rprivate"
	case "rslave", "rshared":
	default:
		return specs.Mount{}, fmt.Errorf("mount %s: unknown propagation %q", m.ContainerPath, m.Propagation)
	}
	if _, err := os.Stat(m.HostPath); err != nil {
		return specs.Mount{}, fmt.Errorf("mount %s: %w", m.ContainerPath, err)
	}
	mode := "rw"
	switch {
	case m.ReadOnly && m.RecursiveReadOnly:
		mode = "rro"
	case m.ReadOnly:
		mode = "ro"
	}
	return specs.Mount{
		Destination: filepath.Clean(m.ContainerPath),
		Type:        "bind",
		Source:      m.HostPath,
		Options:     []string{"rbind", propagation, mode},
	}, nil
}

func specDevices(ctx context.Context, s *oci.Spec, in specInput) error {
	if in.spec.Security.Privileged {
		if err := oci.WithHostDevices(ctx, nil, nil, s); err != nil {
			return err
		}
		return oci.WithAllDevicesAllowed(ctx, nil, nil, s)
	}
	// The runtime itself adds those that every container has.
	for _, d := range in.spec.Devices {
		if err := oci.WithDevices(d.HostPath, d.ContainerPath, d.Permissions)(ctx, nil, nil, s); err != nil {
			return fmt.Errorf("device %s: %w", d.HostPath, err)
		}
	}
	return nil
}

func (e *Engine) specResources(_ context.Context, s *oci.Spec, in specInput) error {
	s.Linux.CgroupsPath = filepath.Join(in.sandbox.Cgroup, in.id)
	score := max(in.spec.Resources.OOMScoreAdj, e.oomMin)
	s.Process.OOMScoreAdj = &score
	devices := s.Linux.Resources.Devices
	s.Linux.Resources = e.cgroups.resources(in.spec.Resources)
	s.Linux.Resources.Devices = devices
	return nil
}

// resources translates limits into OCI form.
func (t *cgroupTree) resources(r pods.Resources) *specs.LinuxResources {
	cpu, memory := &specs.LinuxCPU{}, &specs.LinuxMemory{}
	if r.CPUShares != 0 {
		cpu.Shares = &r.CPUShares
	}
	if r.CPUQuota != 0 {
		cpu.Quota, cpu.Period = &r.CPUQuota, &r.CPUPeriod
	}
	if r.Memory != 0 {
		memory.Limit = &r.Memory
		if t.swapLimit {
			memory.Swap = &r.Memory // memory and swap together: no swap
		}
	}
	out := &specs.LinuxResources{CPU: cpu, Memory: memory}
	if r.PidsLimit != 0 {
		out.Pids = &specs.LinuxPids{Limit: &r.PidsLimit}
	}
	for _, size := range slices.Sorted(maps.Keys(r.HugePages)) {
		out.HugepageLimits = append(out.HugepageLimits, specs.LinuxHugepageLimit{Pagesize: size, Limit: r.HugePages[size]})
	}
	return out
}

// specSecurity sets capabilities, masks, seccomp, AppArmor and SELinux.
func specSecurity(ctx context.Context, s *oci.Spec, in specInput) error {
	security := in.spec.Security
	if err := capabilities(s, security); err != nil {
		return err
	}
	if security.Privileged || security.UnmaskedProc {
		s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = nil, nil
	}
	if security.SELinux != "" {
		if _, err := os.Stat("/sys/fs/selinux/enforce"); err == nil {
			user := security.SELinuxUser
			if user == "" {
				user = "system_u"
			}
			s.Process.SelinuxLabel = user + ":" + security.SELinux
		}
	}
	if err := appArmor(s, security); err != nil {
		return err
	}
	switch {
	case security.Privileged || security.Seccomp == "unconfined":
		return nil
	case security.Seccomp == "" || security.Seccomp == "runtime/default":
		s.Linux.Seccomp = seccomp.DefaultProfile(s)
		s.Linux.Seccomp.Architectures = seccompArchitectures(s.Linux.Seccomp.Architectures, in.files.code32)
		return nil
	default:
		if err := seccomp.WithProfile(security.Seccomp)(ctx, nil, nil, s); err != nil {
			return fmt.Errorf("seccomp profile %s: %w", security.Seccomp, err)
		}
		return nil
	}
}

// seccompArchitectures drops those of the profile that the image has no programs
// for. libseccomp needs 10 ms for each, which is a third of a bare container's
// start; a program of a missing one is killed (SIGSYS), so nothing gets out by it.
func seccompArchitectures(all []specs.Arch, code32 bool) []specs.Arch {
	return slices.DeleteFunc(slices.Clone(all), func(a specs.Arch) bool {
		switch a {
		case specs.ArchX86, specs.ArchARM:
			return !code32
		case specs.ArchX32: // Linux distributions disable it
			return true
		}
		return false
	})
}

// capabilities adds to and drops from the default set. "ALL" comes first, so
// that dropping all and adding one leaves that one.
func capabilities(s *oci.Spec, security pods.Security) error {
	set := slices.Clone(s.Process.Capabilities.Bounding)
	switch {
	case security.Privileged, containsFold(security.AddCaps, "ALL"):
		// Not all that exist: what this process lacks it cannot give.
		all, err := cap.Current()
		if err != nil {
			return err
		}
		set = all
	}
	if containsFold(security.DropCaps, "ALL") {
		set = nil
	}
	for _, name := range security.AddCaps {
		full := capabilityName(name)
		if full == "CAP_ALL" || slices.Contains(set, full) {
			continue
		}
		if !slices.Contains(cap.Known(), full) {
			return fmt.Errorf("unknown capability %q", name)
		}
		set = append(set, full)
	}
	for _, name := range security.DropCaps {
		full := capabilityName(name)
		set = slices.DeleteFunc(set, func(have string) bool { return have == full })
	}
	s.Process.Capabilities.Bounding = set
	s.Process.Capabilities.Permitted = slices.Clone(set)
	s.Process.Capabilities.Effective = slices.Clone(set)
	return nil
}

func capabilityName(name string) string {
	return "CAP_" + strings.TrimPrefix(strings.ToUpper(name), "CAP_")
}

func containsFold(list []string, name string) bool {
	return slices.ContainsFunc(list, func(have string) bool { return capabilityName(have) == capabilityName(name) })
}
