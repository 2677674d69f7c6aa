package pods

import (
	"context"
	"errors"
	"io"
	"net"
	"time"
)

// Errors of an Engine. Callers test with errors.Is; the text wrapped around them is shown to users in container statuses and events.
var (
	// ErrNotFound: no sandbox, container or process of that identity exists (any more).
	ErrNotFound = errors.New("not found")
	// ErrImageNotFound: the image is not on this node.
	ErrImageNotFound = errors.New("image not found")
	// ErrImageInvalid: the reference cannot be parsed. Trying again is of no use.
	ErrImageInvalid = errors.New("invalid image reference")
	// ErrImagePull: the registry refused, does not have the image, cannot be reached, or sent something broken.
	ErrImagePull = errors.New("image pull failed")
	// ErrConfig: the container cannot be made as asked (unknown user, missing seccomp profile, …). The kubelet's CreateContainerError.
	ErrConfig = errors.New("container cannot be created as asked")
	// ErrStart: the container was made and its process did not start (no such file, permission). The kubelet's RunContainerError; the
	// container is left exited with code 127 or 128 so that it can be seen.
	ErrStart = errors.New("container did not start")
	// ErrNotRunning: exec, attach or dial into something that does not run.
	ErrNotRunning = errors.New("not running")
	// ErrUnavailable: the runtime itself does not answer (being restarted). Try again.
	ErrUnavailable = errors.New("container runtime unavailable")
)

// Engine is what a node needs from a container runtime: one of the four seams to the kernel. It has two implementations: containerd
// (runtime/containerd) and a modelled one for simulation and tests.
//
// Every verb is idempotent: asked for what already is, it returns what is. Verbs on different pods and on different containers of one
// pod may be called concurrently; the agent never has two verbs on one container at a time (streams and stats aside), with one
// exception: Kill may come while Stop waits, and then ends it. An Engine owns no policy: it never restarts,
// pulls, deletes or kills anything by itself. What it made survives its own restart and that of its caller (List finds it).
type Engine interface {
	Sandboxes
	Containers
	Images
	Streams

	// Events delivers what happened to containers. The channel is created once, has one reader, and is never closed. An Engine that
	// may have missed something (it was restarted, or the reader was slow) sends EventResync instead of guessing.
	Events() <-chan Event
	// List returns everything this Engine made and did not remove, exited containers included, whoever made it (also a
	// predecessor that was killed). Exit codes of containers that ended while nobody looked must be right.
	List(ctx context.Context) (Inventory, error)
	// Stats returns present usage of every running container and of every pod's cgroup.
	Stats(ctx context.Context) ([]PodStats, error)
	// Info returns name and version of the runtime and the file system of images and writable layers. ErrUnavailable when the
	// runtime does not answer: the node is then not ready.
	Info(ctx context.Context) (Info, error)
	// MemoryRoom returns how much memory the cgroups around the pods let them have. It asks the kernel, not the runtime.
	MemoryRoom() (MemoryRoom, error)
}

// Sandboxes makes and removes what the containers of a pod share.
type Sandboxes interface {
	// CreateSandbox makes pinned net, ipc and uts namespaces, the pod's cgroup and its shared /dev/shm (64 MiB tmpfs). With the same
	// UID again it returns the existing sandbox. Loopback is up in a new network namespace; everything else there is the mesh's.
	CreateSandbox(ctx context.Context, spec SandboxSpec) (Sandbox, error)
	// RemoveSandbox kills what still runs in the pod, removes its containers, namespaces and cgroups. Unknown UID: nil.
	RemoveSandbox(ctx context.Context, podUID string) error
}

// Containers makes, starts, ends and removes containers.
type Containers interface {
	// Create makes a container that is not running. Its identity is (pod UID, container name, attempt): the same again returns the
	// existing one, in whatever state it is. ErrImageNotFound, ErrConfig, ErrNotFound (no sandbox), ErrUnavailable.
	Create(ctx context.Context, spec ContainerSpec) (ContainerState, error)
	// Start runs it and returns with the process running (StartedAt, PID). Running or exited already: returns that. ErrStart, ErrNotFound.
	Start(ctx context.Context, id string) (ContainerState, error)
	// Stop sends the container's stop signal (spec, then image, then SIGTERM), waits up to grace, then SIGKILLs everything in the
	// container. It returns the exited state, or ctx's error without having killed. Exited already: returns that. A created
	// container that never ran becomes exited with code 137. ErrNotFound.
	Stop(ctx context.Context, id string, grace time.Duration) (ContainerState, error)
	// Kill is Stop with no grace.
	Kill(ctx context.Context, id string) (ContainerState, error)
	// Remove deletes an exited or created container and its writable layer; a running one is killed first. Unknown ID: nil.
	// The log file is the caller's.
	Remove(ctx context.Context, id string) error
	// Update changes cpu and memory limits of a running container in place. ErrNotFound, ErrConfig (the kernel refused).
	Update(ctx context.Context, id string, resources Resources) error
}

