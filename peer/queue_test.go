package peer

import (
	"testing"

	"shoal/consensus/store"
)

func TestQueueTellsWhatEachFeedHasReached(t *testing.T) {
	q := newQueue()
	if q.has(1, podPrefix) {
		t.Fatal("a feed that has brought nothing counts as read")
	}
	q.from(1, podPrefix)(nil, 7)
	if !q.has(1, podPrefix) || q.has(2, podPrefix) || q.has(1, nodePrefix) || q.feeds() != 1 {
		t.Fatal("an empty list is a list, and only of its own shard and prefix")
	}
	q.from(1, podPrefix)([]change{{Key: "a"}}, 9)
	q.from(1, podPrefix)(nil, 8)
	if got := q.reached(1, podPrefix); got != store.Revision(9) {
		t.Fatalf("reached %d after 9: a revision never goes back", got)
	}
	if got := q.take(); len(got) != 1 || got[0].Key != "a" {
		t.Fatalf("took %v", got)
	}
	if len(q.take()) != 0 {
		t.Fatal("a change was delivered twice")
	}
	select {
	case <-q.wake:
	default:
		t.Fatal("nobody woke the reader")
	}
}

func TestAQueueIsWaitingUntilItsReaderHasAppliedAll(t *testing.T) {
	q := newQueue()
	if q.waiting() {
		t.Fatal("an empty queue waits")
	}
	q.from(1, podPrefix)([]change{{Key: "a"}}, 1)
	if !q.waiting() {
		t.Fatal("a change that nobody has taken does not count")
	}
	q.take()
	if !q.waiting() {
		t.Fatal("a change that was taken and not applied does not count")
	}
	q.applied()
	if q.waiting() {
		t.Fatal("everything was applied and the queue still waits")
	}
}
