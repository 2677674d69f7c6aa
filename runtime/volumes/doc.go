// Package volumes makes the volumes of pods on a node: empty directories, host paths, content from ConfigMaps, Secrets, the downward API
// and service-account tokens (projected or alone), and local persistent volumes.
//
// Content is replaced atomically: a reader sees all files of one version or all of the next. What comes from Secrets and tokens lies on a
// tmpfs and never on disk. Cleanup never follows a mount: what is mounted below a pod's folder is unmounted first, and as long as
// something stays mounted nothing is deleted.
package volumes
