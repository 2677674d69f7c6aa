package pods

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// security merges the pod's and the container's security contexts; the container's win. Without a seccomp profile the runtime's default
// applies. It returns an error when runAsNonRoot cannot be kept.
func security(pod *corev1.Pod, c *corev1.Container, image Image, seccompDir string) (Security, error) {
	ps, cs := pod.Spec.SecurityContext, c.SecurityContext
	if ps == nil {
		ps = &corev1.PodSecurityContext{}
	}
	if cs == nil {
		cs = &corev1.SecurityContext{}
	}
	s := Security{
		Privileged:         cs.Privileged != nil && *cs.Privileged,
		User:               first(cs.RunAsUser, ps.RunAsUser),
		Group:              first(cs.RunAsGroup, ps.RunAsGroup),
		SupplementalGroups: append([]int64(nil), ps.SupplementalGroups...),
		StrictSupplemental: ps.SupplementalGroupsPolicy != nil && *ps.SupplementalGroupsPolicy == corev1.SupplementalGroupsPolicyStrict,
		ReadOnlyRoot:       cs.ReadOnlyRootFilesystem != nil && *cs.ReadOnlyRootFilesystem,
		NoNewPrivileges:    cs.AllowPrivilegeEscalation != nil && !*cs.AllowPrivilegeEscalation,
		UnmaskedProc:       cs.ProcMount != nil && *cs.ProcMount == corev1.UnmaskedProcMount,
	}
	if ps.FSGroup != nil {
		s.SupplementalGroups = append(s.SupplementalGroups, *ps.FSGroup)
	}
	if cs.Capabilities != nil {
		s.AddCaps, s.DropCaps = capNames(cs.Capabilities.Add), capNames(cs.Capabilities.Drop)
	}
	s.Seccomp = seccomp(first(cs.SeccompProfile, ps.SeccompProfile), s.Privileged, seccompDir)
	s.AppArmor = appArmor(first(cs.AppArmorProfile, ps.AppArmorProfile), s.Privileged)
	if se := first(cs.SELinuxOptions, ps.SELinuxOptions); se != nil {
		s.SELinuxUser, s.SELinux = se.User, strings.Join([]string{se.Role, se.Type, se.Level}, ":")
	}
	if nonRoot := first(cs.RunAsNonRoot, ps.RunAsNonRoot); nonRoot != nil && *nonRoot {
		if err := checkNonRoot(c.Name, podText(pod), s.User, image.User); err != nil {
			return s, err
		}
	}
	return s, nil
}

// first returns the first pointer that is set.
func first[T any](list ...*T) *T {
	for _, v := range list {
		if v != nil {
			return v
		}
	}
	return nil
}

func capNames(list []corev1.Capability) []string {
	out := make([]string, len(list))
	for i, c := range list {
		out[i] = strings.TrimPrefix(strings.ToUpper(string(c)), "CAP_")
	}
	return out
}

func seccomp(p *corev1.SeccompProfile, privileged bool, dir string) string {
	switch {
	case privileged, p != nil && p.Type == corev1.SeccompProfileTypeUnconfined:
		return "unconfined"
	case p != nil && p.Type == corev1.SeccompProfileTypeLocalhost && p.LocalhostProfile != nil:
		return filepath.Join(dir, filepath.Clean("/"+*p.LocalhostProfile))
	}
	return "runtime/default"
}

func appArmor(p *corev1.AppArmorProfile, privileged bool) string {
	switch {
	case privileged, p != nil && p.Type == corev1.AppArmorProfileTypeUnconfined:
		return "unconfined"
	case p != nil && p.Type == corev1.AppArmorProfileTypeLocalhost && p.LocalhostProfile != nil:
		return *p.LocalhostProfile
	}
	return ""
}

// checkNonRoot refuses a container that would, or might, run as root.
func checkNonRoot(container, pod string, user *int64, imageUser string) error {
	if user != nil {
		if *user == 0 {
			return fmt.Errorf("container's runAsUser breaks non-root policy (pod: %q, container: %s)", pod, container)
		}
		return nil
	}
	name, _, _ := strings.Cut(imageUser, ":")
	if name == "" {
		name = "0"
	}
	id, err := strconv.ParseInt(name, 10, 64)
	switch {
	case err != nil:
		return fmt.Errorf("container has runAsNonRoot and image has non-numeric user (%s), cannot verify user is non-root (pod: %q, container: %s)", name, pod, container)
	case id == 0:
		return fmt.Errorf("container has runAsNonRoot and image will run as root (pod: %q, container: %s)", pod, container)
	}
	return nil
}
