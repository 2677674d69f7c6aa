package model

import "shoal/sim/history"

// CheckerConvergence is the one checker that demands something only if Config.ReadyWithin says so.
const CheckerConvergence = checkerConvergence

// Checkers are all checkers, always on, and what holds where they find nothing.
var Checkers = []struct{ Name, Holds string }{
	{checkerCapacity, "the store never binds more to a node than it can give"},
	{checkerIdentity, "no two containers of one StatefulSet pod run at once, on any machines"},
	{checkerVIP, "no rule leads to a pod that does not answer for longer than the bound"},
	{checkerClaims, "no node holds room for a pod that is not bound to it for longer than the bound"},
	{checkerBrake, "nobody is evicted from a zone of which most looks lost"},
	{checkerReplicas, "copies of a shard are the same bytes at the same entry, and there are never fewer voters than there may be"},
	{checkerFencing, "a machine that is cut off has stopped in time what must not run twice"},
	{checkerRestarts, "no container is ended because a peer or a copy of a shard failed"},
	{checkerState, "at the end nothing was made twice and nothing is left over"},
	{checkerOperators, "users' operators that crash between two writes, miss events or read what is old end like one that nothing disturbs"},
	{checkerClock, "no revision is far ahead of time"},
	{checkerCalm, "nobody fights over whether a node is ready"},
	{checkerRevisions, "no client sees a revision go back"},
	{history.CheckLinearizable, "the operations on each object have one order that agrees with real time"},
	{history.CheckDurable, "what was acknowledged is there at the end"},
	{history.CheckReads, "lists show one moment, and not an old one where a fresh one was asked for"},
	{history.CheckAtomic, "a transaction is seen whole or not at all"},
	{history.CheckMonotonic, "no reader is shown an older state after a newer one"},
	{history.CheckOrdered, "a watch tells events in the order of their revisions"},
	{history.CheckUnique, "a watch tells no event twice"},
	{history.CheckReliable, "a watch leaves out no event"},
	{history.CheckResumable, "a watch that resumes goes on where it ended"},
	{history.CheckBookmarkable, "a bookmark names a revision up to which everything was told"},
	{history.CheckUndecided, "every history can be judged"},
	{checkerConvergence, "after the last fault, within the stated time, everything is as desired"},
}
