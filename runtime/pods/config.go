package pods

import (
	"context"
	"log/slog"
	"net/netip"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Network connects sandboxes to the pod network. The mesh implements it, and the simulation.
type Network interface {
	// Attach gives the network namespace at netnsPath its interface, address and routes and returns the addresses, the primary
	// one first. It is idempotent: the same pod UID keeps its addresses, also across restarts of the peer.
	Attach(ctx context.Context, pod *corev1.Pod, netnsPath string) ([]netip.Addr, error)
	// Detach takes the interface away and frees the addresses. Unknown UID: nil.
	Detach(ctx context.Context, podUID types.UID) error
	// Existing returns what is attached now, also by a predecessor that was killed.
	Existing(ctx context.Context) (map[types.UID][]netip.Addr, error)
}

// EvictError is an error of Volumes.Prepare that ends the pod: it uses more than it may.
type EvictError struct{ Message string }

func (e *EvictError) Error() string { return e.Message }

// Volumes makes the volumes of pods. runtime/volumes implements it on real files, podstest without any.
type Volumes interface {
	// Prepare makes every volume of the pod, or brings the content of existing ones up to date. again is when it wants to be
	// called next (a token to renew, content to refresh); zero means never. Optional sources may be missing. An *EvictError ends the
	// pod; after any other error it is called again.
	Prepare(ctx context.Context, pod *corev1.Pod) (again time.Time, err error)
	// Mounts returns what one container sees of the pod's volumes. env is its resolved environment (subPathExpr).
	Mounts(ctx context.Context, pod *corev1.Pod, container *corev1.Container, env []EnvVar) ([]Mount, []Device, error)
	// Cleanup unmounts and deletes the pod's volumes; what is behind hostPath and persistent volumes stays. Unknown UID: nil.
	Cleanup(ctx context.Context, podUID types.UID) error
	// Existing returns the UIDs of pods that have volumes here.
	Existing(ctx context.Context) ([]types.UID, error)
}

// Objects reads what pods refer to. A missing object is an error for which apierrors.IsNotFound holds; nil functions answer that
// for everything.
type Objects struct {
	ConfigMap             func(ctx context.Context, namespace, name string) (*corev1.ConfigMap, error)
	Secret                func(ctx context.Context, namespace, name string) (*corev1.Secret, error)
	PersistentVolumeClaim func(ctx context.Context, namespace, name string) (*corev1.PersistentVolumeClaim, error)
	PersistentVolume      func(ctx context.Context, name string) (*corev1.PersistentVolume, error)
	ServiceAccount        func(ctx context.Context, namespace, name string) (*corev1.ServiceAccount, error)
	// Services returns all services of a namespace, for environment variables.
	Services func(ctx context.Context, namespace string) ([]*corev1.Service, error)
	// Token makes a service-account token; spec is already bound to the pod.
	Token func(ctx context.Context, namespace, serviceAccount string, spec authenticationv1.TokenRequestSpec) (*authenticationv1.TokenRequestStatus, error)
}

// DNS is what pods' resolv.conf files are made from.
type DNS struct {
	Nameservers []string // default 169.254.20.10
	Domain      string   // default cluster.local
	HostFile    string   // the node's resolv.conf, for dnsPolicy Default; default /etc/resolv.conf
}

// Reports is how the agent tells the cluster. All functions may block and fail; the agent retries with back-off.
type Reports struct {
	// Status writes a changed status. Write MergeStatus(stored, status) so that conditions of others survive. An error for which
	// apierrors.IsNotFound holds means the pod is gone: the agent stops it.
	Status func(ctx context.Context, pod *corev1.Pod, status corev1.PodStatus) error
	// Deleted is called once nothing of a pod with a deletion timestamp is left on the node: delete the object with grace period 0.
	// pod carries its final status, which nobody will see unless the pod has finalizers; then Status was called with it before.
	// NotFound counts as success.
	Deleted func(ctx context.Context, pod *corev1.Pod) error
	// Event records an event of type corev1.EventTypeNormal or EventTypeWarning. fieldPath is "spec.containers{web}" or "".
	// It must not block.
	Event func(pod *corev1.Pod, fieldPath, eventType, reason, message string)
}

// Config of an Agent.
type Config struct {
	Engine   Engine
	Network  Network
	Volumes  Volumes
	Objects  Objects
	Reports  Reports
	DNS      DNS
	NodeName string
	HostIPs  []netip.Addr // of the node, primary first
	DataDir  string       // the agent's own folder: checkpoints, logs, hosts files
	// Allocatable gives the node's allocatable resources: the default of resourceFieldRef limits, and oom_score_adj.
	Allocatable func() corev1.ResourceList
	// SeccompDir holds Localhost seccomp profiles; default DataDir/seccomp.
	SeccompDir string
	// StartConcurrency bounds how many sandboxes and containers are being made at once; default 8.
	StartConcurrency int
	// PullConcurrency bounds image pulls; default 4.
	PullConcurrency int
	// Dial reaches pods for probes and HTTP hooks; default a net.Dialer. Tests and simulation inject theirs.
	Dial   DialFunc
	Logger *slog.Logger // nil = slog.Default()
}
