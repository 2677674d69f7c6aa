package logstore

import (
	"encoding/binary"
	"errors"
	"slices"
	"sort"

	"github.com/lni/dragonboat/v4/raftpb"
)

// run is where consecutive entries stand. base is the index of the first entry of the data; the group still has count entries from
// base+skip on, because the others were compacted or replaced.
type run struct {
	base        uint64
	skip, count uint32
	seg         *segment
	off         int64
	size, crc   uint32
}

func (r run) first() uint64 { return r.base + uint64(r.skip) }
func (r run) last() uint64  { return r.first() + uint64(r.count) - 1 }

// from and to are the run without the entries below or above an index; count is 0 if nothing is left.
func (r run) from(index uint64) run {
	if index > r.first() {
		cut := min(index-r.first(), uint64(r.count))
		r.skip, r.count = r.skip+uint32(cut), r.count-uint32(cut)
	}
	return r
}

func (r run) to(index uint64) run {
	switch {
	case index < r.first():
		r.count = 0
	case index < r.last():
		r.count = uint32(index - r.first() + 1)
	}
	return r
}

// group is what is known of one replica of one raft group.
type group struct {
	node node
	// operation counts what was written about the group.
	operation uint64
	// damage is what is wrong with its log, nil if nothing is.
	damage    error
	bootstrap *raftpb.Bootstrap
	state     raftpb.State
	// behind says that state has a commit index that is not in the log yet.
	behind   bool
	snapshot raftpb.Snapshot
	// The log has the entries first to last, in runs; last is first-1 when it is empty.
	first, last uint64
	runs        []run
	// moved are runs that were read at a start and not put into their places yet, which is done before entries are taken away, and at last.
	moved []run
}

func newGroup(n node) *group { return &group{node: n, first: 1} }

// set replaces the runs and keeps the segments' counts of living bytes right.
func (g *group) set(runs []run) {
	for _, r := range runs {
		r.seg.live += int64(r.size)
	}
	for _, r := range g.runs {
		r.seg.live -= int64(r.size)
	}
	g.runs = runs
}

// push adds a run at the end, which is by far the most frequent change.
func (g *group) push(r run) {
	r.seg.live += int64(r.size)
	g.runs = append(g.runs, r)
	g.last = r.last()
}

// append takes a run of new entries, which replace those from its first index on.
func (g *group) append(r run) error {
	if r.first() > g.last+1 {
		return damaged(g.node, "entries from %d on do not follow %d", r.first(), g.last)
	}
	if r.first() <= g.last {
		g.keep(g.first, r.first()-1)
	}
	if r = r.from(g.first); r.count > 0 {
		g.push(r)
	}
	return nil
}

// keep cuts the log to the entries first to last.
func (g *group) keep(first, last uint64) {
	g.put()
	var runs []run
	for _, r := range g.runs {
		if r = r.from(first).to(last); r.count > 0 {
			runs = append(runs, r)
		}
	}
	g.set(runs)
	g.first, g.last = first, max(last, first-1)
}

// overlay puts a run that was moved in the place of the same entries. Entries that the log does not have any more are left out.
func (g *group) overlay(moved run) {
	moved = moved.from(g.first).to(g.last)
	if moved.count == 0 {
		return
	}
	// Only what the run meets is touched: building all runs anew for each that is moved would cost a shard of many small ones the square of
	// their number, in a reclamation with the store's mutex held, and at every start, when the segment they came from is gone.
	at := g.find(moved.first())
	end := at + sort.Search(len(g.runs)-at, func(i int) bool { return g.runs[at+i].first() > moved.last() })
	put := make([]run, 0, 3)
	if at < end {
		if before := g.runs[at].to(moved.first() - 1); before.count > 0 {
			put = append(put, before)
		}
	}
	put = append(put, moved)
	if at < end {
		if after := g.runs[end-1].from(moved.last() + 1); after.count > 0 {
			put = append(put, after)
		}
	}
	for _, r := range put {
		r.seg.live += int64(r.size)
	}
	for _, r := range g.runs[at:end] {
		r.seg.live -= int64(r.size)
	}
	g.runs = slices.Replace(g.runs, at, end, put...)
}

// put gives the runs that were moved their places. That is done for many at once: each of those that stand behind would be moved up for each
// of those that belong before it.
func (g *group) put() {
	moved := g.moved
	g.moved = nil
	if len(moved) < 2 || !ascending(moved) {
		for _, r := range moved {
			g.overlay(r)
		}
		return
	}
	all, old := make([]run, 0, len(g.runs)+len(moved)), slices.Clone(g.runs)
	for _, r := range moved {
		for len(old) > 0 && old[0].last() < r.first() {
			all, old = append(all, old[0]), old[1:]
		}
		if len(old) > 0 && old[0].first() < r.first() {
			all = append(all, old[0].to(r.first()-1))
		}
		all = append(all, r)
		for len(old) > 0 && old[0].last() <= r.last() {
			old = old[1:]
		}
		if len(old) > 0 {
			old[0] = old[0].from(r.last() + 1)
		}
	}
	g.set(append(all, old...))
}

