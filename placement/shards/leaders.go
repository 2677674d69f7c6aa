package shards

import (
	"cmp"
	"slices"
)

// Transfer asks a shard's leader to hand over.
type Transfer struct {
	Shard    uint64
	From, To string
}

// PlanLeaders spreads leaders over the peers that hold voters, in proportion to their weights:
// it hands over wherever the new leader would then still lead less than the old one did. Peers
// that leave, or that should hold nothing, hand over whenever somebody else can lead. Shards whose
// leader is not known, and busy ones, are left alone.
func PlanLeaders(peers []Peer, current []Assignment) []Transfer {
	byID := map[string]Peer{}
	for _, q := range peers {
		byID[q.ID] = q
	}
	led := map[string]int{}
	for _, a := range current {
		if a.Leader != "" {
			led[a.Leader]++
		}
	}
	order := slices.Clone(current)
	slices.SortFunc(order, func(a, b Assignment) int { return cmp.Compare(a.Shard, b.Shard) })
	var transfers []Transfer
	for _, a := range order {
		from, known := byID[a.Leader]
		if a.Busy || !known {
			continue
		}
		to, ok := bestLeader(a, byID, led)
		if !ok {
			continue
		}
		mustGo := from.Leaves || from.Weight <= 0
		if !mustGo && float64(led[to.ID]+1)/to.Weight >= float64(led[from.ID])/from.Weight {
			continue
		}
		led[from.ID]--
		led[to.ID]++
		transfers = append(transfers, Transfer{Shard: a.Shard, From: from.ID, To: to.ID})
	}
	return transfers
}

// bestLeader is the living voter, other than the leader, that leads least for its weight.
func bestLeader(a Assignment, byID map[string]Peer, led map[string]int) (Peer, bool) {
	var best Peer
	found := false
	for _, r := range a.Replicas {
		q, known := byID[r.Peer]
		if !r.Voter || !known || r.Peer == a.Leader || q.Leaves || q.Weight <= 0 || !q.Down.IsZero() {
			continue
		}
		if !found || cmp.Or(
			cmp.Compare(float64(led[q.ID]+1)/q.Weight, float64(led[best.ID]+1)/best.Weight),
			cmp.Compare(q.ID, best.ID),
		) < 0 {
			best, found = q, true
		}
	}
	return best, found
}
