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
func (h *Host) reach(ctx context.Context, shard uint64,
	local func(context.Context, *replica) error, remote func(context.Context, string) error,
) error {
	changed := h.changed.wait()
	err := h.attempt(ctx, shard, 0, local, remote)
	if err == nil {
		return nil
	}
	ctx, cancel := patient(ctx)
	defer cancel()
	var last error
	uncertain := false
	for attempt := 1; err != nil; attempt++ {
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
		case <-time.After(backoff(attempt - 1)):
		}
		changed = h.changed.wait()
		err = h.attempt(ctx, shard, attempt, local, remote)
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
	if here && (n%3 != 2 || !r.ready.Load() && n < 2) {
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
