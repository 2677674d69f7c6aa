package history

import (
	"bytes"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestGoodHistoriesPass: what a store that keeps all promises can show is never blamed, unknown outcomes and late effects included.
func TestGoodHistoriesPass(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := drawHistory(t)
		for _, v := range Check(h, Options{}) {
			t.Error(v)
		}
	})
}

// TestGoodHistoriesPassUnwatched: the same where no watch tells which writes of unknown outcome took effect, and at which revision.
func TestGoodHistoriesPassUnwatched(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := drawHistory(t)
		h.Watches = nil
		for _, v := range Check(h, Options{}) {
			t.Error(v)
		}
	})
}

// TestUnknownWritesAreReadAtOneRevision: a write of unknown outcome that no watch covers may be read, but everywhere as the same version, never
// after what came later, and not once something else is known to have been there all the time.
func TestUnknownWritesAreReadAtOneRevision(t *testing.T) {
	made := Object{Key: "t/a", UID: "1", Value: "v1", Revision: 10}
	create := Operation{ID: 1, Kind: Create, Key: "t/a", Value: "v1", Invoke: 1, Return: 2, Outcome: Unknown}
	get := func(id int, at time.Duration, o Object) Operation {
		return Operation{ID: id, Client: id, Kind: Get, Key: "t/a", Invoke: at, Return: at + 1, Outcome: OK, Object: &o}
	}
	update := func(id int, at time.Duration, known int64) Operation {
		return Operation{ID: id, Client: id, Kind: Update, Key: "t/a", Value: "v2", Precondition: known, Invoke: at, Return: at + 1, Outcome: OK,
			Object: &Object{Key: "t/a", UID: "1", Value: "v2", Revision: 20}}
	}
	later, other := made, made
	later.Revision, other.Value = 15, "v3"
	for name, c := range map[string]struct {
		operations []Operation
		good       bool
	}{
		"read twice":                             {[]Operation{create, get(2, 5, made), get(3, 7, made)}, true},
		"read at two revisions":                  {[]Operation{create, get(2, 5, made), get(3, 7, later)}, false},
		"changed by somebody who knows":          {[]Operation{create, update(2, 5, 10), get(3, 7, Object{Key: "t/a", UID: "1", Value: "v2", Revision: 20})}, true},
		"read before, and changed":               {[]Operation{create, get(2, 5, made), update(3, 7, 10)}, true},
		"read at one revision, changed at other": {[]Operation{create, get(2, 5, made), update(3, 7, 15)}, false},
		"read after it was changed":              {[]Operation{create, update(2, 5, 10), get(3, 7, made)}, false},
		"read as what nobody wrote":              {[]Operation{create, get(2, 5, other)}, false},
	} {
		found := Check(&History{Operations: c.operations}, Options{})
		if good := len(found) == 0; good != c.good {
			t.Errorf("%s: found %v", name, found)
		}
	}
}

