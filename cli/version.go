package cli

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"
)

// version is set by the linker: -X shoal/cli.version=…
var version = "dev"

// Version is the version of this program.
func Version() string { return version }

// kubernetesVersion is the release whose API and kubectl are carried along:
// the staging module v0.37.2 belongs to v1.37.2.
func kubernetesVersion() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	for _, module := range info.Deps {
		if module.Path != "k8s.io/kubectl" {
			continue
		}
		if module.Replace != nil {
			module = module.Replace
		}
		return "v1" + strings.TrimPrefix(module.Version, "v0")
	}
	return "unknown"
}

type versionCommand struct {
	Short bool `help:"Only the version of this program."`
}

// Run prints the versions; it asks no peer.
func (v *versionCommand) Run(std streams) error {
	if v.Short {
		_, err := fmt.Fprintln(std.out, version)
		return err
	}
	_, err := fmt.Fprintf(std.out, "shoal %s (Kubernetes %s, %s, %s/%s)\n", version, kubernetesVersion(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
	return err
}
