package consensus

import (
	"container/heap"
	"fmt"
	"math/bits"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/lni/dragonboat/v4/raftpb"
)

// TestNobodyIsElectedWithinALease: a raft of five replicas that calls elections whenever it likes, with messages that are late, lost and
// doubled, restarts, replicas that are cut off, changes of members, leaders that hand over, and clocks that show anything and run by up to a tenth at another rate.
// Whoever becomes the leader must find that no lease of another holds, and who has one knows of all that is committed.
func TestNobodyIsElectedWithinALease(t *testing.T) {
	var sum tally
	for seed := range uint64(3000) {
		got, broken := adversary{}.play(seed)
		if broken != "" {
			t.Fatalf("seed %d: %s", seed, broken)
		}
		sum.add(got)
	}
	t.Logf("%+v", sum)
	if sum.Elections < 20000 || sum.Leases < 5000 || sum.HandedOver < 10000 || sum.Regrouped < 3000 {
		t.Errorf("too little of what could break it has happened: %+v", sum)
	}
}

// TestEveryRuleOfALeaseIsNeeded leaves one rule out at a time: the test above must then fail.
func TestEveryRuleOfALeaseIsNeeded(t *testing.T) {
	for what, a := range map[string]adversary{
		"who has heard a leader lets no call for an election in":    {deaf: true},
		"nor one of its own out":                                    {loud: true},
		"nor after a start":                                         {forgetful: true},
		"handing over ends the lease":                               {keepsHandingOver: true},
		"a lease is counted from the question, not from the answer": {fromAnswer: true},
		"a read shows what others were told to be committed":        {untold: true},
		"clocks run by a tenth at another rate at most":             {rates: 0.5},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			for seed := range uint64(4000) {
				if _, broken := a.play(seed); broken != "" {
					t.Logf("seed %d: %s", seed, broken)
					return
				}
			}
			t.Error("nobody was elected within a lease without this rule: either it is not needed, or the test finds nothing")
		})
	}
}

// tally says what has happened.
type tally struct{ Elections, Leases, HandedOver, Regrouped int }

func (t *tally) add(o tally) {
	t.Elections += o.Elections
	t.Leases += o.Leases
	t.HandedOver += o.HandedOver
	t.Regrouped += o.Regrouped
}

// adversary is a raft that keeps to raft's rules and to nothing else, and to the rules of leases but for those that it leaves out.
type adversary struct {
	deaf, loud, forgetful, keepsHandingOver, fromAnswer, untold bool
	// rates is by how much clocks may run too fast or too slow; 0 is what is allowed.
	rates float64
}

const (
	testHold     = 100 * time.Millisecond
	testReplicas = 5
)

// voter is one replica: raft's state, which its disk keeps, then what only its memory has.
type voter struct {
	id         uint64
	term, vote uint64
	log        []raftpb.Entry
	commit     uint64

	leads   bool
	votes   uint64
	match   [testReplicas]uint64
	asked   confirmation
	askedIn uint64
	// committed was so when a majority was asked, read when one answered last.
	committed, read uint64
	question        uint64
	confirms        uint64
	lease           *readLease
	cutUntil        time.Duration
	rate            float64
	clockFrom       time.Duration
}

// play runs three virtual seconds and more; broken says how somebody was elected within a lease.
func (a adversary) play(seed uint64) (sum tally, broken string) {
	rng := rand.New(rand.NewPCG(seed, 7))
	if a.rates == 0 {
		a.rates = 0.05
	}
	g := &group{adversary: a, rng: rng, habits: drawHabits(rng)}
	for i := range testReplicas {
		v := &voter{
			id: uint64(i + 1), rate: 1 + a.rates*(2*rng.Float64()-1), clockFrom: time.Duration(rng.Int64N(int64(time.Hour))),
			lease: &readLease{hold: testHold},
		}
		g.voters = append(g.voters, v)
	}
	for range 3000 {
		g.now += time.Duration(rng.ExpFloat64() * float64(g.step))
		for len(g.net) > 0 && g.net[0].at <= g.now && g.broken == "" {
			g.deliver(heap.Pop(&g.net).(packet).m)
		}
		v := g.voters[rng.IntN(testReplicas)]
		g.look(v)
		if g.broken != "" {
			return g.sum, g.broken
		}
		g.act(v)
	}
	return g.sum, ""
}

