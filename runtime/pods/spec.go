package pods

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// Log rotation: what a container may keep.
const (
	logMaxBytes = 10 << 20
	logMaxFiles = 5
)

// paths are where the agent keeps what belongs to pods.
type paths struct{ root string }

func (p paths) pods() string          { return filepath.Join(p.root, "pods") }
func (p paths) pod(uid string) string { return filepath.Join(p.root, "pods", uid) }
func (p paths) etc(uid string) string { return filepath.Join(p.pod(uid), "etc") }
func (p paths) logs(pod *corev1.Pod) string {
	return filepath.Join(p.root, "logs", pod.Namespace+"_"+pod.Name+"_"+string(pod.UID))
}

func (p paths) log(pod *corev1.Pod, container string, attempt int) string {
	return filepath.Join(p.logs(pod), container, strconv.Itoa(attempt)+".log")
}

func (p paths) message(uid, container string, attempt int) string {
	return filepath.Join(p.pod(uid), "containers", container, strconv.Itoa(attempt)+".message")
}

// sandboxSpec is what the pod's containers share.
func sandboxSpec(pod *corev1.Pod, dns DNS) SandboxSpec {
	s := SandboxSpec{
		PodUID: string(pod.UID), Namespace: pod.Namespace, Name: pod.Name,
		Hostname:              sandboxHostname(pod, dns.Domain),
		HostNetwork:           pod.Spec.HostNetwork,
		HostIPC:               pod.Spec.HostIPC,
		HostPID:               pod.Spec.HostPID,
		ShareProcessNamespace: pod.Spec.ShareProcessNamespace != nil && *pod.Spec.ShareProcessNamespace,
		CgroupParent:          cgroupParent(pod),
		Resources:             podResources(pod),
		Identity:              NeedsIdentity(pod, anyWriter),
		Labels:                podLabels(pod),
	}
	if sc := pod.Spec.SecurityContext; sc != nil && len(sc.Sysctls) > 0 {
		s.Sysctls = map[string]string{}
		for _, ctl := range sc.Sysctls {
			s.Sysctls[strings.ReplaceAll(ctl.Name, "/", ".")] = ctl.Value
		}
	}
	return s
}

// anyWriter takes every claim for one of a single writer: the peer may be cut off from whoever knows.
func anyWriter(_, _ string) []corev1.PersistentVolumeAccessMode {
	return []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}
}

func podLabels(pod *corev1.Pod) map[string]string {
	return map[string]string{labelPodUID: string(pod.UID), labelPodNamespace: pod.Namespace, labelPodName: pod.Name}
}

// containerSpec builds everything the Engine needs to make one attempt of a container, and the host files it mounts. pod carries its
// addresses in its status. Errors are the user's to mend (CreateContainerConfigError).
func (a *Agent) containerSpec(ctx context.Context, pod *corev1.Pod, c *corev1.Container, attempt int, image Image) (ContainerSpec, error) {
	allocatable := a.cfg.Allocatable()
	env, err := environment(ctx, a.cfg.Objects, pod, c, allocatable)
	if err != nil {
		return ContainerSpec{}, err
	}
	sec, err := security(pod, c, image, a.cfg.SeccompDir)
	if err != nil {
		return ContainerSpec{}, err
	}
	mounts, devices, err := a.cfg.Volumes.Mounts(ctx, pod, c, env)
	if err != nil {
		return ContainerSpec{}, err
	}
	message, err := a.messageFile(pod, c, attempt)
	if err != nil {
		return ContainerSpec{}, err
	}
	if message != "" {
		mounts = append(mounts, Mount{HostPath: message, ContainerPath: c.TerminationMessagePath})
	}
	values := envMap(env)
	spec := ContainerSpec{
		PodUID: string(pod.UID), Namespace: pod.Namespace, PodName: pod.Name, Name: c.Name, Attempt: attempt,
		Image: c.Image, ImageID: image.ID,
		Command: expandAll(c.Command, values), Args: expandAll(c.Args, values), Env: env, WorkDir: c.WorkingDir,
		Stdin: c.Stdin, StdinOnce: c.StdinOnce, TTY: c.TTY,
		Mounts: append(mounts, a.etcMounts(pod, mounts, sec.ReadOnlyRoot)...), Devices: devices,
		Resources: containerResources(pod, c, allocatable), Security: sec,
		HostPID:     pod.Spec.HostPID,
		SharePID:    pod.Spec.ShareProcessNamespace != nil && *pod.Spec.ShareProcessNamespace,
		LogPath:     a.paths.log(pod, c.Name, attempt),
		LogMaxBytes: logMaxBytes, LogMaxFiles: logMaxFiles,
		Labels: podLabels(pod),
	}
	if c.Lifecycle != nil && c.Lifecycle.StopSignal != nil {
		spec.StopSignal = string(*c.Lifecycle.StopSignal)
	}
	spec.Labels[labelContainerName] = c.Name
	spec.Labels[labelMessagePath] = message
	spec.Labels[labelImageName], spec.Labels[labelImageDigest] = imageNames(c.Image, image)
	return spec, nil
}

// imageNames are what a container status shows: the image's name and its digest reference.
func imageNames(ref string, image Image) (name, digest string) {
	name, digest = ref, image.ID
	for _, n := range image.Names {
		if n == ref || strings.HasSuffix(n, "/"+ref) || strings.HasSuffix(n, "/"+ref+":latest") {
			name = n
		}
	}
	if len(image.Digests) > 0 {
		digest = image.Digests[0]
	}
	return name, digest
}

func expandAll(list []string, values map[string]string) []string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = Expand(s, values)
	}
	return out
}

// messageFile makes the file that the container's terminationMessagePath is mounted from. Any user may write it.
func (a *Agent) messageFile(pod *corev1.Pod, c *corev1.Container, attempt int) (string, error) {
	if c.TerminationMessagePath == "" {
		return "", nil
	}
	path := a.paths.message(string(pod.UID), c.Name, attempt)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return "", fmt.Errorf("termination message: %w", err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o666)
	if err != nil {
		return "", fmt.Errorf("termination message: %w", err)
	}
	defer f.Close()
	if err := f.Chmod(0o666); err != nil {
		return "", fmt.Errorf("termination message: %w", err)
	}
	return path, nil
}

// etcMounts are the pod's own files in /etc, where the container mounts nothing of its own.
func (a *Agent) etcMounts(pod *corev1.Pod, have []Mount, readOnly bool) []Mount {
	taken := map[string]bool{}
	for _, m := range have {
		taken[filepath.Clean(m.ContainerPath)] = true
	}
	var out []Mount
	for _, name := range etcFiles {
		if target := "/etc/" + name; !taken[target] {
			out = append(out, Mount{HostPath: filepath.Join(a.paths.etc(string(pod.UID)), name), ContainerPath: target, ReadOnly: readOnly})
		}
	}
	return out
}
