package store

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"sort"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// model is the state machine written down naively: every state that ever was, in
// full.
type model struct {
	shard  uint64
	last   Revision
	now    map[string]KV
	states []modelState
	events []Event
	ends   []Revision // of the events' transactions
	done   map[RequestID]Result
}

type modelState struct {
	at   Revision
	keys map[string]KV
}

// whole is the end of the transaction that a revision cuts, or the revision.
func (m *model) whole(rev, newest Revision) Revision {
	for i := 1; i < len(m.events); i++ {
		if m.events[i-1].Revision <= rev && rev < m.events[i].Revision && m.ends[i-1] == m.ends[i] && m.ends[i] <= newest {
			return m.ends[i]
		}
	}
	return rev
}

func newModel(shard uint64) *model {
	return &model{
		shard: shard, now: map[string]KV{}, done: map[RequestID]Result{},
		states: []modelState{{0, map[string]KV{}}},
	}
}

func (m *model) lift(to Revision) Revision {
	for to.Shard() != m.shard {
		to++
	}
	return to
}

func (m *model) apply(tx Transaction) Result {
	if res, ok := m.done[tx.ID]; ok {
		m.last = max(m.last, m.lift(tx.Stamp))
		return res
	}
	var failed []KV
	for _, c := range tx.Conditions {
		if kv := m.now[c.Key]; kv.Mod != c.Revision {
			kv.Key = c.Key
			failed = append(failed, kv)
		}
	}
	if failed != nil {
		m.last = max(m.last, m.lift(tx.Stamp))
		return Result{Revision: m.last, Failed: failed}
	}
	res := Result{OK: true}
	first, begun := max(tx.Stamp, m.last+512), len(m.events)
	for _, op := range tx.Ops {
		res.Revisions = append(res.Revisions, m.applyOp(op, first))
	}
	for range m.events[begun:] {
		m.ends = append(m.ends, m.last)
	}
	m.last = max(m.last, m.lift(tx.Stamp))
	res.Revision = m.last
	if len(tx.Ops) > 0 && tx.ID != (RequestID{}) {
		m.done[tx.ID] = res
	}
	return res
}

func (m *model) applyOp(op Op, stamp Revision) Revision {
	old, had := m.now[op.Key]
	if op.Delete && !had {
		return 0
	}
	if !op.Delete && had && bytes.Equal(old.Value, op.Value) && old.Expires == op.Expires {
		return old.Mod
	}
	m.last = m.lift(max(m.last+256, stamp))
	ev := Event{Revision: m.last, Key: op.Key, Prev: old.Value, PrevMod: old.Mod, Create: old.Create}
	if op.Delete {
		ev.Delete = true
		delete(m.now, op.Key)
	} else {
		kv := KV{Key: op.Key, Value: op.Value, Create: m.last, Mod: m.last, Expires: op.Expires}
		if had {
			kv.Create = old.Create
		}
		m.now[op.Key] = kv
		ev.Value, ev.Create = op.Value, kv.Create
	}
	m.events = append(m.events, ev)
	m.states = append(m.states, modelState{m.last, maps.Clone(m.now)})
	return m.last
}

func (m *model) at(rev Revision) map[string]KV {
	i := sort.Search(len(m.states), func(i int) bool { return m.states[i].at > rev })
	return m.states[i-1].keys
}

var someKeys = []string{"", "a", "a/", "a/b", "a/b/c", "a/c", "ab", "b", "b/\xff", "b/\xff\xff", "\xff"}

func drawTransaction(t *rapid.T, m *model) Transaction {
	var tx Transaction
	tx.ID[0] = byte(rapid.IntRange(0, 40).Draw(t, "id"))
	if rapid.Bool().Draw(t, "fresh id") {
		copy(tx.ID[1:], fmt.Sprint(len(m.events), m.last))
	}
	tx.Stamp = Revision(rapid.Int64Range(0, 1<<34).Draw(t, "stamp"))
	for range rapid.SampledFrom([]int{0, 0, 0, 1, 2}).Draw(t, "conditions") {
		key := rapid.SampledFrom(someKeys).Draw(t, "condition")
		rev := m.now[key].Mod
		if rapid.IntRange(0, 3).Draw(t, "wrong") == 0 {
			rev += 256
		}
		tx.Conditions = append(tx.Conditions, Condition{key, rev})
	}
	for range rapid.IntRange(0, 4).Draw(t, "ops") {
		op := Op{Key: rapid.SampledFrom(someKeys).Draw(t, "key")}
		if op.Delete = rapid.IntRange(0, 3).Draw(t, "delete") == 0; !op.Delete {
			op.Value = []byte(rapid.SampledFrom([]string{"", "x", "y", "long value"}).Draw(t, "value"))
			op.Expires = rapid.Int64Range(0, 3).Draw(t, "expires")
		}
		tx.Ops = append(tx.Ops, op)
	}
	return tx
}

func TestStoreAgreesWithTheModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		shard := rapid.Uint64Range(0, MaxShard).Draw(t, "shard")
		m, s := newModel(shard), New(shard, Limits{Bytes: 1 << 40, Age: 1 << 60})
		var views []View
		for range rapid.IntRange(1, 40).Draw(t, "transactions") {
			tx := drawTransaction(t, m)
			seen := len(m.events)
			want := m.apply(tx)
			got, events := s.Apply(tx)
			want.Revision = m.last
			if fmt.Sprint(got) != fmt.Sprint(want) {
				// A repeated request reports the revision of its first time.
				if first, again := m.done[tx.ID]; !again || fmt.Sprint(got) != fmt.Sprint(first) {
					t.Fatalf("apply %+v:\n got %+v\nwant %+v", tx, got, want)
				}
			}
			if fmt.Sprint(events) != fmt.Sprint(m.events[seen:]) {
				t.Fatalf("events of %+v:\n got %+v\nwant %+v", tx, events, m.events[seen:])
			}
			if rapid.IntRange(0, 4).Draw(t, "look") == 0 {
				views = append(views, s.View())
			}
			if rapid.IntRange(0, 9).Draw(t, "restart") == 0 {
				s = reload(t, s)
			}
		}
		views = append(views, s.View())
		for _, v := range views {
			checkView(t, v, m)
		}
	})
}

// reload writes a snapshot and reads it back.
func reload(t *rapid.T, s *Store) *Store {
	var b, again bytes.Buffer
	if err := s.View().WriteSnapshot(&b); err != nil {
		t.Fatal(err)
	}
	restored, err := ReadSnapshot(bytes.NewReader(b.Bytes()), s.shard, s.limits)
	if err != nil {
		t.Fatal(err)
	}
	if err := restored.View().WriteSnapshot(&again); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b.Bytes(), again.Bytes()) {
		t.Fatal("a restored state writes another snapshot than the one it came from")
	}
	return restored
}

func checkView(t *rapid.T, v View, m *model) {
	revisions := []Revision{v.Revision()}
	for _, st := range m.states {
		if st.at <= v.Revision() {
			revisions = append(revisions, st.at, st.at+1)
		}
	}
	at := rapid.SampledFrom(revisions).Draw(t, "at")
	at = min(at, v.Revision())
	r := Range{
		Prefix:  rapid.SampledFrom(someKeys).Draw(t, "prefix"),
		Start:   rapid.SampledFrom(someKeys).Draw(t, "start"),
		End:     rapid.SampledFrom(someKeys).Draw(t, "end"),
		Reverse: rapid.Bool().Draw(t, "reverse"),
	}
	checkRange(t, v, m, at, r)
	if got, want := v.Whole(at), m.whole(at, v.Revision()); got != want {
		t.Fatalf("the transaction at %d ends at %d, not %d", at, want, got)
	}
	checkEvents(t, v, m, at, r.Prefix)
	checkDue(t, v, m)
}

func checkRange(t *rapid.T, v View, m *model, at Revision, r Range) {
	var want []KV
	for _, key := range slices.Sorted(maps.Keys(m.at(at))) {
		if strings.HasPrefix(key, r.Prefix) && key >= r.Start && (r.End == "" || key < r.End) {
			want = append(want, m.at(at)[key])
		}
	}
	if r.Reverse {
		slices.Reverse(want)
	}
	old, err := v.At(at, r)
	if at == 0 {
		old, err = v.At(0, r) // zero asks for the newest
		if err == nil && old.Revision() != v.Revision() {
			t.Fatal("revision 0 is not the newest")
		}
		return
	}
	if err != nil {
		t.Fatalf("at %v: %v", at, err)
	}
	var got []KV
	old.Walk(r, func(kv *KV) bool { got = append(got, *kv); return true })
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Fatalf("range %+v at %v:\n got %+v\nwant %+v", r, at, got, want)
	}
	if n := old.Count(r); n != len(want) {
		t.Fatalf("range %+v at %v counts %d keys, want %d", r, at, n, len(want))
	}
	for _, key := range someKeys {
		kv, ok := v.Get(key)
		if w, has := m.at(v.Revision())[key]; ok != has || fmt.Sprint(kv) != fmt.Sprint(w) {
			t.Fatalf("get %q: %+v %v, want %+v %v", key, kv, ok, w, has)
		}
	}
}

