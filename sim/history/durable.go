package history

import (
	"fmt"
	"strings"
)

// checkDurable looks for acknowledged writes that the final reads do not show, though nothing replaced them.
func checkDurable(h *History, log *changeLog) []Violation {
	var found []Violation
	for i := range h.Operations {
		final := &h.Operations[i]
		if !final.Final || final.Kind != List || final.Outcome != OK {
			continue
		}
		shown := map[string]Object{}
		for _, item := range final.Items {
			shown[item.Key] = item
		}
		for j := range h.Operations {
			op := &h.Operations[j]
			if op.Outcome != OK || !op.writes() || !strings.HasPrefix(op.Key, final.Key) {
				continue
			}
			item, there := shown[op.Key]
			if why := log.lost(op, item, there); why != "" {
				found = append(found, Violation{Checker: CheckDurable, At: final.Return, Key: op.Key, Operations: []int{op.ID, final.ID},
					Message: fmt.Sprintf("%s was acknowledged to client %d by %s, but at the end, through %s, %s", describe(op), op.Client, op.Peer, final.Peer, why)})
			}
		}
	}
	return found
}

// lost says how an acknowledged write is missing from what is there at the end, empty if it is not.
func (l *changeLog) lost(op *Operation, item Object, there bool) string {
	if op.Kind == Delete {
		if there && op.Deleted != "" && item.UID == op.Deleted {
			return fmt.Sprintf("it is still there, at %d", item.Revision)
		}
		return ""
	}
	if op.Object == nil {
		return ""
	}
	if there {
		if item.Revision < op.Object.Revision {
			return fmt.Sprintf("it is %q of %d, before its %d", item.Value, item.Revision, op.Object.Revision)
		}
		return ""
	}
	if _, deleted := l.removed[op.Object.UID]; deleted && op.Object.UID != "" {
		return ""
	}
	for i := range l.h.Operations {
		other := &l.h.Operations[i]
		if other.Kind != Delete || other.Key != op.Key {
			continue
		}
		// One whose outcome nobody was told may have come long after its client gave up.
		if other.Outcome == Unknown || other.Outcome == OK && other.Return > op.Invoke {
			return ""
		}
	}
	if next := l.next(op.Key, op.Object.Revision); next != nil && next.UID != op.Object.UID {
		return ""
	}
	return "it is not there, and nobody deleted it"
}
