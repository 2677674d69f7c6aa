// Package lab runs a whole cluster on one machine, for a look, for benchmarks and for tests that need real peers.
//
// Every peer is its own process in its own network namespace, with its own data folder, containerd and cgroups. The underlay that
// joins the namespaces is a bridge in a namespace of its own, so the host's network is never touched: the only way in from the host is
// a forwarder that dials from inside a namespace. Whatever a lab made, Close removes: processes, mounts, cgroups, namespaces, files.
package lab