func checkEvents(t *rapid.T, v View, m *model, from Revision, prefix string) {
	var want []Event
	for _, ev := range m.events {
		if ev.Revision > from && ev.Revision <= v.Revision() && strings.HasPrefix(ev.Key, prefix) {
			want = append(want, ev)
		}
	}
	limit, size := rapid.IntRange(1, 3).Draw(t, "limit"), rapid.IntRange(0, 20).Draw(t, "size")
	var got []Event
	for at := from; ; {
		events, complete, err := v.Events(at, prefix, limit, size)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, events...)
		if complete == v.Revision() {
			break
		}
		if complete <= at {
			t.Fatalf("no progress: complete up to %v after %v", complete, at)
		}
		at = complete
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Fatalf("events after %v of %q:\n got %+v\nwant %+v", from, prefix, got, want)
	}
}

func checkDue(t *rapid.T, v View, m *model) {
	var want []string
	for expires := int64(1); expires <= 2; expires++ {
		for _, key := range slices.Sorted(maps.Keys(m.at(v.Revision()))) {
			if m.at(v.Revision())[key].Expires == expires {
				want = append(want, key)
			}
		}
	}
	var got []string
	for _, kv := range v.Due(2, 100) {
		got = append(got, kv.Key)
	}
	if !slices.Equal(got, want) {
		t.Fatalf("due %q, want %q", got, want)
	}
}

func write(key string, size int) Transaction {
	return Transaction{Ops: []Op{{Key: key, Value: bytes.Repeat([]byte{byte(size)}, size)}}}
}

func TestHistoryIsBoundedByBytes(t *testing.T) {
	s := New(3, Limits{Bytes: 10_000, Age: time.Hour})
	for i := range 1000 {
		s.Apply(write("k", 100+i%2))
	}
	v := s.View()
	if s.history.bytes > 10_000 || len(v.s.history) < 20 {
		t.Fatalf("history holds %d bytes in %d records", s.history.bytes, len(v.s.history))
	}
	if _, _, err := v.Events(v.Floor()-1, "", 10, 1<<20); !errors.Is(err, ErrCompacted) {
		t.Errorf("events below the floor: %v", err)
	}
	if _, err := v.At(v.Floor()-1, Range{}); !errors.Is(err, ErrCompacted) {
		t.Errorf("state below the floor: %v", err)
	}
	if _, err := v.At(v.Floor(), Range{}); err != nil {
		t.Errorf("state at the floor: %v", err)
	}
	if _, err := v.At(v.Revision()+1, Range{}); !errors.Is(err, ErrFuture) {
		t.Errorf("state of tomorrow: %v", err)
	}
}

// What fell out of the history is not kept alive by its array.
func TestForgottenVersionsAreFreed(t *testing.T) {
	const limit, size = 1 << 20, 64 << 10
	s := New(0, Limits{Bytes: limit, Age: time.Hour})
	var freed atomic.Int64
	const writes = 200
	for i := range writes {
		value := bytes.Repeat([]byte{byte(i)}, size)
		runtime.AddCleanup(&value[0], func(int) { freed.Add(1) }, 0)
		s.Apply(Transaction{Ops: []Op{{Key: "k", Value: value}}})
		s.View()
	}
	const kept = (limit + limit/8) / size
	deadline := time.Now().Add(10 * time.Second)
	for freed.Load() < writes-kept-2 {
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d versions were freed; the history holds %d", freed.Load(), writes, kept)
		}
		runtime.GC()
	}
	runtime.KeepAlive(s)
}

