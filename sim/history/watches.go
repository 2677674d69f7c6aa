package history

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// checkWatches holds every watch to etcd's guarantees, against everything that is known to have happened.
func checkWatches(h *History, log *changeLog) []Violation {
	var found []Violation
	for i := range h.Watches {
		c := &watchChecker{w: &h.Watches[i], log: log, h: h}
		c.order()
		c.initial()
		c.complete()
		c.objects()
		c.atomic()
		found = append(found, c.found...)
	}
	return found
}

// watchChecker judges one watch.
type watchChecker struct {
	w     *Watch
	log   *changeLog
	h     *History
	found []Violation
}

func (c *watchChecker) violate(checker string, event *Event, format string, args ...any) {
	v := Violation{Checker: checker, At: c.w.Closed, Key: c.w.Key, Watches: []int{c.w.ID}, Message: fmt.Sprintf("watch %d through %s: ", c.w.ID, c.w.Peer) + fmt.Sprintf(format, args...)}
	if event != nil {
		v.At = event.At
		if event.Object.Key != "" {
			v.Key = event.Object.Key
		}
	}
	c.found = append(c.found, v)
}

// order holds a watch to ordered, unique and bookmarkable: revisions of changes only grow, and none lies at or below a bookmark that was
// delivered before, or the revision that the watch was resumed from.
func (c *watchChecker) order() {
	passed, told := c.w.After, c.w.After
	seen := map[int64]bool{}
	for i := range c.w.Events {
		event := &c.w.Events[i]
		revision := event.Object.Revision
		switch {
		case event.Kind == InitialEnd, event.Kind == Bookmark:
			if revision < told || event.Kind == Bookmark && revision < passed {
				c.violate(CheckBookmarkable, event, "the bookmark %d comes after %d", revision, max(passed, told))
			}
			told, passed = max(told, revision), max(passed, revision)
		case !event.change():
		case seen[revision]:
			c.violate(CheckUnique, event, "the change at %d was delivered twice", revision)
		case revision <= c.w.After:
			c.violate(CheckResumable, event, "the change at %d was delivered, though the watch was resumed after %d", revision, c.w.After)
		case revision <= told:
			c.violate(CheckBookmarkable, event, "the change at %d was delivered after the bookmark %d", revision, told)
		case revision <= passed:
			c.violate(CheckOrdered, event, "the change at %d was delivered after %d", revision, passed)
		}
		if event.change() {
			seen[revision] = true
			passed = max(passed, revision)
		}
	}
}

// initial compares the objects with which a watch began with the state at the revision that it named for them.
func (c *watchChecker) initial() {
	items := []Object{}
	for i := range c.w.Events {
		event := &c.w.Events[i]
		if event.Kind == Initial {
			items = append(items, event.Object)
		}
		if event.Kind != InitialEnd {
			continue
		}
		if why := c.log.differs(c.w.Key, event.Object.Revision, items); why != "" {
			c.violate(CheckReliable, event, "its initial state at %d is wrong: %s", event.Object.Revision, why)
		}
		if floor := before(c.log.group(groupOf(c.w.Key+"x")).shown, c.w.Invoke); event.Object.Revision < floor {
			c.violate(CheckReads, event, "its initial state is that at %d, but %d had been seen when it was asked for", event.Object.Revision, floor)
		}
	}
}

// complete holds a watch to reliable and resumable: up to the last revision that it told of, it has delivered every change.
func (c *watchChecker) complete() {
	has := map[int64]bool{}
	for i := range c.w.Events {
		if event := &c.w.Events[i]; event.change() {
			has[event.Object.Revision] = true
		}
	}
	s := c.w.stretch()
	first, _ := slices.BinarySearchFunc(c.log.changes, s.after+1, func(have change, revision int64) int { return cmp.Compare(have.Revision, revision) })
	delivered := false
	for i := first; i < len(c.log.changes) && c.log.changes[i].Revision <= s.through; i++ {
		missed := &c.log.changes[i]
		if !strings.HasPrefix(missed.Key, c.w.Key) {
			continue
		}
		if has[missed.Revision] {
			delivered = true
			continue
		}
		checker, since := CheckReliable, ""
		if c.w.After != 0 && !delivered {
			checker, since = CheckResumable, fmt.Sprintf(", resumed after %d,", c.w.After)
		}
		event := c.after(missed.Revision)
		c.violate(checker, event, "%s at %d was not delivered%s though %d was", missed, missed.Revision, since, event.Object.Revision)
		return // one gap is told once
	}
}

// after is the first event that tells of a revision or of a later one.
func (c *watchChecker) after(revision int64) *Event {
	for i := range c.w.Events {
		if event := &c.w.Events[i]; event.Kind != Initial && event.Object.Revision >= revision {
			return event
		}
	}
	return nil
}

// objects follows every object through the watch: what is added was absent, what is modified or deleted was there, under the same UID.
func (c *watchChecker) objects() {
	present := map[string]string{} // UIDs
	begun := c.w.After != 0
	if begun {
		for _, key := range c.log.keysBelow(c.w.Key) {
			if last, certain := c.log.at(key, c.w.After); certain && last != nil && !last.deleted {
				present[key] = last.UID
			}
		}
	}
	for i := range c.w.Events {
		event := &c.w.Events[i]
		uid, there := present[event.Object.Key]
		switch event.Kind {
		case Added:
			if there {
				c.violate(CheckReliable, event, "it was added at %d while it was there: a deletion is missing", event.Object.Revision)
			}
		case Modified, Deleted:
			_, certain := c.log.at(event.Object.Key, max(c.w.After, 1))
			if !there && certain {
				c.violate(CheckReliable, event, "it was %s at %d while it was not there: a creation is missing", event.Kind, event.Object.Revision)
			} else if there && uid != event.Object.UID {
				c.violate(CheckReliable, event, "it was %s at %d as %s while %s was there", event.Kind, event.Object.Revision, event.Object.UID, uid)
			}
		}
		switch event.Kind {
		case Initial, Added, Modified:
			present[event.Object.Key] = event.Object.UID
		case Deleted:
			delete(present, event.Object.Key)
		}
	}
}

// atomic looks for bookmarks that cut a transaction in two.
func (c *watchChecker) atomic() {
	for i := range c.w.Events {
		event := &c.w.Events[i]
		if event.Kind != Bookmark && event.Kind != InitialEnd {
			continue
		}
		if cut := c.log.cuts(event.Object.Revision, c.w.Key); cut != nil {
			c.violate(CheckAtomic, event, "the %s %d lies inside of one transaction, %d to %d", event.Kind, event.Object.Revision, cut[0], cut[len(cut)-1])
		}
	}
}

// cuts is a transaction with changes below a prefix both at or below a revision and above it, nil if there is none.
func (l *changeLog) cuts(revision int64, prefix string) []int64 {
	for _, transaction := range l.h.Transactions {
		if len(transaction) < 2 || revision < transaction[0] || revision >= transaction[len(transaction)-1] {
			continue
		}
		below, above := false, false
		for _, r := range transaction {
			i, known := slices.BinarySearchFunc(l.changes, r, func(have change, revision int64) int { return cmp.Compare(have.Revision, revision) })
			if known && strings.HasPrefix(l.changes[i].Key, prefix) {
				below, above = below || r <= revision, above || r > revision
			}
		}
		if below && above {
			return transaction
		}
	}
	return nil
}
