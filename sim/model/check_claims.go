package model

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"shoal/runtime/pods"
)

// claimsCheck looks into the nodes' ledgers: room that is held for a pod which the store has not bound there must come free once the
// grant has expired.
type claimsCheck struct {
	changes  *changes
	suspects map[*node]struct{}        // those that may hold room for nothing
	since    map[heldFor]time.Duration // since when
}

// heldFor is room that a node holds for a pod.
type heldFor struct {
	node string
	pod  types.UID
}

func newClaimsCheck(m *Model) claimsCheck {
	return claimsCheck{changes: m.follow(), suspects: map[*node]struct{}{}, since: map[heldFor]time.Duration{}}
}

// claimsBound allows for the news of a deletion to arrive.
const claimsBound = pods.GrantTTL + 3*time.Second

func (c *claimsCheck) look(m *Model) {
	for n := range c.changes.nodes {
		c.suspects[n] = struct{}{}
	}
	clear(c.changes.nodes)
	before := c.since
	c.since = map[heldFor]time.Duration{}
	for _, n := range slices.SortedFunc(maps.Keys(c.suspects), byIndex) {
		if !n.connected() || n.stale {
			delete(c.suspects, n) // it changes when it is back
			continue
		}
		idle := c.idle(m, n)
		if len(idle) == 0 {
			delete(c.suspects, n)
		}
		for _, claim := range idle {
			key := heldFor{n.name, claim.PodUID}
			at, already := before[key]
			if !already {
				at = m.now
			}
			at = max(at, n.claimed[claim.PodUID]) // asked for once more
			c.since[key] = at
			if m.now-at > claimsBound && m.now-at <= claimsBound+checkEvery {
				m.violate(checkerClaims, "%s holds room for %s/%s, which is not bound there, since %s", n.name, claim.Namespace, claim.Name, at)
			}
		}
	}
}

// idle are the claims for which a node holds room although the store has not bound their pods there.
func (c *claimsCheck) idle(m *Model, n *node) []pods.Claim {
	var idle []pods.Claim
	bound := m.checks.bound[n.name]
	n.ledger.Each(m.time(), func(claim pods.Claim) {
		if bound.get(int(m.shardOf(claim.Namespace).number), claim.PodUID) == nil {
			idle = append(idle, claim)
		}
	})
	slices.SortFunc(idle, func(a, b pods.Claim) int { return cmp.Compare(a.PodUID, b.PodUID) })
	return idle
}
