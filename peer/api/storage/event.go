package storage

import (
	"errors"
	"net/http"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/features"
	utilfeature "k8s.io/apiserver/pkg/util/feature"

	"shoal/consensus/store"
)

// transform makes the event that the watch's reader sees of a change: nil if its
// selector never matched the object. An object that leaves the selector is reported
// as deleted, at the revision of the change.
func (w *watcher) transform(change store.Event) (*watch.Event, error) {
	if change.Delete {
		old, matched, err := w.object(change, true)
		if err != nil {
			return nil, corruptDeletion(err)
		}
		return eventIf(matched, watch.Deleted, old), nil
	}
	current, matched, err := w.object(change, false)
	if err != nil {
		return nil, err
	}
	if change.PrevMod == 0 {
		return eventIf(matched, watch.Added, current), nil
	}
	if w.all {
		return eventIf(true, watch.Modified, current), nil
	}
	old, matchedBefore, err := w.object(change, true)
	switch {
	case err != nil:
		return nil, err
	case matched && matchedBefore:
		return eventIf(true, watch.Modified, current), nil
	case matched:
		return eventIf(true, watch.Added, current), nil
	default:
		return eventIf(matchedBefore, watch.Deleted, old), nil
	}
}

func eventIf(happened bool, kind watch.EventType, obj runtime.Object) *watch.Event {
	if !happened {
		return nil
	}
	return &watch.Event{Type: kind, Object: obj}
}

// object is the object after the change, or before it with the change's revision.
// matched says whether the watch's selector accepts it.
func (w *watcher) object(change store.Event, before bool) (obj runtime.Object, matched bool, err error) {
	sealed := change.Value
	if before {
		sealed = change.Prev
	}
	decode := func() (runtime.Object, error) {
		data, _, err := w.s.open(w.ctx, change.Key, sealed)
		if err != nil {
			return nil, err
		}
		return w.s.decodeNew(data, nil, change.Revision)
	}
	inner, obj, err := w.s.recent.object(eventID{change.Revision, before}, len(sealed), decode)
	if err != nil {
		return nil, false, err
	}
	if w.all {
		return obj, true, nil
	}
	// an object whose attributes cannot be read does not match
	matched, err = w.matches(inner, obj)
	return obj, err == nil && matched, nil
}

// matches is the selector's verdict. Watches that share an object share the reading of
// its attributes.
func (w *watcher) matches(read, hand runtime.Object) (bool, error) {
	shared, ok := hand.(*sharedObject)
	if !ok || w.s.attributes == nil {
		return w.predicate.Matches(read)
	}
	if utilfeature.DefaultFeatureGate.Enabled(features.ShardedListAndWatch) {
		if matched, err := w.predicate.MatchesSharding(read); err != nil || !matched {
			return false, err
		}
	}
	labels, fields, err := shared.attributes(w.s.attributes)
	return err == nil && w.predicate.MatchesObjectAttributes(labels, fields), err
}

// corruptDeletion reports the deletion of an object that cannot be read in the way
// that upstream's clients know.
func corruptDeletion(err error) error {
	var corrupt *corruptError
	if !errors.As(err, &corrupt) {
		return err
	}
	return &apierrors.StatusError{ErrStatus: metav1.Status{
		Status:  metav1.StatusFailure,
		Code:    http.StatusInternalServerError,
		Reason:  metav1.StatusReasonStoreReadError,
		Message: "saw a DELETED event, but object data is corrupt - " + corrupt.Error(),
	}}
}
