package peer

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"shoal/consensus/store"
	"shoal/peer/api"
	"shoal/placement"
)

// decisionUser is in whose name leaders write.
const decisionUser = "system:shoal:leader"

// apiCommitter sends decisions through the API's own code — defaulting, admission, validation, strategies — into one transaction.
type apiCommitter struct{ api *api.Server }

func (p *Peer) committer() committer { return apiCommitter{p.api} }

// Commit implements committer. Its error is that of the first change that was refused; then nothing was written.
func (c apiCommitter) Commit(ctx context.Context, changes []placement.Change) (store.Revision, error) {
	converted := make([]api.Change, 0, len(changes))
	for _, change := range changes {
		next, err := convert(change)
		if err != nil {
			return 0, err
		}
		converted = append(converted, next)
	}
	revision, errs := c.api.Commit(ctx, decisionUser, converted)
	return revision, firstCause(errs)
}

var verbs = map[placement.Verb]api.Verb{
	placement.Create: api.Create, placement.Update: api.Update, placement.UpdateStatus: api.UpdateStatus,
	placement.Delete: api.Delete, placement.Bind: api.Bind,
}

// convert copies the object, because the API's code writes into it, and puts the change's conditions where that code looks for them.
// Of a pod to be bound, of which there are many at once, it writes into nothing.
func convert(change placement.Change) (api.Change, error) {
	if pod, isPod := change.Object.(*corev1.Pod); isPod && change.Verb == placement.Bind {
		bound := *pod
		bound.ResourceVersion, bound.UID = change.ResourceVersion, change.UID
		return api.Change{Verb: api.Bind, Object: &bound}, nil
	}
	object, ok := change.Object.DeepCopyObject().(placement.Object)
	verb, known := verbs[change.Verb]
	if !ok || !known {
		return api.Change{}, fmt.Errorf("a change with verb %q of a %T cannot be committed", change.Verb, change.Object)
	}
	if change.Verb != placement.Create {
		object.SetResourceVersion(change.ResourceVersion)
		if change.UID != "" {
			object.SetUID(change.UID)
		}
	}
	return api.Change{
		Verb: verb, Object: object, GracePeriodSeconds: change.GracePeriodSeconds, Propagation: change.Propagation, Disruption: change.Disruption,
	}, nil
}

// firstCause finds the error that kept the others from being committed.
func firstCause(errs []error) error {
	var other error
	for _, err := range errs {
		if err != nil && !errors.Is(err, api.ErrNotCommitted) {
			return err
		}
		other = errors.Join(other, err)
	}
	return other
}

// stale tells an error that only says that the picture was old.
func stale(err error) bool {
	return apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) || apierrors.IsNotFound(err)
}
