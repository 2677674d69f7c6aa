// Package containerd is the pods.Engine on a host: sandboxes, containers,
// images and streams through containerd.
//
// # What is kept where
//
// The content and snapshots of images and containers are containerd's. Beside
// it, in Config.StateDir, lie small files that say what containerd forgets or
// never knew: per sandbox its namespaces (bind-mounted files) and /dev/shm, per
// container what it was made from, when it started and how it ended. They are
// lost at a reboot, as the containers are.
//
// # Who survives whom
//
// Containers are children of a shim, one for each pod, which the engine starts
// with the sandbox. Neither the peer's nor containerd's death ends a container:
// Open finds both again, and the shim records the exits that nobody saw.
//
// Pods that must never run twice (SandboxSpec.Identity) are the exception: when
// the peer, as it tells by Renewed, has lost its lease or died, the daemon kills
// their processes. Package fence says how, and what that does not cover.
//
// The daemon (StartDaemon) and the shim are programs of their own, see
// runtime/containerd/shimbin and runtime/containerd/daemon.
package containerd
