// Package controllers runs those of upstream's controllers whose work is neither this project's purpose nor a decision
// about where pods run: garbage collection, the end of namespaces, service accounts, quota, certificates and the like.
//
// They run on one peer at a time, the leader of the meta shard, against that peer's own API through in-process clients.
// Workloads, disruption budgets, endpoints, scheduling and the life of nodes are decided by package placement instead and
// must not run here.
package controllers
