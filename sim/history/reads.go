package history

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// checkReads holds lists, and reads that may be stale, to what they were asked for: they show a state that existed, and none that is
// older than a revision that was named, or, of linearizable lists, than what anybody had seen before.
func checkReads(h *History, log *changeLog) []Violation {
	var found []Violation
	for i := range h.Operations {
		op := &h.Operations[i]
		if op.Outcome != OK {
			continue
		}
		checker, why := CheckReads, ""
		switch op.Kind {
		case Get:
			why = log.staleGet(op)
		case List:
			if why = log.list(op); why == "" && op.Consistency != Exact {
				if cut := log.cuts(op.ListRevision, op.Key); cut != nil && op.Revision != op.ListRevision {
					checker, why = CheckAtomic, fmt.Sprintf("it shows a part of one transaction, %d to %d", cut[0], cut[len(cut)-1])
				}
			}
		}
		if why != "" {
			found = append(found, Violation{Checker: checker, At: op.Return, Key: op.Key, Operations: []int{op.ID},
				Message: fmt.Sprintf("%s → %s, by client %d through %s: %s", describe(op), answer(op), op.Client, op.Peer, why)})
		}
	}
	return found
}

// staleGet says what is wrong with a get that was not asked to be linearizable.
func (l *changeLog) staleGet(op *Operation) string {
	if op.Consistency == Linearizable {
		return "" // the order of all operations judges it
	}
	if op.Object != nil {
		if why := l.existed(*op.Object, op); why != "" {
			return why
		}
	}
	if op.Consistency != NotOlder {
		return ""
	}
	return l.notOlder(op)
}

// existed says why a version of an object cannot have been, empty if it can.
func (l *changeLog) existed(object Object, reader *Operation) string {
	last, certain := l.at(object.Key, object.Revision)
	if last != nil && last.Revision == object.Revision {
		if last.deleted || last.Value != object.Value || last.UID != object.UID {
			return fmt.Sprintf("%q at %d never existed: it was %s", object.Value, object.Revision, last)
		}
		if last.writer != nil && last.writer.Invoke > reader.Return {
			return fmt.Sprintf("%q was written after it was read", object.Value)
		}
		return ""
	}
	if certain {
		return fmt.Sprintf("%q at %d never existed", object.Value, object.Revision)
	}
	if writer := l.attempts[object.Value]; writer == nil || writer.Key != object.Key || writer.Outcome == Failed {
		return fmt.Sprintf("%q at %d was written by nobody", object.Value, object.Revision)
	}
	return ""
}

// notOlder says whether what a get found was the state at its revision or at any later one.
func (l *changeLog) notOlder(op *Operation) string {
	last, certain := l.at(op.Key, op.Revision)
	if !certain {
		return ""
	}
	if op.Object != nil {
		if last != nil && op.Object.Revision < last.Revision {
			return fmt.Sprintf("it was older than %d: it was %s at %d already", op.Revision, last, last.Revision)
		}
		return ""
	}
	if last == nil || last.deleted {
		return ""
	}
	for next := l.next(op.Key, op.Revision); next != nil; next = l.next(op.Key, next.Revision) {
		if next.deleted {
			return ""
		}
	}
	if l.doubts[op.Key] {
		return "" // a deletion that nobody saw
	}
	return fmt.Sprintf("nothing was found, but it was %s at %d, and never deleted since", last, last.Revision)
}

// list says what is wrong with a list.
func (l *changeLog) list(op *Operation) string {
	switch op.Consistency {
	case Linearizable:
		if floor := before(l.group(groupOf(op.Key+"x")).shown, op.Invoke); op.ListRevision < floor {
			return fmt.Sprintf("%d had been seen before it was asked for", floor)
		}
	case NotOlder:
		if op.ListRevision < op.Revision {
			return fmt.Sprintf("it is older than %d", op.Revision)
		}
	case Exact:
		if op.ListRevision != op.Revision {
			return fmt.Sprintf("it is not at %d", op.Revision)
		}
	}
	why := l.differs(op.Key, op.ListRevision, op.Items)
	if why == "" || op.Consistency != Any {
		return why
	}
	// Without a quorum each shard shows what a replica has, and the lowest of their revisions.
	if l.loose(op) {
		return ""
	}
	return why
}

// differs says how objects differ from the state of the keys with a prefix at a revision, empty if they do not.
func (l *changeLog) differs(prefix string, revision int64, items []Object) string {
	shown := map[string]Object{}
	for _, item := range items {
		if _, twice := shown[item.Key]; twice {
			return fmt.Sprintf("%s is there twice", item.Key)
		}
		shown[item.Key] = item
	}
	keys := l.keysBelow(prefix)
	for _, key := range slices.Sorted(maps.Keys(shown)) {
		if _, known := slices.BinarySearch(keys, key); !known {
			keys = append(keys, key)
		}
	}
	for _, key := range keys {
		last, certain := l.at(key, revision)
		item, there := shown[key]
		switch {
		case !certain:
		case !there && last != nil && !last.deleted:
			return fmt.Sprintf("%s at %d is missing", last, last.Revision)
		case there && (last == nil || last.deleted):
			return fmt.Sprintf("%s = %q at %d is there, but at %d it was not", key, item.Value, item.Revision, revision)
		case there && (last.Revision != item.Revision || last.Value != item.Value || last.UID != item.UID):
			return fmt.Sprintf("%s = %q at %d is there, but at %d it was %s, of %d", key, item.Value, item.Revision, revision, last, last.Revision)
		}
	}
	return ""
}

// loose says whether every group of a list is a state of that group at the list's revision or later.
func (l *changeLog) loose(op *Operation) bool {
	groups := map[string][]Object{}
	for _, key := range l.keysBelow(op.Key) {
		groups[groupOf(key)] = nil
	}
	for _, item := range op.Items {
		groups[groupOf(item.Key)] = append(groups[groupOf(item.Key)], item)
	}
	for prefix, items := range groups {
		if l.differs(prefix, op.ListRevision, items) != "" && !l.wasState(prefix, op.ListRevision, items) {
			return false
		}
	}
	return true
}

// wasState says whether items were the state of a group at some revision above one.
func (l *changeLog) wasState(prefix string, above int64, items []Object) bool {
	first, _ := slices.BinarySearchFunc(l.changes, above+1, func(have change, revision int64) int { return cmp.Compare(have.Revision, revision) })
	for i := first; i < len(l.changes); i++ {
		if strings.HasPrefix(l.changes[i].Key, prefix) && l.differs(prefix, l.changes[i].Revision, items) == "" {
			return true
		}
	}
	return false
}
