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
	bugFenceSecondLate = "fencing comes one second late"
	bugCommitAlone     = "a leader acknowledges writes that only it has"
	bugTwoVotes        = "a voter votes twice in one term, and for those who lack entries"
	bugStaleRead       = "a read is served as fresh without asking whether the leader still leads"
	bugHastyRepair     = "a replica is removed before its replacement has caught up"
	bugReplicaDrifts   = "one replica applies entries differently"
	bugOldRevision     = "a read shows an older state than the revision that it was asked for"
	bugEventSkipped    = "events are skipped when a watch moves to another copy"
	bugBoundarySkipped = "a watch of several shards loses events where it goes from one to another"
	bugNoOneMoment     = "a list of several shards shows each as it is now, not at one revision"
	bugBrokenLease     = "a node that counts as lost believes that it has renewed its lease"
	bugRestartKills    = "a peer that starts again ends what ran before"
	bugReadyUnheard    = "a node calls itself ready although its lease is not renewed"
	bugEvictUnread     = "a leader evicts from a node without reading whether it is still lost"
	bugActsOnEvents    = "an operator acts on what events tell it, not on what is there"
	bugAnyClock        = "a peer whose clock is far off stamps revisions"
)
