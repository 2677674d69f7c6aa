package model

// The deliberate bugs. Only tests can switch one on (Config.bug has no setter outside of them): they prove that checkers can fail.
const (
	bugClaimKept       = "a claim is never released"
	bugFenceLate       = "fencing comes six seconds late"
	bugEndpointsKept   = "endpoints are not updated when a node is lost"
	bugNoBrake         = "the brake never holds"
	bugNoFencingTime   = "the leader does not wait for fencing"
	bugNoEvictions     = "pods on lost nodes are never evicted"
	bugEverythingFits  = "the node grants every claim, and schedulers see no foreign pods"
	bugUnfenceTooEarly = "a fenced node starts its pods again before it knows what is still its own"
)