// breaks are the ways in which a store may break a promise. Each changes a good history and says whether it could.
var breaks = []struct {
	name     string
	checkers []string
	do       func(t *rapid.T, h *History) bool
}{
	{"a watch leaves a change out", []string{CheckReliable, CheckResumable}, func(t *rapid.T, h *History) bool {
		w, i := drawEvent(t, h, func(e *Event) bool { return e.change() })
		if w == nil || i == len(w.Events)-1 || !known(h, w, i) {
			return false
		}
		w.Events = slices.Delete(w.Events, i, i+1)
		return true
	}},
	{"a watch delivers a change twice", []string{CheckUnique}, func(t *rapid.T, h *History) bool {
		w, i := drawEvent(t, h, func(e *Event) bool { return e.change() })
		if w == nil {
			return false
		}
		w.Events = slices.Insert(w.Events, i+1, w.Events[i])
		return true
	}},
	{"a watch swaps two changes", []string{CheckOrdered}, func(t *rapid.T, h *History) bool {
		w, i := drawEvent(t, h, func(e *Event) bool { return e.change() })
		if w == nil || i == 0 || !w.Events[i-1].change() {
			return false
		}
		w.Events[i], w.Events[i-1] = w.Events[i-1], w.Events[i]
		return true
	}},
	{"a bookmark promises too much", []string{CheckBookmarkable, CheckReliable, CheckResumable}, func(t *rapid.T, h *History) bool {
		w, i := drawEvent(t, h, func(e *Event) bool { return e.Kind == Bookmark })
		if w == nil {
			return false
		}
		later := slices.IndexFunc(w.Events[i:], func(e Event) bool { return e.change() })
		if later < 0 {
			return false
		}
		w.Events[i].Object.Revision = w.Events[i+later].Object.Revision
		return true
	}},
	{"a resumed watch begins too early", []string{CheckResumable}, func(t *rapid.T, h *History) bool {
		w, i := drawEvent(t, h, func(e *Event) bool { return e.change() })
		if w == nil || w.After == 0 {
			return false
		}
		w.After = w.Events[i].Object.Revision
		return true
	}},
	{"a watch delivers another value", []string{CheckUnique}, func(t *rapid.T, h *History) bool {
		w, i := drawEvent(t, h, func(e *Event) bool { return e.Kind == Added || e.Kind == Modified })
		if w == nil || !known(h, w, i) {
			return false
		}
		w.Events[i].Object.Value = "another"
		return true
	}},
	{"a watch begins with an old object", []string{CheckReliable}, func(t *rapid.T, h *History) bool {
		w, i := drawEvent(t, h, func(e *Event) bool { return e.Kind == Initial })
		if w == nil {
			return false
		}
		w.Events[i].Object.Revision--
		return true
	}},
	{"a linearizable read is stale", []string{CheckLinearizable}, func(t *rapid.T, h *History) bool {
		op := drawOperation(t, h, func(o *Operation) bool {
			return o.Kind == Get && o.Consistency == Linearizable && o.Outcome == OK && o.Object != nil
		})
		if op == nil {
			return false
		}
		old := *op.Object
		old.Revision--
		op.Object = &old
		return true
	}},
	{"a read may be stale, but this never was", []string{CheckReads}, func(t *rapid.T, h *History) bool {
		op := drawOperation(t, h, func(o *Operation) bool { return o.Kind == Get && o.Consistency != Linearizable && o.Object != nil })
		if op == nil {
			return false
		}
		never := *op.Object
		never.Value = "never"
		op.Object = &never
		return true
	}},
	{"a read is older than it was asked to be", []string{CheckReads}, func(t *rapid.T, h *History) bool {
		op := drawOperation(t, h, func(o *Operation) bool {
			return o.Kind == Get && o.Consistency == NotOlder && o.Outcome == OK && o.Object != nil
		})
		if op == nil {
			return false
		}
		// A revision that a later change had passed.
		for _, e := range h.Watches[0].Events {
			if e.change() && e.Object.Key == op.Key && e.Object.Revision > op.Object.Revision {
				op.Revision = e.Object.Revision
				return true
			}
		}
		return false
	}},
	{"a list leaves an object out", []string{CheckReads}, func(t *rapid.T, h *History) bool {
		op := drawOperation(t, h, func(o *Operation) bool { return o.Kind == List && o.Consistency != Any && len(o.Items) > 0 })
		if op == nil {
			return false
		}
		op.Items = op.Items[1:]
		return true
	}},
	{"a linearizable list is stale", []string{CheckReads}, func(t *rapid.T, h *History) bool {
		op := drawOperation(t, h, func(o *Operation) bool { return o.Final })
		changes := slices.DeleteFunc(slices.Clone(h.Watches[0].Events), func(e Event) bool { return !e.change() || !strings.HasPrefix(e.Object.Key, op.Key) })
		if len(changes) == 0 {
			return false
		}
		op.ListRevision = changes[len(changes)-1].Object.Revision - 1
		return true
	}},
	{"a client sees an object go back", []string{CheckMonotonic}, func(t *rapid.T, h *History) bool {
		op := drawOperation(t, h, func(o *Operation) bool {
			return o.Kind == Get && o.Consistency == Linearizable && o.Outcome == OK && o.Object != nil
		})
		if op == nil {
			return false
		}
		newer, earlier := *op.Object, *op
		newer.Revision++
		earlier.ID, earlier.Consistency, earlier.Object = len(h.Operations)+len(h.Watches)+1, Any, &newer
		earlier.Invoke, earlier.Return = op.Invoke-2, op.Invoke-1
		h.Operations = append(h.Operations, earlier)
		return true
	}},
	{"an acknowledged write is lost", []string{CheckDurable}, func(t *rapid.T, h *History) bool {
		final := drawOperation(t, h, func(o *Operation) bool { return o.Final })
		acknowledged := func(item Object) bool {
			return !slices.ContainsFunc(h.Operations, func(o Operation) bool { return o.Key == item.Key && o.Kind == Delete && o.Outcome != Failed }) &&
				slices.ContainsFunc(h.Operations, func(o Operation) bool { return o.Object != nil && o.writes() && *o.Object == item })
		}
		i := slices.IndexFunc(final.Items, acknowledged)
		if i < 0 {
			return false
		}
		final.Items = slices.Delete(final.Items, i, i+1)
		return true
	}},
	{"a write that was refused takes effect", []string{CheckLinearizable}, func(t *rapid.T, h *History) bool {
		w, i := drawEvent(t, h, func(e *Event) bool { return e.Kind == Added || e.Kind == Modified })
		if w == nil {
			return false
		}
		for j := range h.Operations {
			if o := &h.Operations[j]; o.Value == w.Events[i].Object.Value {
				o.Outcome, o.Failure, o.Object = Failed, Refused, nil
			}
		}
		return true
	}},
	{"a write takes effect twice", []string{CheckUnique}, func(t *rapid.T, h *History) bool {
		w, i := drawEvent(t, h, func(e *Event) bool { return e.Kind == Modified })
		if w == nil {
			return false
		}
		again := w.Events[i]
		again.Object.Revision = w.Events[len(w.Events)-1].Object.Revision + 1
		w.Events = append(w.Events, again)
		return true
	}},
	{"a bookmark cuts a transaction", []string{CheckAtomic}, func(t *rapid.T, h *History) bool {
		w, i := drawEvent(t, h, func(e *Event) bool { return e.change() })
		if w == nil || i+1 >= len(w.Events) || !w.Events[i+1].change() {
			return false
		}
		first, last := w.Events[i].Object.Revision, w.Events[i+1].Object.Revision
		h.Transactions = [][]int64{{first, last}}
		w.Events = slices.Insert(w.Events, i+1, Event{Kind: Bookmark, At: w.Events[i].At, Object: Object{Revision: first}})
		return true
	}},
}

