package consensus

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// defaultPatience bounds a request whose ctx has no deadline, from its first failure on.
const defaultPatience = 15 * time.Second

// tryAgain marks a failure that says nothing about the shard's answer: another
// attempt, perhaps elsewhere, may succeed.
type tryAgain struct {
	cause error
	// uncertain says that the request may have taken effect.
	uncertain bool
}

func (e *tryAgain) Error() string { return e.cause.Error() }
func (e *tryAgain) Unwrap() error { return e.cause }

var (
	errNoReplica = errors.New("no replica here")
	// errQuarantined is the end of a start of a replica that is left stopped.
	errQuarantined = errors.New("quarantined")
	errNotReady    = errors.New("replica has not caught up since its start")
	errNoPeer      = errors.New("no reachable peer is known to hold it")
)

// patient bounds a request whose ctx has no deadline.
func patient(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, bounded := ctx.Deadline(); bounded {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, defaultPatience)
}

// reach runs a request on the shard until it is answered: on the local replica if
// there is one, else, or if that cannot answer, on peers that hold one. It gives up
// when ctx ends, or at once on any error that is not tryAgain. An attempt of local
// bounds itself: mostly it is all there is, and a deadline in its ctx would be a
// quarter of the CPU time that a read takes.
//
// The word of a local replica that is cut off from its leader will do: see reachQuorum.
func (h *Host) reach(ctx context.Context, shard uint64,
	local func(context.Context, *replica) error, remote func(context.Context, string) error,
) error {
	return h.retry(ctx, shard, func(ctx context.Context, n int) error { return h.attempt(ctx, shard, n, local, remote) })
}

// reachQuorum is reach for a request that only the quorum can answer. It is led past
// a local replica that has not answered such a request just before.
func (h *Host) reachQuorum(ctx context.Context, shard uint64,
	local func(context.Context, *replica) error, remote func(context.Context, string) error,
) error {
	here := func(ctx context.Context, r *replica) error { return h.noteAnswer(ctx, r, local) }
	return h.retry(ctx, shard, func(ctx context.Context, n int) error {
		if r, ok := h.replica(shard); ok && h.leadPast(r) {
			n = pastLocal(n)
		}
		return h.attempt(ctx, shard, n, here, remote)
	})
}

// retry makes attempts, which it counts, until one is answered.
func (h *Host) retry(ctx context.Context, shard uint64, attempt func(ctx context.Context, n int) error) error {
	changed := h.changed.wait()
	err := attempt(ctx, 0)
	if err == nil {
		return nil
	}
	ctx, cancel := patient(ctx)
	defer cancel()
	var last error
	uncertain := false
	for n := 1; err != nil; n++ {
		var again *tryAgain
		if !errors.As(err, &again) {
			if uncertain && !errors.Is(err, ErrUnknownOutcome) { // whatever the last attempt says of itself, an earlier one may have taken effect
				return shardError(shard, ErrUnknownOutcome, err)
			}
			return err
		}
		uncertain = uncertain || again.uncertain
		// The first cause that is not a mere consequence of ctx's end tells most.
		if last == nil || ctx.Err() == nil {
			last = again.cause
		}
		select {
		case <-ctx.Done():
			return h.giveUp(ctx, shard, uncertain, last)
		case <-h.ctx.Done():
			if uncertain {
				return shardError(shard, ErrUnknownOutcome, ErrClosed)
			}
			return ErrClosed
		case <-changed:
		case <-time.After(backoff(n - 1)):
		}
		changed = h.changed.wait()
		err = attempt(ctx, n)
	}
	return nil
}

func backoff(attempt int) time.Duration {
	return min(5*time.Millisecond<<min(attempt, 6), 200*time.Millisecond)
}

func (h *Host) giveUp(ctx context.Context, shard uint64, uncertain bool, last error) error {
	cause := fmt.Errorf("%w (%w)", last, ctx.Err())
	switch {
	case uncertain:
		return shardError(shard, ErrUnknownOutcome, cause)
	case errors.Is(ctx.Err(), context.Canceled):
		return fmt.Errorf("shard %d: %w", shard, cause)
	case h.routes.loaded() && !h.routes.knows(shard):
		return shardError(shard, ErrUnknownShard, cause)
	default:
		return h.noQuorum(shard, cause)
	}
}

// attempt runs the request once. Two of three attempts go to the local replica, if
// there is one and others exist.
func (h *Host) attempt(ctx context.Context, shard uint64, n int,
	local func(context.Context, *replica) error, remote func(context.Context, string) error,
) error {
	if h.ctx.Err() != nil {
		return ErrClosed
	}
	r, here := h.replica(shard)
	if here && n%3 != 2 {
		err := local(ctx, r)
		if err != nil && n%3 == 0 {
			h.routes.unhint(shard)
		}
		return err
	}
	peers := h.routes.candidates(shard)
	if len(peers) == 0 {
		if here {
			return local(ctx, r)
		}
		return &tryAgain{cause: errNoPeer}
	}
	// A request without a replica here walks through the candidates.
	turn := n
	if here {
		turn = n / 3
	}
	peer := peers[turn%len(peers)]
	ctx, cancel := patient(ctx)
	defer cancel()
	err := remote(ctx, peer)
	var again *tryAgain
	if errors.As(err, &again) {
		h.routes.unhint(shard)
	}
	return err
}

// pastLocal is the number of the attempt that goes elsewhere where attempt n would go to the local replica.
func pastLocal(n int) int { return 3*n + 2 }

// leadPast tells whether a request is led past the replica.
func (h *Host) leadPast(r *replica) bool {
	return r.detour.set() && r.detour.taken(h.cfg.Elapsed(), h.leaders.term(r.shard))
}

// noteAnswer runs the request on the replica, and notes whether that answers.
func (h *Host) noteAnswer(ctx context.Context, r *replica, local func(context.Context, *replica) error) error {
	begun := h.cfg.Elapsed()
	err := local(ctx, r)
	var again *tryAgain
	if errors.As(err, &again) {
		now := h.cfg.Elapsed()
		r.detour.begin(now, now-begun, h.leaders.term(r.shard))
	} else {
		r.detour.end()
	}
	return err
}
