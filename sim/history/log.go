package history

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// change is one change of one object that is known to have happened.
type change struct {
	Object
	deleted bool
	// seen is when somebody first knew of it.
	seen time.Duration
	// writer is the operation that made it, nil if that is not known.
	writer *Operation
}

// sight is an object that a read has shown, and when the first one did.
type sight struct {
	Object
	seen time.Duration
}

// changeLog is what is known to have happened: the acknowledged writes and what any watch delivered, in the order of revisions.
type changeLog struct {
	changes []change
	// keys are the indexes of each key's changes.
	keys map[string][]int
	// attempts are the creations and updates by what they wrote, values the changes by theirs.
	attempts map[string]*Operation
	values   map[string]int
	// shown are, by value, the objects that reads have shown of writes whose outcome nobody was told.
	shown map[string]sight
	// deletions are the acknowledged deletions by UID; removed the known changes that delete a UID.
	deletions map[string]*Operation
	removed   map[string]int
	// doubts are keys of which something may have happened that no change tells: writes of unknown outcome, deletions without event.
	doubts map[string]bool
	// begun is when somebody first tried to change a key.
	begun map[string]time.Duration

	groups map[string]*group
	h      *History
}

// newLog collects what happened, and finds what contradicts itself already.
func newLog(h *History) (*changeLog, []Violation) {
	l := &changeLog{
		keys: map[string][]int{}, attempts: map[string]*Operation{}, values: map[string]int{}, deletions: map[string]*Operation{},
		shown: map[string]sight{}, removed: map[string]int{}, doubts: map[string]bool{}, begun: map[string]time.Duration{},
		groups: map[string]*group{}, h: h,
	}
	var found []Violation
	for i := range h.Operations {
		op := &h.Operations[i]
		if first, known := l.begun[op.Key]; op.writes() && (!known || op.Invoke < first) {
			l.begun[op.Key] = op.Invoke
		}
		if op.Kind == Create || op.Kind == Update {
			l.attempts[op.Value] = op
		}
		if op.Kind == Delete && op.Outcome == OK && op.Deleted != "" {
			l.deletions[op.Deleted] = op
		}
	}
	l.lookAtReads()
	collector := collector{changeLog: l, at: map[int64]int{}}
	collector.collect(h)
	found = append(found, collector.found...)
	slices.SortStableFunc(l.changes, func(a, b change) int { return cmp.Compare(a.Revision, b.Revision) })
	for i := range l.changes {
		found = append(found, l.index(i)...)
	}
	for i := range h.Operations {
		if op := &h.Operations[i]; op.writes() && l.hidden(op) {
			l.doubts[op.Key] = true
		}
	}
	return l, found
}

// lookAtReads finds what reads tell of writes of unknown outcome.
func (l *changeLog) lookAtReads() {
	show := func(o Object, at time.Duration) {
		if writer := l.attempts[o.Value]; writer == nil || writer.Outcome != Unknown {
			return
		}
		if first, known := l.shown[o.Value]; !known || at < first.seen {
			l.shown[o.Value] = sight{o, at}
		}
	}
	for i := range l.h.Operations {
		op := &l.h.Operations[i]
		if op.writes() || op.Outcome != OK {
			continue
		}
		if op.Object != nil {
			show(*op.Object, op.Return)
		}
		for _, item := range op.Items {
			show(item, op.Return)
		}
	}
	for i := range l.h.Watches {
		for _, event := range l.h.Watches[i].Events {
			if event.Kind == Initial {
				show(event.Object, event.At)
			}
		}
	}
}

// hidden says that a write may have changed something at a revision that is not known.
func (l *changeLog) hidden(op *Operation) bool {
	switch {
	case op.Outcome == Failed:
		return false
	case op.Kind != Delete:
		_, known := l.values[op.Value]
		return !known
	case op.Outcome == OK && op.Deleted != "":
		_, known := l.removed[op.Deleted]
		return !known
	default:
		return true
	}
}

// index enters a change, in the order of revisions, and judges it by what is known of its writer.
func (l *changeLog) index(i int) []Violation {
	c := &l.changes[i]
	l.keys[c.Key] = append(l.keys[c.Key], i)
	if c.deleted {
		if first, twice := l.removed[c.UID]; twice && c.UID != "" {
			return []Violation{l.contradiction(CheckUnique, c, "it was deleted at %d and again at %d", l.changes[first].Revision, c.Revision)}
		}
		l.removed[c.UID] = i
		c.writer = l.deletions[c.UID]
		return nil
	}
	if first, twice := l.values[c.Value]; twice {
		return []Violation{l.contradiction(CheckUnique, c, "%q was written once and took effect twice, at %d and at %d", c.Value, l.changes[first].Revision, c.Revision)}
	}
	l.values[c.Value] = i
	c.writer = l.attempts[c.Value]
	switch {
	case c.writer == nil:
		return []Violation{l.contradiction(CheckReads, c, "%q at %d was written by nobody", c.Value, c.Revision)}
	case c.writer.Key != c.Key:
		return []Violation{l.contradiction(CheckReads, c, "%q at %d was written to %s", c.Value, c.Revision, c.writer.Key)}
	case c.writer.Outcome == Failed:
		return []Violation{l.contradiction(CheckLinearizable, c, "%s was refused (%s), but took effect at %d", describe(c.writer), c.writer.Error, c.Revision)}
	}
	return nil
}