type group struct {
	adversary
	habits
	rng    *rand.Rand
	now    time.Duration
	voters []*voter
	net    packets
	sum    tally
	broken string
}

// habits say how often replicas do what, as weights; each play has others, so that what is rare in one is common in another.
type habits struct {
	restart, cut, campaign, ask, replicate, handOver, regroup int
	step                                                      time.Duration
	late                                                      int // one of so many messages is
}

func drawHabits(rng *rand.Rand) habits {
	weight := func() int { return []int{0, 1, 5, 20}[rng.IntN(4)] }
	return habits{
		restart: weight(), cut: weight(), handOver: weight(), regroup: weight(), campaign: 5 + 5*weight(), ask: 40, replicate: 40,
		step: []time.Duration{time.Millisecond / 2, 3 * time.Millisecond}[rng.IntN(2)], late: 2 + rng.IntN(20),
	}
}

// act lets a replica do something of its own accord.
func (g *group) act(v *voter) {
	h := g.habits
	n := g.rng.IntN(h.restart + h.cut + h.campaign + h.ask + h.replicate + h.handOver + h.regroup)
	does := func(weight int) bool {
		n -= weight
		return n < 0 && n >= -weight
	}
	switch {
	case does(h.restart):
		g.restart(v)
	case does(h.cut):
		v.cutUntil = g.now + time.Duration(g.rng.ExpFloat64()*float64(2*testHold))
	case does(h.campaign):
		if !v.leads {
			g.campaign(v, 0)
		}
	case !v.leads:
	case does(h.ask):
		if v.asked.leads && v.asked.term == v.term && g.rng.IntN(20) > 0 {
			return // for the answers to come
		}
		if v.commit == 0 || v.log[v.commit-1].Term != v.term {
			return // raft asks only once something of the leader's own term is committed
		}
		v.asked, v.askedIn, v.confirms, v.question, v.committed = v.lease.asks(g.clock(v)), v.term, 1<<v.id, v.question+1, v.commit
		g.all(v, raftpb.Message{Type: raftpb.Heartbeat, Hint: v.question})
		g.settle(v)
	case does(h.replicate):
		for i := range g.voters {
			if id := uint64(i + 1); g.members(v)&(1<<id) != 0 || g.rng.IntN(4) == 0 {
				g.replicate(v, id)
			}
		}
	case does(h.handOver):
		g.sum.HandedOver++
		g.send(v, raftpb.Message{Type: raftpb.TimeoutNow, To: uint64(g.rng.IntN(testReplicas) + 1)})
	default:
		g.regroup(v)
	}
}

func (g *group) clock(v *voter) time.Duration {
	return v.clockFrom + time.Duration(float64(g.now)*v.rate)
}

func (g *group) restart(v *voter) {
	v.leads, v.votes, v.asked = false, 0, confirmation{}
	v.lease = &readLease{hold: testHold, promised: g.clock(v) + testHold}
	if g.forgetful {
		v.lease.promised = 0
	}
}

// campaign begins an election; hint is raft's mark of one that the leader has asked for.
func (g *group) campaign(v *voter, hint uint64) {
	if g.members(v)&(1<<v.id) == 0 {
		return
	}
	if hint == 0 && g.majority(v, 1<<v.id) && g.clock(v) < v.lease.bound() {
		return // no message could be kept back, but raft's own timeout is longer than a promise
	}
	v.term++
	v.vote, v.leads, v.votes = v.id, false, 1<<v.id
	last := v.last()
	g.all(v, raftpb.Message{Type: raftpb.RequestVote, Hint: hint, LogIndex: last.Index, LogTerm: last.Term})
	g.elect(v)
}

