package shards

import (
	"cmp"
	"slices"
	"time"
)

// Transfer asks a shard's leader to hand over.
type Transfer struct {
	Shard    uint64
	From, To string
}

// calmAfterLoss is for how long leaders stay where they are after a peer was lost. A new leader waits anew before it gives up the lost
// peer's pods, so evening out at that time would make their outage half as long again.
const calmAfterLoss = 20 * time.Second

// Leaders is what whoever evens leaders out remembers of the look before.
type Leaders struct{ wished []Transfer }

// Due are the transfers of PlanLeaders for which it is time: at once those from peers that should lead nothing, the others if they were
// wished for at the look before, too. What leads a moment after a peer was lost, and before anybody knows, is not evened out.
func (l *Leaders) Due(peers []Peer, current []Assignment, now time.Time) []Transfer {
	leaves := map[string]bool{}
	for _, p := range peers {
		leaves[p.ID] = p.Leaves
	}
	before := l.wished
	l.wished = PlanLeaders(peers, current, now)
	return slices.DeleteFunc(slices.Clone(l.wished), func(t Transfer) bool { return !leaves[t.From] && !slices.Contains(before, t) })
}

// PlanLeaders spreads leaders over the peers that hold voters, as evenly for their weights as the
// voters allow. Where a peer leads too many and none of its shards' voters is on a peer that leads
// too few, others pass one on in between. Peers that leave, or that should lead nothing, hand over
// whenever somebody else can lead, all others stay as they are for a while after a peer was lost. Shards whose leader is not known, and
// busy ones, are left alone.
func PlanLeaders(peers []Peer, current []Assignment, now time.Time) []Transfer {
	p := leaderPlanner{peers: map[string]Peer{}, led: map[string]int{}}
	calm := true
	for _, q := range peers {
		p.peers[q.ID] = q
		calm = calm && (q.Down.IsZero() || now.Sub(q.Down) >= calmAfterLoss)
	}
	for _, a := range current {
		if a.Leader != "" {
			p.led[a.Leader]++
		}
		if _, known := p.peers[a.Leader]; known && !a.Busy {
			p.shards = append(p.shards, a)
		}
	}
	slices.SortFunc(p.shards, func(a, b Assignment) int { return cmp.Compare(a.Shard, b.Shard) })
	first := slices.Clone(p.shards)
	p.vacate()
	for calm && p.shift() { // each turn makes the spread better by one, so it ends
	}
	var transfers []Transfer
	for i, a := range p.shards {
		if from := first[i].Leader; from != a.Leader {
			transfers = append(transfers, Transfer{Shard: a.Shard, From: from, To: a.Leader})
		}
	}
	return transfers
}

type leaderPlanner struct {
	peers  map[string]Peer
	shards []Assignment // with the leaders as planned so far
	led    map[string]int
}

// fit tells whether a peer may come to lead.
func (p *leaderPlanner) fit(id string) bool {
	q, known := p.peers[id]
	return known && !q.Leaves && q.Weight > 0 && q.Down.IsZero()
}

// after is what a peer leads for its weight, with n more.
func (p *leaderPlanner) after(id string, n int) float64 {
	return float64(p.led[id]+n) / p.peers[id].Weight
}

func (p *leaderPlanner) move(shard int, to string) {
	p.led[p.shards[shard].Leader]--
	p.led[to]++
	p.shards[shard].Leader = to
}

// vacate takes every shard from leaders that should lead nothing.
func (p *leaderPlanner) vacate() {
	for i, a := range p.shards {
		if q := p.peers[a.Leader]; !q.Leaves && q.Weight > 0 {
			continue
		}
		best := ""
		for _, r := range a.Replicas {
			if r.Voter && r.Peer != a.Leader && p.fit(r.Peer) && (best == "" || p.less(r.Peer, best)) {
				best = r.Peer
			}
		}
		if best != "" {
			p.move(i, best)
		}
	}
}

// less orders peers by what they would lead with one more.
func (p *leaderPlanner) less(a, b string) bool {
	return cmp.Or(cmp.Compare(p.after(a, 1), p.after(b, 1)), cmp.Compare(a, b)) < 0
}

// shift makes one peer lead one less and another one more, if there are two for whom that is
// better: the shortest path over shards that the one leads and the next votes in.
func (p *leaderPlanner) shift() bool {
	var starts []string
	for id := range p.led {
		if p.fit(id) && p.led[id] > 0 {
			starts = append(starts, id)
		}
	}
	slices.SortFunc(starts, func(a, b string) int {
		return cmp.Or(-cmp.Compare(p.after(a, 0), p.after(b, 0)), cmp.Compare(a, b))
	})
	for _, start := range starts {
		if p.shiftFrom(start) {
			return true
		}
	}
	return false
}

// hop is how a peer was reached: by taking over this shard.
type hop struct {
	shard int
	from  string
}

// shiftFrom searches breadth first, and of the nearest peers that gain takes the one that leads least.
func (p *leaderPlanner) shiftFrom(start string) bool {
	reached := map[string]hop{start: {}}
	for layer := []string{start}; len(layer) > 0; {
		var next []string
		for _, from := range layer {
			for i, a := range p.shards {
				if a.Leader != from {
					continue
				}
				for _, r := range a.Replicas {
					if _, known := reached[r.Peer]; r.Voter && !known && p.fit(r.Peer) {
						reached[r.Peer] = hop{i, from}
						next = append(next, r.Peer)
					}
				}
			}
		}
		slices.SortFunc(next, func(a, b string) int {
			return cmp.Or(cmp.Compare(p.after(a, 1), p.after(b, 1)), cmp.Compare(a, b))
		})
		if len(next) > 0 && p.after(next[0], 1) < p.after(start, 0)-1e-9 {
			for at := next[0]; at != start; {
				h := reached[at]
				p.move(h.shard, at)
				at = h.from
			}
			return true
		}
		layer = next
	}
	return false
}
