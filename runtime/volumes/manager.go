package volumes

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"shoal/runtime/pods"
)

// refreshEvery is how often content that others may change is compared with its source, when nobody says earlier that it changed.
const refreshEvery = 90 * time.Second

// Config of a Manager.
type Config struct {
	Dir     string // the manager's own folder
	Objects pods.Objects
	// Allocatable is what limits that are not set stand for in downward API files; optional.
	Allocatable func() corev1.ResourceList
	// Provision makes the volume of a claim that is not bound, if this node is to make it, and returns the claim as it is then; optional.
	Provision func(ctx context.Context, claim *corev1.PersistentVolumeClaim) (*corev1.PersistentVolumeClaim, error)
	Logger    *slog.Logger // nil = slog.Default()
}

// Manager makes volumes. It implements pods.Volumes.
type Manager struct {
	cfg Config
	log *slog.Logger

	mu     sync.Mutex
	pods   map[types.UID]map[string]source // by pod and volume name, once prepared
	tokens map[tokenKey]token
}

// source is where a prepared volume is on the host.
type source struct {
	path     string
	readOnly bool // whatever the mount says
	block    bool // a device, not a folder
}

var _ pods.Volumes = (*Manager)(nil)

// New makes the folders and the tmpfs for secret content, unless a predecessor did. It needs CAP_SYS_ADMIN.
func New(cfg Config) (*Manager, error) {
	if cfg.Dir == "" || !filepath.IsAbs(cfg.Dir) {
		return nil, errors.New("volumes: an absolute Dir is needed")
	}
	if cfg.Allocatable == nil {
		cfg.Allocatable = func() corev1.ResourceList { return nil }
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	m := &Manager{cfg: cfg, log: cfg.Logger, pods: map[types.UID]map[string]source{}, tokens: map[tokenKey]token{}}
	for _, dir := range []string{m.diskRoot(), m.memoryRoot()} {
		if err := os.MkdirAll(dir, 0o750); err != nil {
			return nil, fmt.Errorf("volumes: %w", err)
		}
	}
	if err := ensureTmpfs(m.memoryRoot(), "mode=0750"); err != nil {
		return nil, fmt.Errorf("volumes: tmpfs for secrets at %s: %w", m.memoryRoot(), err)
	}
	return m, nil
}

func (m *Manager) diskRoot() string   { return filepath.Join(m.cfg.Dir, "disk") }
func (m *Manager) memoryRoot() string { return filepath.Join(m.cfg.Dir, "memory") }

// podDirs are the folders of a pod, on disk and on tmpfs.
func (m *Manager) podDirs(uid types.UID) []string {
	return []string{filepath.Join(m.diskRoot(), string(uid)), filepath.Join(m.memoryRoot(), string(uid))}
}

func (m *Manager) diskDir(uid types.UID, volume string) string {
	return filepath.Join(m.diskRoot(), string(uid), volume)
}

func (m *Manager) memoryDir(uid types.UID, volume string) string {
	return filepath.Join(m.memoryRoot(), string(uid), volume)
}

// Prepare implements pods.Volumes. An error names the volume, as users know it from the kubelet's FailedMount events.
func (m *Manager) Prepare(ctx context.Context, pod *corev1.Pod) (again time.Time, err error) {
	sources := make(map[string]source, len(pod.Spec.Volumes))
	var failed []error
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		s, next, err := m.prepare(ctx, pod, v)
		var evict *pods.EvictError
		switch {
		case errors.As(err, &evict):
			return time.Time{}, err
		case err != nil:
			failed = append(failed, fmt.Errorf("MountVolume.SetUp failed for volume %q : %w", v.Name, err))
			continue
		}
		sources[v.Name] = s
		if !next.IsZero() && (again.IsZero() || next.Before(again)) {
			again = next
		}
	}
	if err := errors.Join(failed...); err != nil {
		return time.Time{}, err
	}
	m.mu.Lock()
	m.pods[pod.UID] = sources
	m.mu.Unlock()
	return again, nil
}

// prepare makes one volume. next is when it wants to be looked at again; zero for never.
func (m *Manager) prepare(ctx context.Context, pod *corev1.Pod, v *corev1.Volume) (s source, next time.Time, err error) {
	now := time.Now()
	switch {
	case v.EmptyDir != nil:
		return m.emptyDir(pod, v, now)
	case v.HostPath != nil:
		err = checkHostPath(v.HostPath)
		return source{path: v.HostPath.Path}, time.Time{}, err
	case v.ConfigMap != nil, v.Secret != nil, v.DownwardAPI != nil, v.Projected != nil:
		return m.content(ctx, pod, v, now)
	case v.PersistentVolumeClaim != nil:
		s, err = m.claim(ctx, pod, v.PersistentVolumeClaim.ClaimName, v.PersistentVolumeClaim.ReadOnly)
		return s, time.Time{}, err
	case v.Ephemeral != nil:
		s, err = m.claim(ctx, pod, pod.Name+"-"+v.Name, false)
		return s, time.Time{}, err
	}
	return source{}, time.Time{}, errors.New("this kind of volume is not supported on this node")
}

