package history

import (
	"fmt"
	"time"
)

// sighting is what one client saw a revision of: an object, or, by a key that ends with a slash, everything below it.
type sighting struct {
	client int
	key    string
}

// sightings are, for each client, the revisions that it has seen so far, in the order of time.
type sightings map[sighting][]floor

func (s sightings) add(client int, key string, at time.Duration, revision int64) {
	if revision != 0 {
		id := sighting{client, key}
		s[id] = append(s[id], floor{at, revision})
	}
}

// before is the highest revision that a client had seen of a key before a moment.
func (s sightings) before(client int, key string, moment time.Duration) int64 {
	return before(s[sighting{client, key}], moment)
}

// checkMonotonic holds that no client sees a revision go back, whichever peer it asks: neither of an object nor of a list, unless it said
// that it does not mind (any), or named the past (exact).
func checkMonotonic(h *History) []Violation {
	seen := sightings{}
	for i := range h.Operations {
		seen.operation(&h.Operations[i])
	}
	for i := range h.Watches {
		seen.watch(&h.Watches[i])
	}
	for _, floors := range seen {
		ascend(floors)
	}
	var found []Violation
	for i := range h.Operations {
		op := &h.Operations[i]
		if why := seen.back(op); why != "" {
			found = append(found, Violation{Checker: CheckMonotonic, At: op.Return, Key: op.Key, Operations: []int{op.ID},
				Message: fmt.Sprintf("%s → %s, through %s: client %d %s", describe(op), answer(op), op.Peer, op.Client, why)})
		}
	}
	for i := range h.Watches {
		found = append(found, seen.rewound(&h.Watches[i])...)
	}
	return found
}

func (s sightings) operation(op *Operation) {
	if op.Outcome != OK || op.Consistency == Exact {
		return
	}
	if op.Object != nil {
		s.add(op.Client, op.Key, op.Return, op.Object.Revision)
	}
	for _, item := range op.Items {
		s.add(op.Client, item.Key, op.Return, item.Revision)
	}
	// A list at "any" names the lowest of the revisions that its shards were at, which some of them may have passed.
	if op.Kind == List && op.Consistency != Any {
		s.add(op.Client, op.Key, op.Return, op.ListRevision)
	}
}

func (s sightings) watch(w *Watch) {
	for i := range w.Events {
		switch event := &w.Events[i]; {
		case event.change(), event.Kind == Initial:
			s.add(w.Client, event.Object.Key, event.At, event.Object.Revision)
		case event.Kind == Bookmark, event.Kind == InitialEnd:
			s.add(w.Client, w.Key, event.At, event.Object.Revision)
		}
	}
}

// back says what a client had seen before that was newer than its answer, empty if nothing was.
func (s sightings) back(op *Operation) string {
	if op.Outcome != OK || op.Consistency != Linearizable && op.Consistency != NotOlder {
		return ""
	}
	had := func(key string) int64 {
		revision := s.before(op.Client, key, op.Invoke)
		if op.Consistency == NotOlder && revision > op.Revision {
			return 0 // it asked for less than it knew
		}
		return revision
	}
	objects := op.Items
	if op.Kind == Get && op.Object != nil {
		objects = []Object{*op.Object}
	}
	for _, object := range objects {
		if known := had(object.Key); object.Revision < known {
			return fmt.Sprintf("had seen %s at %d before", object.Key, known)
		}
	}
	if op.Kind == List {
		if known := had(op.Key); op.ListRevision < known {
			return fmt.Sprintf("had seen the state at %d before", known)
		}
	}
	return ""
}

// rewound finds the objects and the revision of a watch's beginning that are older than what its client had seen when it asked.
func (s sightings) rewound(w *Watch) []Violation {
	for i := range w.Events {
		event := &w.Events[i]
		key := event.Object.Key
		switch event.Kind {
		case InitialEnd:
			key = w.Key
		case Initial:
		default:
			continue
		}
		if had := s.before(w.Client, key, w.Invoke); event.Object.Revision < had {
			return []Violation{{Checker: CheckMonotonic, At: event.At, Key: key, Watches: []int{w.ID},
				Message: fmt.Sprintf("watch %d through %s begins with the state at %d; client %d had seen %d before", w.ID, w.Peer, event.Object.Revision, w.Client, had)}}
		}
	}
	return nil
}
