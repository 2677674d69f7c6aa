package storage

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"shoal/consensus"
	"shoal/consensus/store"
)

// ShardResult is what became of a transaction in one shard.
type ShardResult struct {
	Shard uint64
	// Revision is the shard's revision after the commit.
	Revision store.Revision
	// Objects is the number of objects written.
	Objects int
	// Err is nil if the shard committed. Else it is a *ConflictError, or says why
	// the shard could not be asked.
	Err error
}

// ConflictError reports the objects that kept a shard's part of a transaction from
// being applied. None of that part was.
type ConflictError struct {
	Shard   uint64
	Objects []ObjectError
}

// ObjectError is one object that was not as the transaction expected. Err is an
// apierrors AlreadyExists or Conflict.
type ObjectError struct {
	Resource        schema.GroupResource
	Namespace, Name string
	Err             error
}

func (e *ConflictError) Error() string {
	texts := make([]string, len(e.Objects))
	for i, object := range e.Objects {
		texts[i] = object.Err.Error()
	}
	return fmt.Sprintf("shard %d: %s", e.Shard, strings.Join(texts, "; "))
}

// Unwrap gives the objects' errors to errors.As, and so to apierrors.IsConflict.
func (e *ConflictError) Unwrap() []error {
	errs := make([]error, len(e.Objects))
	for i, object := range e.Objects {
		errs[i] = object.Err
	}
	return errs
}

// proposal is the part of a transaction that goes to one shard.
type proposal struct {
	// storage is any of those whose objects are in the shard.
	storage *Storage
	shard   uint64
	tx      store.Transaction
	// owners are the storages of the keys in tx.Conditions.
	owners map[string]*Storage
	// writes are the ops' writes, nil for an op that only records something beside
	// one.
	writes []*pendingWrite
	result ShardResult
	// uncertain says that the shard was asked and did not answer.
	uncertain bool
}

// Commit proposes the collected writes as one transaction per shard, to all shards
// at once. Within a shard all of them are applied or none, and their events follow
// one another in the order of collection; there is no such promise between shards,
// and the results say what happened in each.
//
// The error joins the shards' errors. Where it says that an outcome is unknown
// (apierrors.IsTimeout), Commit may be called again: it asks those shards for the
// same requests, which none applies twice, and returns the results of all. Otherwise a
// transaction is committed once: the decision is to be taken again from what is
// stored then.
func (t *Transaction) Commit(ctx context.Context) ([]ShardResult, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.spent && !slices.ContainsFunc(t.proposals, (*proposal).unknown) {
		return nil, errSpent
	}
	if !t.spent {
		t.spent = true
		var err error
		if t.proposals, err = t.plan(ctx); err != nil {
			return nil, apiError(err)
		}
	}
	again := slices.ContainsFunc(t.proposals, (*proposal).unknown)
	var asked sync.WaitGroup
	for _, p := range t.proposals {
		if !again || p.unknown() {
			asked.Go(func() { p.run(ctx) })
		}
	}
	asked.Wait()
	results := make([]ShardResult, len(t.proposals))
	errs := make([]error, len(t.proposals))
	for i, p := range t.proposals {
		results[i], errs[i] = p.result, p.result.Err
	}
	return results, errors.Join(errs...)
}

func (p *proposal) unknown() bool { return p.uncertain }

// plan sorts the requirements and writes by shard, in the order of their collection.
func (t *Transaction) plan(ctx context.Context) ([]*proposal, error) {
	proposals := []*proposal{}
	at := func(s *Storage, key string) (*proposal, error) {
		shard, err := s.shardOf(ctx, key)
		if err != nil {
			return nil, err
		}
		for _, p := range proposals {
			if p.shard == shard {
				return p, nil
			}
		}
		p := &proposal{
			storage: s,
			shard:   shard,
			owners:  map[string]*Storage{},
			result:  ShardResult{Shard: shard},
		}
		proposals = append(proposals, p)
		return p, nil
	}
	for _, r := range t.required {
		p, err := at(r.storage, r.key)
		if err != nil {
			return nil, err
		}
		p.owners[r.key] = r.storage
		p.tx.Conditions = append(p.tx.Conditions, store.Condition{Key: r.key, Revision: r.rev})
	}
	for _, w := range t.order {
		p, err := at(w.storage, w.key)
		if err != nil {
			return nil, err
		}
		part, err := w.storage.transaction(ctx, w.write)
		if err != nil {
			return nil, err
		}
		for _, condition := range part.Conditions {
			p.owners[condition.Key] = w.storage
		}
		p.tx.Conditions = append(p.tx.Conditions, part.Conditions...)
		p.tx.Ops = append(p.tx.Ops, part.Ops...)
		p.writes = append(append(p.writes, w), make([]*pendingWrite, len(part.Ops)-1)...)
	}
	return proposals, nil
}

// run asks the shard and notes the answer.
func (p *proposal) run(ctx context.Context) {
	if !p.uncertain {
		var err error
		if p.tx.ID, p.tx.Stamp, err = p.storage.host.Request(ctx); err != nil {
			p.result.Err = apiError(err)
			return
		}
	}
	result, err := p.storage.propose(ctx, p.shard, p.tx)
	if err != nil && p.uncertain && !errors.Is(err, consensus.ErrUnknownOutcome) {
		// that this attempt came to nothing says nothing about the one before
		err = errors.Join(consensus.ErrUnknownOutcome, err)
	}
	p.uncertain = errors.Is(err, consensus.ErrUnknownOutcome)
	p.result.Err = apiError(err)
	if err != nil {
		return
	}
	p.result.Revision = result.Revision
	if !result.OK {
		p.result.Err = p.conflict(result.Failed)
		return
	}
	for i, w := range p.writes {
		if w == nil {
			continue
		}
		p.result.Objects++
		for _, out := range w.outs {
			if err := w.storage.versioner.UpdateObject(out, uint64(result.Revisions[i])); err != nil {
				w.storage.log.Warn("set the resourceVersion of a committed object", "key", w.key, "error", err)
			}
		}
	}
}

func (p *proposal) conflict(failed []store.KV) error {
	conflict := &ConflictError{Shard: p.shard}
	for _, kv := range failed {
		owner := p.owners[kv.Key]
		if owner == nil {
			continue
		}
		object := ObjectError{Resource: owner.resource}
		object.Namespace, object.Name = owner.keys.split(kv.Key)
		object.Err = p.objectError(object, kv)
		conflict.Objects = append(conflict.Objects, object)
	}
	return conflict
}

func (p *proposal) objectError(object ObjectError, current store.KV) error {
	for _, condition := range p.tx.Conditions {
		if condition.Key == current.Key && condition.Revision == 0 {
			return apierrors.NewAlreadyExists(object.Resource, object.Name)
		}
	}
	if current.Mod == 0 {
		return apierrors.NewConflict(object.Resource, object.Name, errors.New("the object has been deleted"))
	}
	return apierrors.NewConflict(object.Resource, object.Name, fmt.Errorf("the object has been modified: it is at revision %v", current.Mod))
}
