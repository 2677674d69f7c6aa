package model

import (
	"slices"
	"strings"
	"time"

	"shoal/runtime/pods"
)

// claimsCheck looks into the nodes' ledgers: room that is held for a pod which the store has not bound there must come free once the
// grant has expired.
type claimsCheck struct {
	since map[string]time.Duration // by node and pod: since when room is held for nothing
}

// claimsBound allows for the news of a deletion to arrive.
const claimsBound = pods.GrantTTL + 3*time.Second

func (c *claimsCheck) look(m *Model) {
	before := c.since
	c.since = map[string]time.Duration{}
	for _, n := range m.nodes {
		if !n.up || n.frozen || n.side != 0 || n.stale {
			continue
		}
		held := n.ledger.Held(m.time())
		slices.SortFunc(held, func(a, b pods.Claim) int { return strings.Compare(string(a.PodUID), string(b.PodUID)) })
		for _, claim := range held {
			if m.checks.bound[n.name][claim.PodUID] != nil {
				continue
			}
			key := n.name + " " + string(claim.PodUID)
			at, already := before[key]
			if !already {
				at = m.now
			}
			c.since[key] = at
			if m.now-at > claimsBound && m.now-at <= claimsBound+checkEvery {
				m.violate(checkerClaims, "%s holds room for %s/%s, which is not bound there, since %s", n.name, claim.Namespace, claim.Name, at)
			}
		}
	}
}
