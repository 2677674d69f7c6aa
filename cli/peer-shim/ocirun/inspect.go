//go:build linux

package ocirun

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runc/libcontainer/capabilities"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/seccomp"
	"github.com/opencontainers/runc/libcontainer/specconv"
	"github.com/opencontainers/runc/libcontainer/utils"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-spec/specs-go/features"
)

// Version is the runc release whose behaviour and library this is.
const Version = "1.5.2"

// state prints a container's OCI state.
func state(r *runtime, args []string) error {
	container, err := r.load(args)
	if err != nil {
		return err
	}
	status, err := container.Status()
	if err != nil {
		return err
	}
	current, err := container.State()
	if err != nil {
		return err
	}
	bundle, annotations := utils.Annotations(current.Config.Labels)
	pid := current.InitProcessPid
	if status.String() == "stopped" {
		pid = 0
	}
	return json.NewEncoder(r.stdout).Encode(specs.State{
		Version:     specs.Version,
		ID:          container.ID(),
		Status:      specs.ContainerState(status.String()),
		Pid:         pid,
		Bundle:      bundle,
		Annotations: annotations,
	})
}

// processes prints the process IDs inside a container as a JSON list.
func processes(r *runtime, args []string) error {
	flags := newFlags("ps")
	format := flags.String("format", "json", "json")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *format != "json" {
		return fmt.Errorf("unknown format %q (json)", *format)
	}
	container, err := r.load(flags.Args())
	if err != nil {
		return err
	}
	pids, err := container.Processes()
	if err != nil {
		return err
	}
	return json.NewEncoder(r.stdout).Encode(pids)
}

func pause(r *runtime, args []string) error {
	container, err := r.load(args)
	if err != nil {
		return err
	}
	return container.Pause()
}

func resume(r *runtime, args []string) error {
	container, err := r.load(args)
	if err != nil {
		return err
	}
	return container.Resume()
}

// update changes a running container's limits to those in --resources (a file
// or "-" for standard input, JSON of the OCI LinuxResources). Fields that are
// absent stay as they are.
func update(r *runtime, args []string) error {
	flags := newFlags("update")
	path := flags.String("resources", "", "file with the OCI resources, - for standard input")
	if err := flags.Parse(args); err != nil {
		return err
	}
	container, err := r.load(flags.Args())
	if err != nil {
		return err
	}
	source := r.stdin
	switch *path {
	case "":
		return errors.New("--resources is missing")
	case "-":
	default:
		file, err := os.Open(*path)
		if err != nil {
			return err
		}
		defer file.Close()
		source = file
	}
	var wanted specs.LinuxResources
	if err := json.NewDecoder(source).Decode(&wanted); err != nil {
		return fmt.Errorf("resources: %w", err)
	}
	config := container.Config()
	merge(config.Cgroups.Resources, &wanted)
	return container.Set(config)
}

// merge writes the set fields of wanted into have.
func merge(have *cgroups.Resources, wanted *specs.LinuxResources) {
	if cpu := wanted.CPU; cpu != nil {
		if cpu.Shares != nil {
			have.CpuShares = *cpu.Shares
			have.CpuWeight = cgroups.ConvertCPUSharesToCgroupV2Value(*cpu.Shares)
		}
		if cpu.Quota != nil {
			have.CpuQuota = *cpu.Quota
		}
		if cpu.Period != nil {
			have.CpuPeriod = *cpu.Period
		}
		if cpu.Cpus != "" {
			have.CpusetCpus = cpu.Cpus
		}
		if cpu.Mems != "" {
			have.CpusetMems = cpu.Mems
		}
	}
	if memory := wanted.Memory; memory != nil {
		if memory.Limit != nil {
			have.Memory = *memory.Limit
		}
		if memory.Reservation != nil {
			have.MemoryReservation = *memory.Reservation
		}
		if memory.Swap != nil {
			have.MemorySwap = *memory.Swap
		}
	}
	if wanted.Pids != nil && wanted.Pids.Limit != nil {
		have.PidsLimit = wanted.Pids.Limit
	}
	if len(wanted.Unified) > 0 {
		have.Unified = wanted.Unified
	}
	// The device rules of a running container never change here.
	have.SkipDevices = true
}

// printFeatures prints what this runtime supports; containerd asks before it
// uses features that an old runtime would silently ignore.
func printFeatures(r *runtime, _ []string) error {
	yes := true
	found := features.Features{
		OCIVersionMin: "1.0.0",
		OCIVersionMax: specs.Version,
		Hooks:         configs.KnownHookNames(),
		MountOptions:  specconv.KnownMountOptions(),
		Linux: &features.Linux{
			Namespaces:      specconv.KnownNamespaces(),
			Capabilities:    capabilities.KnownCapabilities(),
			Cgroup:          &features.Cgroup{V1: &yes, V2: &yes},
			Apparmor:        &features.Apparmor{Enabled: &yes},
			MountExtensions: &features.MountExtensions{IDMap: &features.IDMap{Enabled: &yes}},
		},
	}
	if seccomp.Enabled {
		found.Linux.Seccomp = &features.Seccomp{
			Enabled:   &yes,
			Actions:   seccomp.KnownActions(),
			Operators: seccomp.KnownOperators(),
			Archs:     seccomp.KnownArchs(),
		}
	}
	return json.NewEncoder(r.stdout).Encode(found)
}
