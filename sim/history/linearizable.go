package history

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/anishathalye/porcupine"
)

// forever is when an operation returns of which nobody ever heard again.
const forever = time.Duration(math.MaxInt64)

// step is an operation as the model takes it.
type step struct {
	op *Operation
	// revision is that of the operation's change as far as it is known, uid that of the object it made.
	revision int64
	uid      string
	// optional says that the operation may have had no effect.
	optional bool
}

// state is that of one object. Revision is that of the last change that is known, also of an object that is gone. Open says that another
// change came after it of which only that is known: its revision is higher.
type state struct {
	exists     bool
	uid, value string
	revision   int64
	open       bool
}

// mayBe tells whether the object's last change can have been at a revision.
func (s state) mayBe(revision int64) bool {
	return revision == s.revision && !s.open || revision > s.revision && s.open
}

// pinned is the state once its revision is known.
func (s state) pinned(revision int64) state {
	s.revision, s.open = revision, false
	return s
}

// checkLinearizable looks, for every object, for one order of its operations that agrees with real time and with every answer.
//
// Operations of unknown outcome are what makes this search explode, so everything else that is known narrows them down: one whose
// value was seen has had its effect before that, and one whose effect some watch would have seen, and did not, had none. Of what no watch
// covered, the revision is the one that a read has shown, or else any that is high enough.
func checkLinearizable(h *History, log *changeLog, timeout time.Duration) []Violation {
	var found []Violation
	steps := stepsByKey(h, log)
	for _, key := range slices.Sorted(maps.Keys(steps)) {
		operations := steps[key]
		switch result, info := porcupine.CheckOperationsVerbose(model, operations, timeout); result {
		case porcupine.Illegal:
			found = append(found, blame(key, operations, info))
		case porcupine.Unknown:
			found = append(found, Violation{Checker: CheckUndecided, Key: key,
				Message: fmt.Sprintf("no order of %d operations was found within %s, and no proof that there is none", len(operations), timeout)})
		}
	}
	return found
}

// Visualize draws the operations on one object, and the longest order found, as porcupine does: a self-contained HTML page.
func Visualize(w io.Writer, h *History, key string, timeout time.Duration) error {
	log, _ := newLog(h)
	operations := stepsByKey(h, log)[key]
	last := int64(0)
	for _, o := range operations {
		last = max(last, o.Call)
		if o.Return != int64(forever) {
			last = max(last, o.Return)
		}
	}
	for i := range operations {
		operations[i].Return = min(operations[i].Return, last+int64(time.Second))
	}
	_, info := porcupine.CheckOperationsVerbose(model, operations, timeout)
	return porcupine.Visualize(model, info, w)
}

// blame names the operation that ends first of those that fit into no order.
func blame(key string, operations []porcupine.Operation, info porcupine.LinearizationInfo) Violation {
	fits := map[int]bool{}
	most := 0
	for _, partition := range info.PartialLinearizationsOperations() {
		for _, order := range partition {
			if len(order) <= most {
				continue
			}
			most = len(order)
			clear(fits)
			for _, o := range order {
				fits[o.Input.(step).op.ID] = true
			}
		}
	}
	v := Violation{Checker: CheckLinearizable, Key: key, At: forever, Message: "its operations have no order"}
	for _, o := range operations {
		if s := o.Input.(step); !fits[s.op.ID] && s.op.Return < v.At {
			v.At, v.Operations = s.op.Return, []int{s.op.ID}
			v.Message = fmt.Sprintf("%s → %s, by client %d through %s, fits into no order with %d operations before it",
				describe(s.op), answer(s.op), s.op.Client, s.op.Peer, most)
		}
	}
	return v
}

// stepsByKey are the operations that say something about a single object.
func stepsByKey(h *History, log *changeLog) map[string][]porcupine.Operation {
	steps := map[string][]porcupine.Operation{}
	for i := range h.Operations {
		op := &h.Operations[i]
		s, end, matters := log.step(op)
		if matters {
			steps[op.Key] = append(steps[op.Key], porcupine.Operation{
				ClientId: op.Client, Input: s, Call: int64(op.Invoke), Output: op.Outcome, Return: int64(end),
			})
		}
	}
	for _, operations := range steps {
		slices.SortStableFunc(operations, func(a, b porcupine.Operation) int { return cmp.Compare(a.Call, b.Call) })
		number(operations)
	}
	return steps
}

// number gives the clients small numbers, which porcupine's picture wants.
func number(operations []porcupine.Operation) {
	numbers := map[int]int{}
	for i := range operations {
		n, known := numbers[operations[i].ClientId]
		if !known {
			n = len(numbers)
			numbers[operations[i].ClientId] = n
		}
		operations[i].ClientId = n
	}
}