// Images holds the node's images.
type Images interface {
	// Image finds a local image by any reference users may write ("nginx", "nginx:1.27", "host/x@sha256:…") or by ID. Never the
	// network. ErrImageNotFound, ErrImageInvalid.
	Image(ctx context.Context, ref string) (Image, error)
	// Pull fetches an image, layers that are there already excepted, and unpacks it. Each of auth is tried in order, then none.
	// progress may be nil; it is called at most once a second. Concurrent pulls of one reference share one transfer.
	// ErrImageInvalid, ErrImagePull, ErrUnavailable.
	Pull(ctx context.Context, ref string, auth []Auth, progress func(Progress)) (Image, error)
	// Import loads a tarball (OCI layout or docker save, plain or gzip) and returns the images in it, unpacked.
	Import(ctx context.Context, tarball io.Reader) ([]Image, error)
	// ListImages returns all local images.
	ListImages(ctx context.Context) ([]Image, error)
	// RemoveImage removes every name of an image; content goes with garbage collection. Unknown: nil.
	RemoveImage(ctx context.Context, ref string) error
}

// Streams reaches into what runs.
type Streams interface {
	// Exec runs a command in a running container, with the container's own user, env and cwd, and returns its exit code. When ctx
	// ends the process is killed. ErrNotFound, ErrNotRunning, ErrStart (no such command).
	Exec(ctx context.Context, id string, command []string, stdio Stdio) (exitCode int, err error)
	// Attach joins the main process's streams until it ends or ctx does; output from before is not repeated. Ending it leaves the
	// container alone, but a container with StdinOnce gets end-of-file when the first attached stdin ends.
	Attach(ctx context.Context, id string, stdio Stdio) error
	// DialPod connects to address ("127.0.0.1:80") with the sandbox's network namespace as the source. It serves port-forward.
	DialPod(ctx context.Context, podUID, network, address string) (net.Conn, error)
}

// SandboxSpec is what a pod's containers share.
type SandboxSpec struct {
	PodUID, Namespace, Name string
	Hostname                string            // uts name; ignored with HostNetwork
	HostNetwork             bool              // the peer's own network and uts namespace; Sandbox.NetNS is then empty
	HostIPC, HostPID        bool              //
	ShareProcessNamespace   bool              // one pid namespace for all containers: needs a pause process
	Sysctls                 map[string]string // "net.ipv4.ip_local_port_range" → value, set in the namespaces
	CgroupParent            string            // below the Engine's own root, e.g. "burstable/pod<UID>"
	Resources               Resources         // limits of the whole pod; zero values mean none
	Identity                bool              // must never run twice: fenced when the peer falls silent
	Labels                  map[string]string // kept, returned by List
}

// Sandbox is a made SandboxSpec.
type Sandbox struct {
	PodUID, Namespace, Name string
	NetNS                   string // path of the pinned network namespace; empty with HostNetwork
	Labels                  map[string]string
	CreatedAt               time.Time
}

// ContainerSpec is everything the OCI spec of one container is made from. What it leaves empty comes from the image.
type ContainerSpec struct {
	PodUID, Namespace, PodName string
	Name                       string
	Attempt                    int // 0 for the first; each restart is a new container with the next number

	Image   string   // as the user wrote it
	ImageID string   // Image.ID to run; wins over Image
	Command []string // replaces the image's entrypoint, and drops its arguments when Args is empty
	Args    []string // replaces the image's arguments
	Env     []EnvVar // on top of the image's, in order, later wins
	WorkDir string   // "" = the image's

	Stdin, StdinOnce, TTY bool
	StopSignal            string // "SIGUSR1"; "" = the image's, then SIGTERM

	Mounts    []Mount
	Devices   []Device
	Resources Resources
	Security  Security

	HostPID           bool   // the node's pid namespace
	SharePID          bool   // the sandbox's pid namespace (ShareProcessNamespace)
	TargetContainerID string // join this container's pid namespace (ephemeral containers)

	// LogPath is the absolute path of the log, in CRI format ("2006-01-02T15:04:05.999999999Z stdout F text"). The writer appends,
	// makes the folder, and rotates: above LogMaxBytes path.N-1 → path.N, …, path → path.1, at most LogMaxFiles files in all.
	LogPath     string
	LogMaxBytes int64
	LogMaxFiles int

	Labels map[string]string // kept, returned by List and in every ContainerState
}

// EnvVar is one environment variable, already expanded.
type EnvVar struct{ Name, Value string }

// Mount binds a host path into a container.
type Mount struct {
	HostPath, ContainerPath string
	ReadOnly                bool
	RecursiveReadOnly       bool   // read-only below too
	Propagation             string // "" or "private", "rslave", "rshared"
}

