package model

// CheckerConvergence is the one checker that demands something only if Config.ReadyWithin says so.
const CheckerConvergence = checkerConvergence

// Checkers are all checkers, always on, and what holds where they find nothing.
var Checkers = []struct{ Name, Holds string }{
	{checkerCapacity, "the store never binds more to a node than it can give"},
	{checkerIdentity, "no two containers of one StatefulSet pod run at once, on any machines"},
	{checkerVIP, "no rule leads to a pod that does not answer for longer than the bound"},
	{checkerClaims, "no node holds room for a pod that is not bound to it for longer than the bound"},
	{checkerBrake, "nobody is evicted from a zone of which most looks lost"},
	{checkerConvergence, "after the last fault, within the stated time, everything is as desired"},
}
