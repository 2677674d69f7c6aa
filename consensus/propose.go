package consensus

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/lni/dragonboat/v4"
	"github.com/lni/dragonboat/v4/raftio"

	"shoal/consensus/bugs"
	"shoal/consensus/store"
)

// Propose applies the transaction to the shard and returns its outcome once this
// is durable. ID and Stamp are filled in when zero. Retries inside are safe: the ID
// keeps the transaction from being applied twice. Values may not be changed until
// it returns.
//
// Errors: ErrNoQuorum, ErrUnknownOutcome, ErrTooLarge, ErrClockSkew,
// ErrUnknownShard, ErrClosed. A failed condition is no error: Result.OK is false.
func (h *Host) Propose(ctx context.Context, shard uint64, tx store.Transaction) (store.Result, error) {
	if err := h.checkSize(tx); err != nil {
		return store.Result{}, err
	}
	retried := tx.ID != (store.RequestID{})
	for {
		if !retried {
			rand.Read(tx.ID[:]) //nolint:errcheck // never fails since Go 1.24
		}
		prepared := tx
		if tx.Stamp == 0 {
			if err := h.clock.fit(ctx); err != nil {
				return store.Result{}, shardError(shard, ErrClockSkew, err)
			}
			prepared.Stamp = h.clock.now()
		}
		res, uncertain, err := h.propose(ctx, shard, store.AppendTransaction(nil, prepared))
		if err != nil {
			return res, err
		}
		if uncertain && res.MayHold(tx) {
			return res, shardError(shard, ErrUnknownOutcome, errors.New("its conditions failed, but an earlier attempt may still be applied"))
		}
		if !res.Forgotten {
			return res, nil
		}
		// Too old for the shard's memory of requests. If it cannot have been applied
		// before, it only was slow: a new stamp helps.
		if retried || uncertain || tx.Stamp != 0 {
			return res, shardError(shard, ErrUnknownOutcome, errors.New("the request is older than the shard remembers"))
		}
	}
}

// Request draws an ID and a stamp, for a transaction that its proposer may have to
// propose again in a later call. Error: ErrClockSkew.
func (h *Host) Request(ctx context.Context) (store.RequestID, store.Revision, error) {
	var id store.RequestID
	rand.Read(id[:]) //nolint:errcheck // never fails since Go 1.24
	if err := h.clock.fit(ctx); err != nil {
		return id, 0, fmt.Errorf("%w: %w", ErrClockSkew, err)
	}
	return id, h.clock.now(), nil
}

func (h *Host) checkSize(tx store.Transaction) error {
	if n := store.TransactionSize(tx); n > h.cfg.MaxTransaction {
		return fmt.Errorf("%w: %d bytes, at most %d", ErrTooLarge, n, h.cfg.MaxTransaction)
	}
	for _, c := range tx.Conditions {
		if len(c.Key) > store.MaxKey {
			return fmt.Errorf("%w: key of %d bytes, at most %d", ErrTooLarge, len(c.Key), store.MaxKey)
		}
	}
	for _, op := range tx.Ops {
		if len(op.Key) > store.MaxKey {
			return fmt.Errorf("%w: key of %d bytes, at most %d", ErrTooLarge, len(op.Key), store.MaxKey)
		}
	}
	return nil
}

// propose hands the encoded transaction to the shard until it answers. uncertain
// says that an attempt before the answering one may have been applied too.
func (h *Host) propose(ctx context.Context, shard uint64, cmd []byte) (res store.Result, uncertain bool, err error) {
	note := func(err error) error {
		var again *tryAgain
		if errors.As(err, &again) && again.uncertain {
			uncertain = true
		}
		return err
	}
	err = h.reachQuorum(ctx, shard,
		func(ctx context.Context, r *replica) (err error) {
			res, err = h.proposeHere(ctx, r, cmd)
			return note(err)
		},
		func(ctx context.Context, peer string) (err error) {
			res, err = h.proposeAt(ctx, peer, shard, cmd)
			return note(err)
		})
	if err == nil {
		h.clock.observe(res.Revision)
	}
	return res, uncertain, err
}

// proposeHere makes one attempt through the local replica, which passes it on to
// the leader. It ends early when the shard gets a new leader, because what was under
// way to the old one is often lost.
func (h *Host) proposeHere(ctx context.Context, r *replica, cmd []byte) (store.Result, error) {
	was, changed := h.leaders.get(r.shard)
	if was.LeaderID == 0 {
		// Without a leader raft drops the proposal; waiting saves the turns.
		select {
		case <-ctx.Done():
			return store.Result{}, &tryAgain{cause: errors.New("it has no leader")}
		case <-changed:
		case <-time.After(writeAttempt / 2):
			return store.Result{}, &tryAgain{cause: errors.New("it has no leader")}
		}
		was, changed = h.leaders.get(r.shard)
	}
	request, err := inRaft(h, func() (*dragonboat.RequestState, error) {
		return h.nh.Propose(h.nh.GetNoOPSession(r.shard), cmd, writeAttempt)
	})
	if err != nil {
		if errors.Is(err, dragonboat.ErrPayloadTooBig) {
			return store.Result{}, fmt.Errorf("%w: %w", ErrTooLarge, err)
		}
		return store.Result{}, &tryAgain{cause: err}
	}
	// dragonboat's own timeout needs its workers, which may wait for a disk that hangs.
	late := time.NewTimer(writeAttempt + answerSlack)
	defer late.Stop()
	for {
		select {
		case out := <-request.ResultC():
			defer request.Release()
			return decodeOutcome(out)
		case <-changed:
			var now raftio.LeaderInfo
			if now, changed = h.leaders.get(r.shard); now.LeaderID != 0 && now.Term != was.Term {
				if bugs.On(bugs.AcknowledgeUnknown) {
					return pretended(cmd)
				}
				return store.Result{}, &tryAgain{cause: errors.New("its leader changed"), uncertain: true}
			}
		case <-ctx.Done():
			return store.Result{}, &tryAgain{cause: ctx.Err(), uncertain: true}
		case <-late.C:
			return store.Result{}, &tryAgain{cause: dragonboat.ErrTimeout, uncertain: true}
		case <-h.ctx.Done():
			return store.Result{}, &tryAgain{cause: ErrClosed, uncertain: true}
		}
	}
}

// pretended is the outcome that a transaction would have, of which nobody knows whether it was applied.
func pretended(cmd []byte) (store.Result, error) {
	tx, err := store.DecodeTransaction(cmd)
	res := store.Result{OK: true, Revision: tx.Stamp}
	for range tx.Ops {
		res.Revisions = append(res.Revisions, tx.Stamp)
	}
	return res, err
}

func decodeOutcome(out dragonboat.RequestResult) (store.Result, error) {
	switch {
	case out.Completed():
		data := out.GetResult().Data
		if len(data) == 0 {
			// The local machine could not take the entry, or one before it.
			return store.Result{}, &tryAgain{cause: errNotReady, uncertain: true}
		}
		return store.DecodeResult(data)
	case out.Dropped():
		return store.Result{}, &tryAgain{cause: dragonboat.ErrShardNotReady}
	case out.Timeout():
		return store.Result{}, &tryAgain{cause: dragonboat.ErrTimeout, uncertain: true}
	default:
		return store.Result{}, &tryAgain{cause: dragonboat.ErrShardClosed, uncertain: true}
	}
}
