// Package bugs names the deliberate bugs of test builds. Each is one mistake, put in where a careless change would put it, and proves that a
// checker of sim/fleet can fail. In any build without the tag deliberatebugs, On and Often are constants and the compiler leaves the mistakes out.
package bugs

// Bug is one mistake.
type Bug string

// The mistakes.
const (
	AcknowledgeUnknown Bug = "a write whose leader is gone is acknowledged, whatever becomes of it"
	StaleReads         Bug = "a linearizable read is answered from the replica as it is"
	SkipAtBoundary     Bug = "a watch over several shards loses an event where it goes from one to another"
	ForgetEntry        Bug = "a replica leaves an entry of the log out"
	EndlessLease       Bug = "a leader's lease to answer reads by itself does not end"
	RemoveFirst        Bug = "a voter is removed before its replacement has caught up"
	KeepRemoved        Bug = "a removed replica is not deleted"
	KeepClaims         Bug = "a node keeps the room of pods that are gone"
	NoBrake            Bug = "leaders evict from a zone of which most looks lost"
)