// regroup adds or removes one member, as soon as what was proposed before is committed and something of the leader's own term is.
func (g *group) regroup(v *voter) {
	if v.last().Index > v.commit || v.last().Term != v.term {
		return
	}
	id := uint64(g.rng.IntN(testReplicas) + 1)
	members := g.members(v) ^ 1<<id
	if id == v.id || members == 0 {
		return
	}
	g.sum.Regrouped++
	v.log = append(v.log, raftpb.Entry{Type: raftpb.ConfigChangeEntry, Term: v.term, Index: v.last().Index + 1, Key: members})
	g.advance(v)
}

func (v *voter) last() raftpb.Entry {
	if len(v.log) == 0 {
		return raftpb.Entry{}
	}
	return v.log[len(v.log)-1]
}

// members are the group as the replica has applied it, as a set of bits; at first there are three.
func (g *group) members(v *voter) uint64 {
	for i := v.commit; i > 0; i-- {
		if v.log[i-1].Type == raftpb.ConfigChangeEntry {
			return v.log[i-1].Key
		}
	}
	return 0b1110
}

func (g *group) majority(v *voter, of uint64) bool {
	members := g.members(v)
	return 2*bits.OnesCount64(of&members) > bits.OnesCount64(members)
}

func (g *group) elect(v *voter) {
	if v.leads || !g.majority(v, v.votes) {
		return
	}
	g.sum.Elections++
	for _, other := range g.voters {
		// Who is elected late, in an earlier term, will commit nothing.
		if other != v && v.term > other.term && other.lease.holds(g.clock(other)) {
			g.broken = fmt.Sprintf("replica %d leads term %d, and replica %d has a lease of term %d", v.id, v.term, other.id, other.lease.term)
		}
	}
	v.leads, v.match = true, [testReplicas]uint64{}
	v.log = append(v.log, raftpb.Entry{Term: v.term, Index: v.last().Index + 1})
	g.advance(v)
}

// advance commits what a majority has.
func (g *group) advance(v *voter) {
	for index := v.commit + 1; index <= v.last().Index; index++ {
		have := uint64(1) << v.id
		for i, match := range v.match {
			if match >= index {
				have |= 1 << (i + 1)
			}
		}
		if v.log[index-1].Term == v.term && g.majority(v, have) {
			v.commit = index
		}
	}
}

func (g *group) replicate(v *voter, to uint64) {
	m := raftpb.Message{Type: raftpb.Replicate, To: to, Commit: v.commit, LogIndex: min(v.match[to-1], v.last().Index)}
	if m.LogIndex > 0 {
		m.LogTerm = v.log[m.LogIndex-1].Term
	}
	m.Entries = append(m.Entries, v.log[m.LogIndex:]...)
	g.send(v, m)
}

// settle begins a lease once a majority has answered.
func (g *group) settle(v *voter) {
	if v.asked.at != 0 && v.askedIn == v.term && v.leads && g.majority(v, v.confirms) {
		if g.fromAnswer {
			v.asked.at = g.clock(v)
		}
		before := v.lease.until
		v.lease.confirmed(v.asked)
		if v.lease.until != before {
			g.sum.Leases++
		}
		v.asked, v.read = confirmation{}, v.committed
	}
}

// look compares what a leader with a lease would read with what others know.
func (g *group) look(v *voter) {
	index := v.read
	if told, _, _ := v.lease.needs(); !g.untold {
		index = max(index, told)
	}
	for _, other := range g.voters {
		if other != v && v.lease.holds(g.clock(v)) && other.commit > index { // what it applies itself it sees
			g.broken = fmt.Sprintf("replica %d reads by its lease what is committed up to %d, and replica %d knows of %d", v.id, index, other.id, other.commit)
		}
	}
}