func (l *changeLog) contradiction(checker string, c *change, format string, args ...any) Violation {
	v := Violation{Checker: checker, At: c.seen, Key: c.Key, Message: fmt.Sprintf(format, args...)}
	if c.writer != nil {
		v.Operations = []int{c.writer.ID}
	}
	return v
}

// collector joins what several have seen of the same change.
type collector struct {
	*changeLog
	at    map[int64]int
	found []Violation
}

func (c *collector) collect(h *History) {
	for i := range h.Operations {
		op := &h.Operations[i]
		if (op.Kind == Create || op.Kind == Update) && op.Outcome == OK && op.Object != nil {
			c.add(change{Object: *op.Object, seen: op.Return}, op.ID, -1)
		}
	}
	for i := range h.Watches {
		w := &h.Watches[i]
		for j := range w.Events {
			if event := &w.Events[j]; event.change() {
				c.add(change{Object: event.Object, deleted: event.Kind == Deleted, seen: event.At}, -1, w.ID)
			}
		}
	}
}

// add joins a change with what is known at its revision. Two different changes at one revision are a violation.
func (c *collector) add(next change, operation, watch int) {
	known, ok := c.at[next.Revision]
	if !ok {
		c.at[next.Revision] = len(c.changes)
		c.changes = append(c.changes, next)
		return
	}
	have := &c.changes[known]
	same := have.Key == next.Key && have.deleted == next.deleted && have.UID == next.UID && (have.deleted || have.Value == next.Value)
	have.seen = min(have.seen, next.seen)
	if same {
		return
	}
	v := Violation{Checker: CheckUnique, At: next.seen, Key: next.Key,
		Message: fmt.Sprintf("revision %d is %s and also %s", next.Revision, have, &next)}
	if operation >= 0 {
		v.Operations = []int{operation}
	}
	if watch >= 0 {
		v.Watches = []int{watch}
	}
	c.found = append(c.found, v)
}

func (c *change) String() string {
	if c.deleted {
		return fmt.Sprintf("the deletion of %s (%s)", c.Key, c.UID)
	}
	return fmt.Sprintf("%s = %q (%s)", c.Key, c.Value, c.UID)
}

// at is the object's last change at or below a revision, nil if it was never there. certain says that nothing unknown can have come
// between that change and the revision.
func (l *changeLog) at(key string, revision int64) (last *change, certain bool) {
	indexes := l.keys[key]
	n, _ := slices.BinarySearchFunc(indexes, revision+1, func(i int, r int64) int { return cmp.Compare(l.changes[i].Revision, r) })
	var from int64
	if n > 0 {
		last = &l.changes[indexes[n-1]]
		from = last.Revision
	}
	if !l.doubts[key] {
		return last, true
	}
	g := l.group(groupOf(key))
	if from == 0 && len(g.covered) > 0 {
		// Before the first change that is known: nothing was written before the recording.
		from = min(revision, max(before(g.passed, l.begun[key]), g.covered[0].after))
	}
	return last, g.covers(from, revision)
}

// next is the change of the object that follows a revision, nil if there is none.
func (l *changeLog) next(key string, revision int64) *change {
	indexes := l.keys[key]
	n, _ := slices.BinarySearchFunc(indexes, revision+1, func(i int, r int64) int { return cmp.Compare(l.changes[i].Revision, r) })
	if n == len(indexes) {
		return nil
	}
	return &l.changes[indexes[n]]
}

// keysBelow lists the keys with a prefix of which anything is known, in order.
func (l *changeLog) keysBelow(prefix string) []string {
	var keys []string
	for key := range maps.Keys(l.keys) {
		if strings.HasPrefix(key, prefix) {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return keys
}

// describe says what an operation asks for.
func describe(op *Operation) string {
	text := fmt.Sprintf("%s %s", op.Kind, op.Key)
	if op.Consistency != Linearizable {
		text += " " + string(op.Consistency)
	}
	if op.Revision != 0 {
		text += fmt.Sprintf(" %d", op.Revision)
	}
	if op.Precondition != 0 {
		text += fmt.Sprintf(" if at %d", op.Precondition)
	}
	if op.Value != "" {
		text += fmt.Sprintf(" = %q", op.Value)
	}
	return text
}
