package merge

import (
	"fmt"
	"slices"
	"sort"
	"testing"

	"pgregory.net/rapid"

	"shoal/consensus/store"
)

// drawHistory draws what some shards did: per shard its revisions in order, events
// and mere progress mixed.
func drawHistory(t *rapid.T, shards []uint64) [][]store.Event {
	histories := make([][]store.Event, len(shards))
	for i, shard := range shards {
		tick := store.Revision(0)
		for range rapid.IntRange(0, 12).Draw(t, "length") {
			tick += store.Revision(rapid.IntRange(1, 3).Draw(t, "step"))
			event := store.Event{Revision: tick*store.Tick + store.Revision(shard)}
			if rapid.IntRange(0, 3).Draw(t, "kind") == 0 {
				event.Progress = true
			} else {
				event.Key = fmt.Sprintf("/%d/%d", shard, tick)
				event.Value = make([]byte, rapid.IntRange(0, 3).Draw(t, "size"))
			}
			histories[i] = append(histories[i], event)
		}
	}
	return histories
}

func drawShards(t *rapid.T) []uint64 {
	return rapid.SliceOfNDistinct(rapid.Uint64Range(0, 255), 1, 6, rapid.ID[uint64]).Draw(t, "shards")
}

func inOrder(histories [][]store.Event, after store.Revision) []store.Event {
	var all []store.Event
	for _, history := range histories {
		for _, event := range history {
			if !event.Progress && event.Revision > after {
				all = append(all, event)
			}
		}
	}
	sort.Slice(all, func(i, j int) bool { return all[i].Revision < all[j].Revision })
	return all
}

// feed pushes the histories' parts after a revision in some interleaving, and calls
// check after each push with what has been released so far.
func feed(t *rapid.T, m *Merger, shards []uint64, histories [][]store.Event, after store.Revision, check func(released []store.Event)) []store.Event {
	rest := make([][]store.Event, len(histories))
	for i := range histories {
		start := sort.Search(len(histories[i]), func(k int) bool { return histories[i][k].Revision > OnShard(shards[i], after) })
		rest[i] = histories[i][start:]
	}
	var released []store.Event
	for {
		var open []int
		for i := range rest {
			if len(rest[i]) > 0 {
				open = append(open, i)
			}
		}
		if len(open) == 0 {
			return released
		}
		i := rapid.SampledFrom(open).Draw(t, "shard")
		n := rapid.IntRange(1, len(rest[i])).Draw(t, "batch")
		m.Push(i, rest[i][:n])
		rest[i] = rest[i][n:]
		for {
			some := m.Release(rapid.IntRange(1, 5).Draw(t, "at once"), rapid.IntRange(1, 5).Draw(t, "of size"))
			if len(some) == 0 {
				break
			}
			released = append(released, some...)
		}
		check(released)
	}
}

// waiting counts the events that were not released.
func (m *Merger) waiting() int {
	n := 0
	for i := range m.lanes {
		n += len(m.lanes[i].queue)
		size := 0
		for _, event := range m.lanes[i].queue {
			size += event.Size()
		}
		if size != m.lanes[i].size {
			panic(fmt.Sprintf("lane %d counts %d bytes, holds %d", i, m.lanes[i].size, size))
		}
	}
	return n
}

// Whatever the interleaving, the merge releases the events in revision order, each
// once, and never one before another that a shard might still assign.
func TestMergeOrdersStreams(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		shards := drawShards(t)
		histories := drawHistory(t, shards)
		want := inOrder(histories, 0)
		m := New(shards, 0)
		released := feed(t, m, shards, histories, 0, func(released []store.Event) {
			requirePrefix(t, released, want)
			frontier := m.Frontier()
			if len(released) > 0 && frontier < released[len(released)-1].Revision {
				t.Fatalf("frontier %d is below the released event %d", frontier, released[len(released)-1].Revision)
			}
			if n := len(released); n < len(want) && want[n].Revision <= frontier {
				t.Fatalf("frontier %d passes the event %d that was not released", frontier, want[n].Revision)
			}
		})
		// what was held back comes as soon as every shard has passed it
		if newest := m.NewestWaiting(); newest != 0 {
			for _, i := range m.Behind(newest) {
				m.Push(i, []store.Event{{Progress: true, Revision: CloseTarget(shards[i], newest)}})
			}
			if left := m.Behind(newest); len(left) > 0 {
				t.Fatalf("shards %v are behind %d after they have reached their targets", left, newest)
			}
			released = append(released, m.Release(1000, 1000)...)
		}
		requirePrefix(t, released, want)
		if len(released) != len(want) || m.waiting() != 0 {
			t.Fatalf("released %d of %d events, %d left", len(released), len(want), m.waiting())
		}
	})
}

// A merge that begins at any event's revision delivers exactly the later events.
func TestMergeResumesAnywhere(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		shards := drawShards(t)
		histories := drawHistory(t, shards)
		all := inOrder(histories, 0)
		if len(all) == 0 {
			return
		}
		after := rapid.SampledFrom(all).Draw(t, "after").Revision
		want := inOrder(histories, after)
		m := New(shards, after)
		released := feed(t, m, shards, histories, after, func(released []store.Event) { requirePrefix(t, released, want) })
		if m.waiting()+len(released) != len(want) {
			t.Fatalf("after %d: %d released, %d waiting, %d expected", after, len(released), m.waiting(), len(want))
		}
	})
}

func requirePrefix(t *rapid.T, got, want []store.Event) {
	t.Helper()
	if len(got) > len(want) {
		t.Fatalf("%d events, only %d exist", len(got), len(want))
	}
	for i := range got {
		if got[i].Revision != want[i].Revision {
			t.Fatalf("event %d is %d, want %d", i, got[i].Revision, want[i].Revision)
		}
	}
}

func TestMergeKeys(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		keys := rapid.SliceOfDistinct(rapid.StringMatching(`[ab/]{0,4}`), rapid.ID[string]).Draw(t, "keys")
		slices.Sort(keys)
		lists := make([][]store.KV, rapid.IntRange(1, 5).Draw(t, "lists"))
		for _, key := range keys {
			i := rapid.IntRange(0, len(lists)-1).Draw(t, "list")
			lists[i] = append(lists[i], store.KV{Key: key})
		}
		merged := Keys(lists)
		if len(merged) != len(keys) {
			t.Fatalf("%d keys, want %d", len(merged), len(keys))
		}
		for i := range keys {
			if merged[i].Key != keys[i] {
				t.Fatalf("key %d is %q, want %q", i, merged[i].Key, keys[i])
			}
		}
	})
}

// Reaching the close target closes the shard through the revision, and no shard has
// to leave the revision's tick for it: closing all shards up to the highest of them
// settles at once.
func TestCloseTargetSettles(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rev := store.Revision(rapid.Int64Range(int64(store.Tick), 1<<61).Draw(t, "revision"))
		highest := rev
		for _, shard := range drawShards(t) {
			target := CloseTarget(shard, rev)
			if ClosedThrough(target) < rev {
				t.Fatalf("shard %d at %d is not closed through %d", shard, target, rev)
			}
			if target.Shard() != shard {
				t.Fatalf("%d is not a revision of shard %d", target, shard)
			}
			if own := OnShard(shard, rev); own > rev || own < 0 || own > 0 && (own.Shard() != shard || own+store.Tick <= rev) {
				t.Fatalf("%d is not shard %d's last revision at %d", own, shard, rev)
			}
			highest = max(highest, target)
		}
		if highest > ClosedThrough(rev) {
			t.Fatalf("closing up to %d leaves its tick: %d", rev, highest)
		}
	})
}