// known says that others know of a change too, so that its loss can be noticed.
func known(h *History, w *Watch, i int) bool {
	revision := w.Events[i].Object.Revision
	for j := range h.Operations {
		if o := &h.Operations[j]; o.writes() && o.Object != nil && o.Object.Revision == revision {
			return true
		}
	}
	for j := range h.Watches {
		if other := &h.Watches[j]; other.ID != w.ID && slices.ContainsFunc(other.Events, func(e Event) bool { return e.change() && e.Object.Revision == revision }) {
			return true
		}
	}
	return false
}

func drawEvent(t *rapid.T, h *History, wanted func(*Event) bool) (*Watch, int) {
	w := &h.Watches[rapid.IntRange(0, len(h.Watches)-1).Draw(t, "watch")]
	var found []int
	for i := range w.Events {
		if wanted(&w.Events[i]) {
			found = append(found, i)
		}
	}
	if len(found) == 0 {
		return nil, 0
	}
	return w, rapid.SampledFrom(found).Draw(t, "event")
}

func drawOperation(t *rapid.T, h *History, wanted func(*Operation) bool) *Operation {
	var found []*Operation
	for i := range h.Operations {
		if wanted(&h.Operations[i]) {
			found = append(found, &h.Operations[i])
		}
	}
	if len(found) == 0 {
		return nil
	}
	return rapid.SampledFrom(found).Draw(t, "operation")
}

