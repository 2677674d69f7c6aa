// Package pods is what a node does with the pods bound to it.
//
// The deciding half is pure: Plan takes a pod and what is actually there and returns actions, the status to report and the time to look
// again; Admit takes what a node runs and has granted and answers claims. The doing half is the Agent, which executes plans against an
// Engine with one worker per pod.
package pods
