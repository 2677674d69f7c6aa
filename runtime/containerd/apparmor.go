//go:build linux

package containerd

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/contrib/apparmor"
	hostapparmor "github.com/containerd/containerd/v2/pkg/apparmor"
	"github.com/containerd/containerd/v2/pkg/oci"

	"shoal/runtime/pods"
)

// defaultAppArmor is the profile of containers that name none.
const defaultAppArmor = "shoal-default"

// appArmor confines the process where the kernel can. A kernel without AppArmor
// refuses only those who ask for a certain profile.
func appArmor(s *oci.Spec, security pods.Security) error {
	wanted := security.AppArmor
	if security.Privileged || wanted == "unconfined" {
		return nil
	}
	if !hostapparmor.HostSupports() {
		if wanted != "" && wanted != "runtime/default" {
			return fmt.Errorf("AppArmor profile %q: the kernel has no AppArmor", wanted)
		}
		return nil
	}
	if wanted == "" || wanted == "runtime/default" {
		if err := apparmor.LoadDefaultProfile(defaultAppArmor); err != nil {
			return fmt.Errorf("default AppArmor profile: %w", err)
		}
		wanted = defaultAppArmor
	}
	loaded, err := os.ReadFile("/sys/kernel/security/apparmor/profiles")
	if err != nil {
		return fmt.Errorf("AppArmor: %w", err)
	}
	if !slices.ContainsFunc(strings.Split(string(loaded), "\n"), func(line string) bool { return strings.HasPrefix(line, wanted+" (") }) {
		return fmt.Errorf("AppArmor profile %q is not loaded", wanted)
	}
	s.Process.ApparmorProfile = wanted
	return nil
}
