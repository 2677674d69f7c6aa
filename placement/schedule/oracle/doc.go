// Package oracle compares placement/schedule with kube-scheduler itself: the plugins of its default
// profile (k8s.io/kubernetes v1.37) decide about the same generated clusters, and the answers must
// be the same: which nodes are feasible, every plugin's score on every node, the FailedScheduling
// text, and who would be preempted on which node. It has tests only, in a package of its own,
// because they link a large part of Kubernetes.
//
// What is different on purpose:
//
//   - Every node is looked at; kube-scheduler looks at a part of a large cluster, also for
//     preemption. Among equally good nodes a hash of pod and node decides, not chance.
//   - With several candidates for preemption that upstream cannot tell apart, the same hash decides.
//   - A terminating pod does not count for topology spread when it is thought away for preemption,
//     as it does not count before. Upstream takes it off all the same.
//   - Victims chosen by one call are charged to their disruption budgets at once; upstream charges
//     them when the API server has.
//   - A selector that does not parse makes a pod unschedulable with a reason; upstream fails with an
//     error and tries again.
//   - Pods' resource claims (dynamic resource allocation), volumes of drivers that moved from
//     Kubernetes' own code to CSI, extenders and pod groups are not known.
//   - Of quantities, negative ones count as zero and those beyond 2^53 as 2^53; upstream's wrap around.
package oracle