// ascending tells whether each run stands behind the one before.
func ascending(runs []run) bool {
	for i := 1; i < len(runs); i++ {
		if runs[i].first() <= runs[i-1].last() {
			return false
		}
	}
	return true
}

// compact drops entries up to the index.
func (g *group) compact(index uint64) {
	if index >= g.first {
		g.keep(min(index, g.last)+1, g.last)
	}
}

// restart empties the log: it goes on behind the index.
func (g *group) restart(index uint64) {
	g.moved = nil
	g.set(nil)
	g.first, g.last = index+1, index
}

// find is the position of the run with the index.
func (g *group) find(index uint64) int {
	return sort.Search(len(g.runs), func(i int) bool { return g.runs[i].last() >= index })
}

// check says what is wrong, after all of the log was read.
func (g *group) check() error {
	if g.damage != nil {
		return g.damage
	}
	next := g.first
	for _, r := range g.runs {
		if r.first() != next {
			return damaged(g.node, "entries %d to %d are missing", next, r.first()-1)
		}
		next = r.last() + 1
	}
	switch {
	case next != g.last+1:
		return damaged(g.node, "entries %d to %d are missing", next, g.last)
	case g.state.Commit > g.last:
		return damaged(g.node, "it ends at entry %d although %d was committed", g.last, g.state.Commit)
	case g.snapshot.Index > g.last || g.snapshot.Index+1 < g.first:
		return damaged(g.node, "it has entries %d to %d, which do not follow the snapshot of %d", g.first, g.last, g.snapshot.Index)
	}
	return nil
}

// compare finds out whether something that was acknowledged is missing.
func (g *group) compare(m mark) error {
	switch {
	case g.last < m.last:
		return damaged(g.node, "it ends at entry %d, entries up to %d had been acknowledged", g.last, m.last)
	case g.state.Term < m.term:
		return damaged(g.node, "it knows of term %d, the replica had promised term %d", g.state.Term, m.term)
	case g.state.Term == m.term && m.vote != 0 && g.state.Vote != m.vote:
		return damaged(g.node, "in term %d it has a vote for replica %d, the vote had gone to replica %d", m.term, g.state.Vote, m.vote)
	}
	return nil
}

// mark is what the group has promised.
func (g *group) mark() mark { return mark{term: g.state.Term, vote: g.state.Vote, last: g.last} }

// appendBehind appends the state if it is not in the log yet.
func (g *group) appendBehind(b []byte) []byte {
	if !g.behind {
		return b
	}
	g.behind = false
	return appendState(appendOp(b, opState, g), g.state)
}

const (
	hasBootstrap = 1 << iota
	hasSnapshot
	hasDamage
)

// appendCheckpoint appends the group without its entries.
func (g *group) appendCheckpoint(b []byte) []byte {
	b = appendHead(b, opGroup, g)
	var has byte
	if g.bootstrap != nil {
		has |= hasBootstrap
	}
	if !raftpb.IsEmptySnapshot(g.snapshot) {
		has |= hasSnapshot
	}
	if g.damage != nil {
		has |= hasDamage
	}
	b = appendState(append(b, has), g.state)
	b = binary.AppendUvarint(binary.AppendUvarint(b, g.first), g.last)
	if has&hasBootstrap != 0 {
		b = appendMessage(b, g.bootstrap)
	}
	if has&hasSnapshot != 0 {
		b = appendMessage(b, &g.snapshot)
	}
	if has&hasDamage != 0 {
		b = appendBytes(b, []byte(cause(g.damage)))
	}
	return b
}

// cause is what a *DamageError says without its replica.
func cause(err error) string {
	var about *DamageError
	if errors.As(err, &about) {
		err = about.Cause
	}
	return err.Error()
}

// readCheckpoint makes the group what a checkpoint says. Runs that were read from older segments stay as far as they still count.
func (g *group) readCheckpoint(d *decoder) {
	has := d.byte()
	g.state = d.state()
	first, last := d.uvarint(), d.uvarint()
	g.bootstrap, g.snapshot = nil, raftpb.Snapshot{}
	if has&hasBootstrap != 0 {
		g.bootstrap = &raftpb.Bootstrap{}
		d.message(g.bootstrap)
	}
	if has&hasSnapshot != 0 {
		d.message(&g.snapshot)
	}
	if has&hasDamage != 0 {
		g.damage = damaged(g.node, "%s", d.bytes())
	}
	if first == 0 || last+1 < first {
		d.fail("checkpoint")
	}
	if d.err == nil {
		g.keep(first, last)
	}
}