// Device gives a host device to a container.
type Device struct {
	HostPath, ContainerPath string
	Permissions             string // "rwm"
}

// Resources are cgroup figures. Zero means not set.
type Resources struct {
	CPUShares   uint64 // cgroup v1 scale, 2 … 262144
	CPUQuota    int64  // µs in each CPUPeriod
	CPUPeriod   uint64 // µs
	Memory      int64  // bytes, limit
	PidsLimit   int64
	OOMScoreAdj int // -1000 … 1000; the Engine raises it to what the process may set
	HugePages   map[string]uint64
}

// Security is the merged security context of pod and container.
type Security struct {
	Privileged           bool
	User, Group          *int64 // nil = the image's user, and its group
	SupplementalGroups   []int64
	StrictSupplemental   bool // do not add the groups that the image's /etc/group gives the user
	ReadOnlyRoot         bool
	NoNewPrivileges      bool
	AddCaps, DropCaps    []string // "NET_ADMIN", without CAP_; "ALL"
	Seccomp              string   // "" or "runtime/default", "unconfined", or an absolute path of a profile
	AppArmor             string   // "" (the runtime's default when the kernel has it), "unconfined" or a loaded profile's name
	UnmaskedProc         bool     // procMount: Unmasked
	SELinuxUser, SELinux string   // user; "role:type:level"; passed through when the kernel has SELinux
}

// Status of a container.
type Status string

// What a container can be.
const (
	StatusCreated Status = "created"
	StatusRunning Status = "running"
	StatusExited  Status = "exited"
)

// ContainerState is a container as it is now.
type ContainerState struct {
	ID                    string // without the "containerd://"
	PodUID, Name          string
	Attempt               int
	Labels                map[string]string
	Image, ImageID        string // reference as written; ID that runs
	Status                Status
	PID                   int       // on the host; 0 unless running
	CreatedAt             time.Time //
	StartedAt, FinishedAt time.Time // zero when it did not happen; a start that failed has both equal
	ExitCode              int       // 128 + n for signal n; 255 when nobody knows (the host was restarted)
	OOMKilled             bool
	Message               string // why the start failed
	LogPath               string
}

// Inventory is the Engine's whole state.
type Inventory struct {
	Sandboxes  []Sandbox
	Containers []ContainerState
}

// EventKind tells what an Event is about.
type EventKind string

// What an Engine reports without being asked.
const (
	EventExited EventKind = "exited" // a container's main process ended; State is complete (code, time, OOMKilled)
	EventResync EventKind = "resync" // something may have been missed: List again
)

// Event is one thing that happened.
type Event struct {
	Kind  EventKind
	State ContainerState // for EventExited
}

// Image is a local image.
type Image struct {
	ID      string   // "sha256:…" of its config
	Names   []string // "docker.io/library/nginx:1.27"
	Digests []string // "docker.io/library/nginx@sha256:…"
	Size    int64    // bytes of its compressed layers, configs and manifests
	User    string   // as in the image config: "", "0", "app", "1000:1000"
}

// Auth is one registry credential.
type Auth struct{ Username, Password, IdentityToken, RegistryToken string }

// Progress of a pull.
type Progress struct{ DoneBytes, TotalBytes int64 }

// Size of a terminal in characters.
type Size struct{ Width, Height uint16 }

// Stdio are the streams of exec and attach. Nil ones are not wanted. With TTY, Err is unused and Resize may send sizes.
type Stdio struct {
	In       io.Reader
	Out, Err io.Writer
	TTY      bool
	Resize   <-chan Size
}

// PodStats is the usage of one pod: its cgroup's and its containers'.
type PodStats struct {
	PodUID     string
	Usage      Usage
	Containers []ContainerStats
}

// ContainerStats is the usage of one running container.
type ContainerStats struct {
	ID, Name string
	Usage    Usage
	RootFS   FSUsage // writable layer
}

// Usage is cpu and memory at a moment.
type Usage struct {
	At               time.Time
	CPUNanos         uint64 // consumed since start, nanoseconds of cpu time
	MemoryBytes      uint64 // all charged memory
	WorkingSetBytes  uint64 // MemoryBytes less inactive file cache
	RSSBytes         uint64
	PageFaults       uint64
	MajorPageFaults  uint64
	Processes        uint64
	MemoryLimitBytes uint64 // 0 = none
}

// FSUsage is disk use in bytes and inodes.
type FSUsage struct{ UsedBytes, InodesUsed uint64 }

// MemoryRoom is what cgroups around all pods leave them of the machine's memory, in bytes.
type MemoryRoom struct {
	Limit     uint64 // the smallest limit; 0 = none
	Available uint64 // what can still be used before the first limit is reached; only with a Limit
}

// Info describes the runtime.
type Info struct {
	Name, Version string // "containerd", "2.4.2"
	ImageRoot     string // folder of images and writable layers, for statfs
	ImageBytes    uint64 // used by images
}