// step says what an operation tells about its object, and by when it had its effect. It does not matter if it tells nothing.
func (l *changeLog) step(op *Operation) (s step, end time.Duration, matters bool) {
	s = step{op: op}
	switch {
	case op.Kind == List, op.Kind == Get && (op.Consistency != Linearizable || op.Outcome != OK):
		return s, 0, false
	case op.Kind == Get:
		return s, op.Return, true
	case op.Outcome == Failed:
		// One that was merely not carried out is no operation.
		return s, op.Return, op.Failure == Exists || op.Failure == Absent || op.Failure == Conflict
	case op.Outcome == OK && op.Kind == Delete:
		if i, known := l.removed[op.Deleted]; known && op.Deleted != "" {
			s.revision = l.changes[i].Revision
		}
		return s, op.Return, true
	case op.Outcome == OK:
		if op.Object != nil {
			s.revision, s.uid = op.Object.Revision, op.Object.UID
		}
		return s, op.Return, true
	case op.Kind == Delete:
		return l.unknownDelete(op)
	default:
		return l.unknownWrite(op)
	}
}

func (l *changeLog) unknownWrite(op *Operation) (s step, end time.Duration, matters bool) {
	if i, known := l.values[op.Value]; known {
		c := &l.changes[i]
		return step{op: op, revision: c.Revision, uid: c.UID}, c.seen, true
	}
	if l.watched(op) {
		return step{}, 0, false
	}
	if read, shown := l.shown[op.Value]; shown && read.Key == op.Key {
		return step{op: op, revision: read.Revision, uid: read.UID}, read.seen, true
	}
	return step{op: op, optional: true}, forever, true
}

// unknownDelete ends with the last deletion that it may have been.
func (l *changeLog) unknownDelete(op *Operation) (s step, end time.Duration, matters bool) {
	s = step{op: op, optional: true}
	if !l.watched(op) {
		return s, forever, true
	}
	for _, i := range l.keys[op.Key] {
		if c := &l.changes[i]; c.deleted && c.writer == nil && c.seen >= op.Invoke {
			end = max(end, c.seen)
		}
	}
	return s, end, end > 0
}

// watched says that an effect of the operation, at any time up to the final reads, would have been seen by some watch.
func (l *changeLog) watched(op *Operation) bool {
	g := l.group(groupOf(op.Key))
	floor := before(g.passed, op.Invoke)
	return floor > 0 && g.final > 0 && g.covers(floor, g.final)
}

// model is one object of a store.
var model = porcupine.Model{
	Init: func() any { return state{} },
	Step: func(before, input, output any) (bool, any) {
		return input.(step).take(before.(state), output.(Outcome))
	},
	DescribeOperation: func(input, _ any) string {
		s := input.(step)
		return fmt.Sprintf("%s → %s", describe(s.op), answer(s.op))
	},
	DescribeState: func(s any) string {
		if s := s.(state); s.exists {
			return fmt.Sprintf("%q at %d", s.value, s.revision)
		}
		return "absent"
	},
}

// take says whether the operation can have its answer in a state, and what the state is after it.
func (s step) take(before state, outcome Outcome) (bool, state) {
	op := s.op
	if op.Kind == Get {
		if op.Object == nil {
			return !before.exists, before
		}
		return before.exists && before.value == op.Object.Value && before.mayBe(op.Object.Revision), before.pinned(op.Object.Revision)
	}
	if outcome == Failed {
		switch op.Failure {
		case Exists:
			return before.exists, before
		case Absent:
			return !before.exists, before
		default:
			return op.Precondition == 0 || before.exists && (before.open || before.revision != op.Precondition), before
		}
	}
	possible := before.exists != (op.Kind == Create) && (op.Precondition == 0 || before.mayBe(op.Precondition)) &&
		(s.revision == 0 || s.revision > before.revision)
	if op.Kind == Delete && op.Deleted != "" && before.uid != "" && op.Deleted != before.uid {
		possible = false
	}
	if !possible {
		return s.optional, before
	}
	after := state{exists: op.Kind != Delete, revision: max(s.revision, before.revision, op.Precondition)}
	if after.exists {
		after.value, after.uid, after.open = op.Value, s.uid, s.revision == 0
	}
	return true, after
}

// answer says what came of an operation.
func answer(op *Operation) string {
	switch {
	case op.Outcome == Unknown:
		return "unknown"
	case op.Outcome == Failed:
		return string(op.Failure)
	case op.Kind == List:
		return fmt.Sprintf("%d items at %d", len(op.Items), op.ListRevision)
	case op.Kind == Delete:
		return "ok"
	case op.Object == nil:
		return "absent"
	default:
		return fmt.Sprintf("%q at %d", op.Object.Value, op.Object.Revision)
	}
}
