package consensus

import (
	"testing"

	"shoal/consensus/store"
)

// TestBeatsTellOnlyWhatIsNew: who reads from another peer hears how far the shard is once it has moved, and nothing while it has not. And
// that takes nothing from a mark that the reader asks for later.
func TestBeatsTellOnlyWhatIsNew(t *testing.T) {
	a := newApplier(store.Limits{})
	a.put("x")
	var server beats
	s := subscribe(t, a.hub, WatchOptions{Prefix: "quiet/"})
	reader := server.add(s)
	heard := func() store.Revision {
		t.Helper()
		events, _, err := s.read()
		if err != nil || len(events) > 1 || len(events) == 1 && !events[0].Progress {
			t.Fatal(events, err)
		}
		if len(events) == 0 {
			return 0
		}
		reader.told.Store(int64(events[0].Revision))
		return events[0].Revision
	}
	server.beat()
	if at := heard(); at != 0 {
		t.Errorf("told %v although nothing has happened", at)
	}
	a.put("y")
	if at := heard(); at != 0 {
		t.Errorf("told %v without a beat", at)
	}
	server.beat()
	if at := heard(); at != a.store.View().Revision() {
		t.Errorf("told %v, the shard is at %v", at, a.store.View().Revision())
	}
	server.beat()
	if at := heard(); at != 0 {
		t.Errorf("told %v again", at)
	}
	s.want(1)
	if at := heard(); at != a.store.View().Revision() {
		t.Errorf("a mark that was asked for after the beat: %v, want %v", at, a.store.View().Revision())
	}
	server.remove(reader)
	a.put("z")
	server.beat()
	if at := heard(); at != 0 {
		t.Errorf("told %v after it has gone", at)
	}
}
