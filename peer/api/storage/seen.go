package storage

import (
	"context"
	"fmt"

	"k8s.io/apimachinery/pkg/runtime"
	kstorage "k8s.io/apiserver/pkg/storage"

	"shoal/consensus/store"
)

type seenObject struct{}

// WithSeen makes a GuaranteedUpdate under the context of a Transaction start from obj, which its caller has read before, instead of reading
// and decoding what is stored, and leave its destination alone. obj is in the form that the update expects, carries the resourceVersion at
// which it was read, and belongs to the update from then on. If something else is stored by now, the transaction fails with a conflict.
//
// A context is for one object. If the transaction has written it already, its own write is what the update starts from.
func WithSeen(ctx context.Context, obj runtime.Object) context.Context {
	return context.WithValue(ctx, seenObject{}, obj)
}

// loadSeen takes the object of WithSeen as the state; false if there is none to take.
func (sub *subject) loadSeen(ctx context.Context) (bool, error) {
	obj, given := ctx.Value(seenObject{}).(runtime.Object)
	tx := transactionOf(ctx)
	if !given || tx == nil || tx.wrote(sub.key) {
		return false, nil
	}
	version, err := sub.s.versioner.ObjectResourceVersion(obj)
	if err != nil {
		return false, fmt.Errorf("resourceVersion of a seen object: %w", err)
	}
	sub.obj, sub.rev, sub.seen = obj, store.Revision(version), true
	sub.meta = kstorage.ResponseMeta{ResourceVersion: version}
	return true, nil
}

// wrote tells whether a write of the key was collected.
func (t *Transaction) wrote(key string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.writes[key] != nil
}
