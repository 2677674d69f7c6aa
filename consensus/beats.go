package consensus

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"shoal/consensus/store"
)

// watchBeat is how often another peer's watch is told how far it has come, if it has had nothing else and the shard has moved: a reader that
// changes peers need not reach far back then. Where nothing happens nothing is said; whether the other side lives is the connection's affair.
const watchBeat = 5 * time.Second

// beats are the watches that other peers read here.
type beats struct {
	mu      sync.Mutex
	readers map[*remoteReader]struct{}
}

// remoteReader is one of them. told is the revision of what it was sent last.
type remoteReader struct {
	sub  *subscription
	told atomic.Int64
}

// add begins to beat for a subscription that is told to have begun where it stands.
func (b *beats) add(sub *subscription) *remoteReader {
	r := &remoteReader{sub: sub}
	r.told.Store(int64(sub.position()))
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.readers == nil {
		b.readers = map[*remoteReader]struct{}{}
	}
	b.readers[r] = struct{}{}
	return r
}

func (b *beats) remove(r *remoteReader) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.readers, r)
}

// run beats until ctx ends.
func (b *beats) run(ctx context.Context) {
	ticker := time.NewTicker(watchBeat)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			b.beat()
		}
	}
}

// beat has those told whose shard is further than they know.
func (b *beats) beat() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for r := range b.readers {
		if r.sub.hub.current().Revision() > store.Revision(r.told.Load()) {
			r.sub.tell()
		}
	}
}