func (g *group) all(v *voter, m raftpb.Message) {
	for _, other := range g.voters {
		if m.To = other.id; g.members(v)&(1<<m.To) != 0 {
			g.send(v, m)
		}
	}
}

func (g *group) send(v *voter, m raftpb.Message) {
	m.From, m.Term = v.id, v.term
	if m.To == m.From {
		return
	}
	until, handedOver := v.lease.until, v.lease.handedOver
	passes := v.lease.sends(&m, g.clock(v))
	if g.keepsHandingOver && m.Type == raftpb.TimeoutNow {
		v.lease.until, v.lease.handedOver = until, handedOver
	}
	if !passes && !g.loud || g.rng.IntN(20) == 0 || v.cutUntil > g.now {
		return
	}
	for range 1 + g.rng.IntN(10)/9 {
		late := time.Duration(g.rng.ExpFloat64() * float64(2*time.Millisecond))
		if g.rng.IntN(g.late) == 0 {
			late *= 50
		}
		heap.Push(&g.net, packet{m, g.now + late})
	}
}

func (g *group) deliver(m raftpb.Message) {
	v := g.voters[m.To-1]
	if v.cutUntil > g.now {
		return
	}
	if !v.lease.receives(&m, g.clock(v)) && !g.deaf || m.Term < v.term {
		return
	}
	if m.Term > v.term {
		v.term, v.vote, v.leads, v.votes = m.Term, 0, false, 0
	}
	switch m.Type {
	case raftpb.RequestVote:
		last := v.last()
		current := m.LogTerm > last.Term || m.LogTerm == last.Term && m.LogIndex >= last.Index
		if current && (v.vote == 0 || v.vote == m.From) {
			v.vote = m.From
			g.send(v, raftpb.Message{Type: raftpb.RequestVoteResp, To: m.From})
		}
	case raftpb.RequestVoteResp:
		v.votes |= 1 << m.From
		g.elect(v)
	case raftpb.TimeoutNow:
		g.campaign(v, v.id)
	case raftpb.Heartbeat:
		g.send(v, raftpb.Message{Type: raftpb.HeartbeatResp, To: m.From, Hint: m.Hint})
	case raftpb.HeartbeatResp:
		if v.leads && m.Hint == v.question {
			v.confirms |= 1 << m.From
			g.settle(v)
		}
	case raftpb.Replicate:
		g.append(v, m)
	case raftpb.ReplicateResp:
		if v.leads {
			v.match[m.From-1] = min(m.LogIndex, v.last().Index)
			g.advance(v)
		}
	}
}

func (g *group) append(v *voter, m raftpb.Message) {
	if m.LogIndex > v.last().Index || m.LogIndex > 0 && v.log[m.LogIndex-1].Term != m.LogTerm {
		g.send(v, raftpb.Message{Type: raftpb.ReplicateResp, To: m.From})
		return
	}
	for _, e := range m.Entries {
		if e.Index <= v.last().Index && v.log[e.Index-1].Term == e.Term {
			continue
		}
		v.log = append(v.log[:e.Index-1:e.Index-1], e)
	}
	have := m.LogIndex + uint64(len(m.Entries))
	v.commit = max(v.commit, min(m.Commit, have))
	g.send(v, raftpb.Message{Type: raftpb.ReplicateResp, To: m.From, LogIndex: have})
}

// packet is a message under way.
type packet struct {
	m  raftpb.Message
	at time.Duration
}

// packets are ordered by arrival.
type packets []packet

func (p packets) Len() int           { return len(p) }
func (p packets) Less(i, j int) bool { return p[i].at < p[j].at }
func (p packets) Swap(i, j int)      { p[i], p[j] = p[j], p[i] }
func (p *packets) Push(x any)        { *p = append(*p, x.(packet)) }
func (p *packets) Pop() any {
	last := (*p)[len(*p)-1]
	*p = (*p)[:len(*p)-1]
	return last
}
