package history

import (
	"cmp"
	"math"
	"slices"
	"strings"
	"time"
)

// group is what is known about the keys up to the last slash: a namespace's objects, which one shard orders.
type group struct {
	// covered are the stretches of revisions of which some watch delivered every change, ascending and apart.
	covered []stretch
	// passed are revisions that every shard had passed that holds any of the keys, at a time, both ascending. shown are those of them that
	// were shown as a revision of these very keys or of a part of them: no later read may show a lower one. (Revisions of different
	// shards may differ by less than a shard's own step, so what another shard has shown is no measure.)
	passed, shown []floor
	// final is the revision of the last final read, 0 without one.
	final int64
}

// stretch is the revisions above after, up to through.
type stretch struct{ after, through int64 }

type floor struct {
	at       time.Duration
	revision int64
}

// groupOf is the prefix of a key up to and including its last slash.
func groupOf(key string) string { return key[:strings.LastIndexByte(key, '/')+1] }

// group collects what is known of the keys with a prefix that ends with a slash, once.
func (l *changeLog) group(prefix string) *group {
	if g := l.groups[prefix]; g != nil {
		return g
	}
	g := &group{}
	l.groups[prefix] = g
	for i := range l.h.Watches {
		g.watch(prefix, &l.h.Watches[i])
	}
	for i := range l.h.Operations {
		g.operation(prefix, &l.h.Operations[i])
	}
	ascend(g.passed)
	ascend(g.shown)
	g.covered = joined(g.covered)
	return g
}

// watch notes what a watch has told: of all of the group, or of a part of it.
func (g *group) watch(prefix string, w *Watch) {
	wider, part := strings.HasPrefix(prefix, w.Key), strings.HasPrefix(w.Key, prefix)
	if wider {
		g.covered = append(g.covered, w.stretch())
	}
	if !wider && !part {
		return
	}
	for i := range w.Events {
		event := &w.Events[i]
		if !event.change() && event.Kind != Bookmark && event.Kind != InitialEnd {
			continue
		}
		at := floor{event.At, event.Object.Revision}
		if wider {
			g.passed = append(g.passed, at)
		}
		if part || event.change() && strings.HasPrefix(event.Object.Key, prefix) {
			g.shown = append(g.shown, at)
		}
	}
}

func (g *group) operation(prefix string, op *Operation) {
	if op.Outcome != OK {
		return
	}
	switch {
	case op.Kind == List:
		// One at "any" may come from a replica that lags behind, but its revision had been passed all the same. One that answers with the
		// very revision that it was asked for has shown none of its own.
		at := floor{op.Return, op.ListRevision}
		if strings.HasPrefix(prefix, op.Key) {
			g.passed = append(g.passed, at)
			if op.Final {
				g.final = max(g.final, op.ListRevision)
			}
		}
		if strings.HasPrefix(op.Key, prefix) && op.ListRevision != op.Revision {
			g.shown = append(g.shown, at)
		}
	case op.writes() && op.Object != nil && strings.HasPrefix(op.Key, prefix):
		at := floor{op.Return, op.Object.Revision}
		g.shown = append(g.shown, at)
		if groupOf(op.Key) == prefix {
			g.passed = append(g.passed, at)
		}
	}
}

// ascend sorts by time and lets revisions never fall.
func ascend(floors []floor) {
	slices.SortFunc(floors, func(a, b floor) int { return cmp.Compare(a.at, b.at) })
	for i := 1; i < len(floors); i++ {
		floors[i].revision = max(floors[i].revision, floors[i-1].revision)
	}
}

// joined are the same stretches, ascending and apart.
func joined(stretches []stretch) []stretch {
	slices.SortFunc(stretches, func(a, b stretch) int { return cmp.Compare(a.after, b.after) })
	var apart []stretch
	for _, s := range stretches {
		if n := len(apart); n > 0 && s.after <= apart[n-1].through {
			apart[n-1].through = max(apart[n-1].through, s.through)
		} else if s.through > s.after {
			apart = append(apart, s)
		}
	}
	return apart
}

// before is the revision of the last of the floors before a moment, 0 if there is none.
func before(floors []floor, moment time.Duration) int64 {
	n, _ := slices.BinarySearchFunc(floors, moment, func(f floor, t time.Duration) int { return cmp.Compare(f.at, t) })
	if n == 0 {
		return 0
	}
	return floors[n-1].revision
}

// covers says that every change above after, up to through, was delivered to some watch.
func (g *group) covers(after, through int64) bool {
	return after >= through || slices.ContainsFunc(g.covered, func(s stretch) bool { return s.after <= after && through <= s.through })
}

// stretch is the revisions of which the watch delivered every change: none, as long as it has not told where it begins.
func (w *Watch) stretch() stretch {
	s := stretch{after: w.After, through: w.After}
	if w.After == 0 {
		s = stretch{after: math.MaxInt64, through: 0}
	}
	for i := range w.Events {
		switch event := &w.Events[i]; {
		case event.Kind == InitialEnd:
			s = stretch{after: event.Object.Revision, through: event.Object.Revision}
		case event.change() || event.Kind == Bookmark:
			s.through = max(s.through, event.Object.Revision)
		}
	}
	return s
}