// TestBrokenPromisesAreFound breaks one promise in a good history; the checker that guards it must say so.
func TestBrokenPromisesAreFound(t *testing.T) {
	for _, broken := range breaks {
		t.Run(broken.name, func(t *testing.T) {
			times := 0
			rapid.Check(t, func(t *rapid.T) {
				h := drawHistory(t)
				if !broken.do(t, h) {
					return
				}
				times++
				found := Check(h, Options{})
				if !slices.ContainsFunc(found, func(v Violation) bool { return slices.Contains(broken.checkers, v.Checker) }) {
					t.Errorf("not found by %v, but: %v", broken.checkers, found)
				}
			})
			if times < 3 {
				t.Errorf("only %d histories could be broken so", times)
			}
		})
	}
}

// TestHistoriesReadBack: a history file holds all that was recorded.
func TestHistoriesReadBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := drawHistory(t)
		h.Faults = []Fault{{Kind: "kill", What: "kill peer-1", Peers: []string{"peer-1"}, Begin: 1, End: 2, Minority: true}}
		h.Transactions = [][]int64{{1, 2}}
		var file bytes.Buffer
		if err := Write(&file, h); err != nil {
			t.Fatal(err)
		}
		again, err := Read(&file)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(h, again) {
			t.Errorf("wrote %+v, read %+v", h, again)
		}
	})
}

func TestBadFilesAreRefused(t *testing.T) {
	for text, want := range map[string]string{
		"{}\n":                                "line 1 of the history: none of",
		"{\"meta\":{}}\n\n{\"operation\":":    "line 3 of the history: unexpected EOF",
		"{\"surprise\":{}}":                   "line 1 of the history: json: unknown field",
		"{\"meta\":{\"seed\":1}}\nnot json\n": "line 2 of the history: invalid character",
	} {
		if _, err := Read(strings.NewReader(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte("{\"meta\":{\"seed\":1}}\n{\"operation\":{\"kind\":\"get\",\"key\":\"a/b\"}}\n{\"watch\":{\"events\":[{\"kind\":\"added\"}]}}\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		h, err := Read(bytes.NewReader(text))
		if err != nil {
			return
		}
		// Whatever can be read can be judged and written.
		Check(h, Options{})
		if err := Write(&bytes.Buffer{}, h); err != nil {
			t.Error(err)
		}
	})
}

// TestListsWithoutQuorum: a list at "any" over several groups may show each of them at another moment, but each as it was.
func TestListsWithoutQuorum(t *testing.T) {
	object := func(key, value string, revision int64) Object {
		return Object{Key: key, UID: key, Value: value, Revision: revision}
	}
	create := func(id int, made Object) Operation {
		return Operation{ID: id, Kind: Create, Key: made.Key, Value: made.Value, Invoke: 1, Return: 2, Outcome: OK, Object: &made}
	}
	a1, a2, b1 := object("t/a/1", "v1", 10), object("t/a/2", "v2", 20), object("t/b/1", "v3", 30)
	list := Operation{ID: 4, Kind: List, Key: "t/", Consistency: Any, Invoke: 3, Return: 4, Outcome: OK, ListRevision: 5, Items: []Object{a1, b1}}
	h := &History{Operations: []Operation{create(1, a1), create(2, a2), create(3, b1), list}}
	if found := Check(h, Options{}); len(found) > 0 {
		t.Errorf("group a at 10 and group b at 30 are states that were: %v", found)
	}
	h.Operations[3].Items = []Object{a2, b1}
	if found := Check(h, Options{}); len(found) != 1 || found[0].Checker != CheckReads {
		t.Errorf("t/a/2 was never there without t/a/1: %v", found)
	}
	h.Operations[3].Consistency = Linearizable
	h.Operations[3].Items = []Object{a1, b1}
	if found := Check(h, Options{}); len(found) != 1 || found[0].Checker != CheckReads {
		t.Errorf("a linearizable list has one revision: %v", found)
	}
}
