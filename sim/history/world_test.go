package history

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"pgregory.net/rapid"
)

const (
	beat  = 10 * time.Millisecond // between the moments at which operations take effect
	began = 1000                  // the revision before all
)

var worldKeys = []string{"things/a/1", "things/a/2", "things/b/1", "things/b/2"}

// world is a store that keeps all promises, and records what clients see of it.
type world struct {
	t        *rapid.T
	h        *History
	now      time.Duration
	revision int64
	changes  []Event // At is when the change took effect
	names    int
}

// drawHistory is a history of a store that keeps all promises.
func drawHistory(t *rapid.T) *History {
	w := &world{t: t, h: &History{Meta: Meta{Seed: 1}}, revision: began, now: time.Second}
	for range rapid.IntRange(20, 60).Draw(t, "operations") {
		w.now += beat
		w.operation()
	}
	w.now += time.Second
	for _, prefix := range []string{"things/a/", "things/b/", "things/"} {
		op := w.begin(List, prefix)
		op.Final = true
		w.list(op, w.revision)
		w.end(op)
	}
	w.watches()
	return w.h
}

func (w *world) name(prefix string) string { w.names++; return fmt.Sprintf("%s-%d", prefix, w.names) }

// begin starts an operation that takes effect now.
func (w *world) begin(kind Kind, key string) *Operation {
	w.names++
	return &Operation{ID: w.names, Client: rapid.IntRange(1, 4).Draw(w.t, "client"), Peer: "peer-1", Kind: kind, Key: key, Outcome: OK,
		Invoke: w.now - time.Duration(rapid.IntRange(0, 30).Draw(w.t, "before"))*time.Millisecond,
		Return: w.now + time.Duration(rapid.IntRange(1, 30).Draw(w.t, "after"))*time.Millisecond}
}

func (w *world) end(op *Operation) { w.h.Operations = append(w.h.Operations, *op) }

// at is an object at a revision, nil if it was not there.
func (w *world) at(key string, revision int64) *Object {
	var found *Object
	for i := range w.changes {
		if c := &w.changes[i]; c.Object.Key == key && c.Object.Revision <= revision {
			if found = &c.Object; c.Kind == Deleted {
				found = nil
			}
		}
	}
	return found
}

func (w *world) operation() {
	key := rapid.SampledFrom(worldKeys).Draw(w.t, "key")
	kind := rapid.SampledFrom([]Kind{Get, Get, List, Create, Update, Update, Delete}).Draw(w.t, "kind")
	op := w.begin(kind, key)
	defer w.end(op)
	if kind == Get || kind == List {
		w.read(op)
		return
	}
	now := w.at(key, w.revision)
	if kind != Create && rapid.Bool().Draw(w.t, "guarded") {
		op.Precondition = w.revision // mostly another object's
		if now != nil && rapid.IntRange(0, 3).Draw(w.t, "right") > 0 {
			op.Precondition = now.Revision
		}
	}
	if kind != Delete {
		op.Value = w.name("value")
	}
	luck := rapid.IntRange(0, 9).Draw(w.t, "luck")
	if luck == 0 {
		op.Outcome, op.Failure = Failed, Refused
		return
	}
	if luck <= 2 {
		op.Outcome = Unknown
		if rapid.Bool().Draw(w.t, "late") {
			op.Return = op.Invoke + time.Millisecond // the effect comes after the client gave up
		}
	}
	if op.Failure = w.write(op, now, luck != 1); op.Failure != "" {
		if op.Outcome == OK {
			op.Outcome = Failed
		} else {
			op.Failure = ""
		}
	}
}

// write takes effect, unless it must not or the answer was lost on the way there.
func (w *world) write(op *Operation, now *Object, arrives bool) Failure {
	switch {
	case !arrives:
		return ""
	case op.Kind == Create && now != nil:
		return Exists
	case op.Kind != Create && now == nil:
		return Absent
	case op.Precondition != 0 && now.Revision != op.Precondition:
		return Conflict
	}
	w.revision += int64(rapid.IntRange(1, 3).Draw(w.t, "step"))
	made := Object{Key: op.Key, Value: op.Value, Revision: w.revision}
	kind := Modified
	switch op.Kind {
	case Create:
		kind, made.UID = Added, w.name("uid")
	case Update:
		made.UID = now.UID
	default:
		kind, made.UID = Deleted, now.UID
	}
	w.changes = append(w.changes, Event{Kind: kind, At: w.now, Object: made})
	if op.Outcome == OK && kind == Deleted {
		op.Deleted = made.UID
	} else if op.Outcome == OK {
		op.Object = &made
	}
	return ""
}