func TestHistoryIsBoundedByAge(t *testing.T) {
	s := New(0, Limits{Age: time.Minute})
	start := Epoch.Add(time.Hour)
	for i := range 10 {
		tx := write("k", i)
		tx.Stamp = At(start.Add(time.Duration(i) * 20 * time.Second))
		s.Apply(tx)
	}
	if floor := s.View().Floor().Time(); floor != start.Add(100*time.Second) {
		t.Errorf("floor is at +%v", floor.Sub(start))
	}
	// The closed timestamp ages the history too.
	s.Apply(Transaction{Stamp: At(start.Add(time.Hour))})
	if n := len(s.View().s.history); n != 0 {
		t.Errorf("%d records are left after an hour", n)
	}
}

func TestForgottenRequestsAreNotAppliedAgain(t *testing.T) {
	s := New(1, Limits{Requests: 3})
	stamp := At(Epoch.Add(time.Hour))
	request := func(n byte) Transaction {
		tx := write(fmt.Sprint("k", n), int(n))
		tx.ID[0], tx.Stamp = n, stamp+Revision(n)*Tick
		return tx
	}
	first, _ := s.Apply(request(1))
	for n := byte(2); n <= 3; n++ {
		s.Apply(request(n))
	}
	if again, events := s.Apply(request(1)); !again.OK || events != nil || again.Revisions[0] != first.Revisions[0] {
		t.Fatalf("repeated request: %+v, %v", again, events)
	}
	s.Apply(request(4))
	if res, events := s.Apply(request(1)); !res.Forgotten || res.OK || events != nil {
		t.Fatalf("forgotten request: %+v, %v", res, events)
	}
	fresh := request(5)
	if res, _ := s.Apply(fresh); !res.OK {
		t.Fatalf("fresh request: %+v", res)
	}
}

func TestStampsOutOfRangeDoNotMoveTheClock(t *testing.T) {
	s := New(1, Limits{})
	for _, stamp := range []Revision{-1, -1 << 63, 1<<63 - 1, maxStamp + 1} {
		if res, _ := s.Apply(Transaction{Stamp: stamp}); res.Revision > Tick {
			t.Errorf("stamp %d moved the clock to %d", stamp, res.Revision)
		}
	}
}

func TestRevisionsReadBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := Revision(rapid.Int64Range(0, 1<<63-1).Draw(t, "revision"))
		got, err := ParseRevision(r.String())
		if err != nil || got != r {
			t.Fatalf("%d reads back as %d, %v", r, got, err)
		}
	})
	for _, bad := range []string{"", "01", "+1", "-1", " 1", "1.0", "9223372036854775808"} {
		if _, err := ParseRevision(bad); err == nil {
			t.Errorf("%q was taken for a revision", bad)
		}
	}
	when := time.Date(2031, 4, 5, 6, 7, 8, 9e6, time.UTC)
	if got := At(when).Time(); !got.Equal(when) {
		t.Errorf("%v became %v", when, got)
	}
}

// TestRefusedRequestsMaySucceedLater: of two attempts of one request the first may be refused and the second not, if what stood in the way is
// gone by then. Whoever has another attempt under way must not believe the refusal.
func TestRefusedRequestsMaySucceedLater(t *testing.T) {
	s := New(1, Limits{})
	first, _ := s.Apply(write("k", 1))
	create := write("k", 2)
	create.ID[0], create.Conditions = 1, []Condition{{Key: "k"}}
	update := write("k", 3)
	update.ID[0], update.Conditions = 2, []Condition{{Key: "k", Revision: first.Revisions[0] - Tick}}
	both := create
	both.ID[0], both.Conditions = 3, append(update.Conditions, Condition{Key: "other"})
	for _, c := range []struct {
		tx   Transaction
		want bool
	}{{create, true}, {update, false}, {both, false}} {
		if refused, _ := s.Apply(c.tx); refused.OK || refused.MayHold(c.tx) != c.want {
			t.Errorf("%+v: %+v, may hold later: %t", c.tx, refused, refused.MayHold(c.tx))
		}
	}
	s.Apply(Transaction{Ops: []Op{{Key: "k", Delete: true}}})
	if again, _ := s.Apply(create); !again.OK || again.MayHold(create) {
		t.Errorf("the second attempt to create: %+v", again)
	}
	if again, _ := s.Apply(update); again.OK {
		t.Errorf("the second attempt to update: %+v", again)
	}
}