// emptyDir makes a folder on disk or a tmpfs. A folder with a size limit is measured from time to time; above it the pod is evicted.
func (m *Manager) emptyDir(pod *corev1.Pod, v *corev1.Volume, now time.Time) (source, time.Time, error) {
	dir := m.diskDir(pod.UID, v.Name)
	if err := makeDir(dir, 0o777); err != nil {
		return source{}, time.Time{}, err
	}
	s := source{path: dir}
	limit := v.EmptyDir.SizeLimit
	switch v.EmptyDir.Medium {
	case corev1.StorageMediumMemory:
		options := "mode=0777"
		if size := memoryLimit(pod, v); size > 0 {
			options += fmt.Sprintf(",size=%d", size)
		}
		if err := ensureTmpfs(dir, options); err != nil {
			return source{}, time.Time{}, fmt.Errorf("tmpfs: %w", err)
		}
		return s, time.Time{}, setOwnership(pod, dir, false)
	case corev1.StorageMediumDefault:
	default:
		return source{}, time.Time{}, fmt.Errorf("medium %q is not supported on this node", v.EmptyDir.Medium)
	}
	if limit == nil || limit.IsZero() {
		return s, time.Time{}, setOwnership(pod, dir, false)
	}
	used, err := diskUsage(dir)
	if err != nil {
		return source{}, time.Time{}, err
	}
	if used > limit.Value() {
		return source{}, time.Time{}, &pods.EvictError{Message: fmt.Sprintf("Usage of EmptyDir volume %q exceeds the limit %q. ", v.Name, limit.String())}
	}
	return s, now.Add(refreshEvery), setOwnership(pod, dir, false)
}

// memoryLimit is the size of a memory-backed emptyDir: its limit, and no more than the pod's containers may use together.
func memoryLimit(pod *corev1.Pod, v *corev1.Volume) int64 {
	var sum int64
	for i := range pod.Spec.Containers {
		limit := pod.Spec.Containers[i].Resources.Limits.Memory().Value()
		if limit == 0 {
			sum = 0
			break
		}
		sum += limit
	}
	if l := v.EmptyDir.SizeLimit; l != nil && !l.IsZero() && (sum == 0 || l.Value() < sum) {
		return l.Value()
	}
	return sum
}

// Cleanup implements pods.Volumes.
func (m *Manager) Cleanup(_ context.Context, uid types.UID) error {
	if uid == "" || filepath.Base(string(uid)) != string(uid) {
		return fmt.Errorf("volumes: %q is not the UID of a pod", uid)
	}
	m.mu.Lock()
	delete(m.pods, uid)
	for key := range m.tokens {
		if key.pod == uid {
			delete(m.tokens, key)
		}
	}
	m.mu.Unlock()
	var errs []error
	for _, dir := range m.podDirs(uid) {
		errs = append(errs, removeTree(dir))
	}
	return errors.Join(errs...)
}

// Existing implements pods.Volumes.
func (m *Manager) Existing(context.Context) ([]types.UID, error) {
	seen := map[types.UID]bool{}
	var out []types.UID
	for _, root := range []string{m.diskRoot(), m.memoryRoot()} {
		entries, err := os.ReadDir(root)
		if err != nil {
			return nil, fmt.Errorf("volumes: %w", err)
		}
		for _, e := range entries {
			if uid := types.UID(e.Name()); !seen[uid] {
				seen[uid] = true
				out = append(out, uid)
			}
		}
	}
	return out, nil
}

// Usage returns the bytes and inodes of the pod's volumes that lie on this node's disk or memory, by volume name.
func (m *Manager) Usage(pod *corev1.Pod) map[string]pods.FSUsage {
	out := map[string]pods.FSUsage{}
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		dir := m.diskDir(pod.UID, v.Name)
		if v.EmptyDir == nil {
			dir = m.memoryDir(pod.UID, v.Name)
		}
		if bytes, inodes, err := treeUsage(dir); err == nil {
			out[v.Name] = pods.FSUsage{UsedBytes: uint64(bytes), InodesUsed: inodes}
		}
	}
	return out
}

// RemoveAll unmounts everything below a Manager's folder and deletes it: the node leaves for good. No pod may run.
func RemoveAll(dir string) error { return removeTree(dir) }

// makeDir makes a folder with exactly this mode, whatever the umask.
func makeDir(dir string, mode os.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o750); err != nil {
		return err
	}
	if err := os.Mkdir(dir, mode); err != nil {
		if errors.Is(err, os.ErrExist) {
			return nil
		}
		return err
	}
	return os.Chmod(dir, mode)
}