func (w *world) read(op *Operation) {
	past := int64(rapid.IntRange(began, int(w.revision)).Draw(w.t, "past"))
	op.Consistency = rapid.SampledFrom([]Consistency{Linearizable, Linearizable, Any, NotOlder, Exact}).Draw(w.t, "consistency")
	if op.Kind == Get && op.Consistency == Exact {
		op.Consistency = Linearizable
	}
	shown := w.revision
	switch op.Consistency {
	case Any:
		shown = past
	case Exact:
		op.Revision, shown = past, past
	case NotOlder:
		op.Revision = past
		shown = int64(rapid.IntRange(int(past), int(w.revision)).Draw(w.t, "shown"))
	}
	if rapid.IntRange(0, 9).Draw(w.t, "lost") == 0 {
		op.Outcome = Unknown
		return
	}
	if op.Kind == Get {
		op.Object = w.at(op.Key, shown)
		return
	}
	op.Key = rapid.SampledFrom([]string{"things/", "things/a/", "things/b/"}).Draw(w.t, "prefix")
	w.list(op, shown)
}

func (w *world) list(op *Operation, revision int64) {
	op.ListRevision = revision
	for _, key := range worldKeys {
		if object := w.at(key, revision); object != nil && strings.HasPrefix(key, op.Key) {
			op.Items = append(op.Items, *object)
		}
	}
}

// watches are one that sees everything, and some that are resumed in the middle, or begin there with what is there.
func (w *world) watches() {
	all := Watch{ID: w.names + 1, Peer: "peer-1", Key: "things/", Opened: time.Millisecond}
	all.Events = append([]Event{{Kind: InitialEnd, At: time.Millisecond, Object: Object{Revision: began}}}, w.stream("things/", began, w.revision)...)
	w.h.Watches = append(w.h.Watches, all)
	for n := range rapid.IntRange(1, 4).Draw(w.t, "watches") {
		prefix := rapid.SampledFrom([]string{"things/", "things/a/", "things/b/"}).Draw(w.t, "watched")
		after := int64(rapid.IntRange(began, int(w.revision)).Draw(w.t, "resumed"))
		through := int64(rapid.IntRange(int(after), int(w.revision)).Draw(w.t, "through"))
		some := Watch{ID: w.names + 2 + n, Peer: "peer-2", Key: prefix, After: after, Invoke: time.Millisecond, Opened: time.Millisecond}
		if rapid.Bool().Draw(w.t, "initial") {
			some.After = 0
			for _, key := range worldKeys {
				if object := w.at(key, after); object != nil && strings.HasPrefix(key, prefix) {
					some.Events = append(some.Events, Event{Kind: Initial, At: w.now, Object: *object})
				}
			}
			some.Events = append(some.Events, Event{Kind: InitialEnd, At: w.now, Object: Object{Revision: after}})
		}
		some.Events = append(some.Events, w.stream(prefix, after, through)...)
		w.h.Watches = append(w.h.Watches, some)
	}
	slices.SortFunc(w.h.Operations, func(a, b Operation) int { return cmp.Compare(a.Invoke, b.Invoke) })
}

// stream are the changes of a stretch, with bookmarks between them and one at the end.
func (w *world) stream(prefix string, after, through int64) []Event {
	var events []Event
	for _, c := range w.changes {
		if c.Object.Revision <= after || c.Object.Revision > through {
			continue
		}
		if rapid.IntRange(0, 4).Draw(w.t, "bookmark") == 0 {
			events = append(events, Event{Kind: Bookmark, At: c.At, Object: Object{Revision: c.Object.Revision - 1}})
		}
		if strings.HasPrefix(c.Object.Key, prefix) {
			c.At += time.Duration(rapid.IntRange(0, 20).Draw(w.t, "lag")) * time.Microsecond
			events = append(events, c)
		}
	}
	return append(events, Event{Kind: Bookmark, At: w.now, Object: Object{Revision: through}})
}
