package storage

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/conversion"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	kstorage "k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/value"

	"shoal/consensus/store"
)

// sealedKey ties a sealed value to its key, so that it cannot be passed off as
// another object's.
type sealedKey string

// AuthenticatedData implements value.Context.
func (k sealedKey) AuthenticatedData() []byte { return []byte(k) }

// open turns a stored value into the encoded object. stale says that the value
// should be written again, though nothing in the object changed.
func (s *Storage) open(ctx context.Context, key string, sealed []byte) (data []byte, stale bool, err error) {
	return s.transformer.TransformFromStorage(ctx, sealed, sealedKey(key))
}

// seal turns an encoded object into the value to store.
func (s *Storage) seal(ctx context.Context, key string, data []byte) ([]byte, error) {
	sealed, err := s.transformer.TransformToStorage(ctx, data, sealedKey(key))
	if err != nil {
		return nil, kstorage.NewInternalError(err)
	}
	if len(sealed)+len(key) > MaxObject {
		return nil, errTooLarge
	}
	return sealed, nil
}

// errTooLarge refuses an object as etcd does behind upstream's API server, which
// passes the error on as it is: status 500 with this text. Clients know the text.
var errTooLarge error = rpctypes.ErrRequestTooLarge

// encode gives an object the form in which it is stored, before sealing.
func (s *Storage) encode(obj runtime.Object) ([]byte, error) {
	if err := s.versioner.PrepareObjectForStorage(obj); err != nil {
		return nil, fmt.Errorf("prepare object for storage: %w", err)
	}
	return runtime.Encode(s.codec, obj)
}

// decode fills out with the encoded object as of rev.
func (s *Storage) decode(data []byte, out runtime.Object, rev store.Revision) error {
	if _, err := conversion.EnforcePtr(out); err != nil {
		return fmt.Errorf("output object: %w", err)
	}
	if _, _, err := s.codec.Decode(data, nil, out); err != nil {
		return s.undecodable(err, rev)
	}
	// an object that cannot carry a version is still worth returning
	if err := s.versioner.UpdateObject(out, uint64(rev)); err != nil {
		s.log.Warn("set the resourceVersion of a decoded object", "revision", rev, "error", err)
	}
	return nil
}

// decodeNew decodes into a new object, which the codec makes unless into is given.
func (s *Storage) decodeNew(data []byte, into runtime.Object, rev store.Revision) (runtime.Object, error) {
	obj, _, err := s.codec.Decode(data, nil, into)
	if err != nil {
		return nil, s.undecodable(err, rev)
	}
	if err := s.versioner.UpdateObject(obj, uint64(rev)); err != nil {
		return nil, fmt.Errorf("set the resourceVersion %v: %w", rev, err)
	}
	return obj, nil
}

func (s *Storage) undecodable(err error, rev store.Revision) error {
	if !s.markCorrupt {
		return err
	}
	return &corruptError{what: "object not decodable", revision: rev, err: err}
}

// expiry is the moment, in unix milliseconds, at which a key written now with a
// time to live in seconds may go. No time to live is for ever.
func expiry(ttl uint64) int64 {
	if ttl == 0 {
		return 0
	}
	return time.Now().Add(time.Duration(ttl) * time.Second).UnixMilli()
}

// remaining is the time to live, in seconds, that an expiry leaves.
func remaining(expires int64) int64 {
	if expires == 0 {
		return 0
	}
	return int64(time.Until(time.UnixMilli(expires)) / time.Second)
}

// corruptError is a stored value that cannot be read.
type corruptError struct {
	what     string
	revision store.Revision
	err      error
}

func (e *corruptError) Error() string {
	return fmt.Sprintf("%s revision=%v: %v", e.what, e.revision, e.err)
}

func (e *corruptError) Unwrap() error { return e.err }

// corruptMarker marks what its transformer cannot open.
type corruptMarker struct{ value.Transformer }

func (m corruptMarker) TransformFromStorage(ctx context.Context, data []byte, dataCtx value.Context) ([]byte, bool, error) {
	out, stale, err := m.Transformer.TransformFromStorage(ctx, data, dataCtx)
	if err != nil {
		err = &corruptError{what: "data from the storage is not transformable", err: err}
	}
	return out, stale, err
}

// markUnreadable names the object in an error about a value that cannot be read:
// that is how upstream's registry knows that it may be deleted unsafely.
func markUnreadable(key string, err error) error {
	var corrupt *corruptError
	if errors.As(err, &corrupt) {
		return kstorage.NewCorruptObjError(key, corrupt)
	}
	return err
}

// maxUnreadable bounds how many unreadable objects one list reports.
const maxUnreadable = 100

// unreadable collects the objects that a list could not read. Upstream reports up
// to maxUnreadable of them by key, so that an administrator can remove them.
type unreadable struct {
	collect bool
	keys    []string
	errs    []error
	// stopped is why the list ended early.
	stopped error
	// crowded says that there were too many to report.
	crowded bool
}

// add notes an error and says whether the list has to end.
func (u *unreadable) add(key string, err error) (stop bool) {
	var corrupt *corruptError
	if !u.collect || !errors.As(err, &corrupt) {
		u.stopped = err
		return true
	}
	u.keys = append(u.keys, key)
	u.errs = append(u.errs, kstorage.NewCorruptObjError(key, corrupt))
	u.crowded = len(u.errs) >= maxUnreadable
	return u.crowded
}

// err is the outcome of the list, nil if everything could be read.
func (u *unreadable) err(resource schema.GroupResource) error {
	if len(u.errs) == 0 {
		return u.stopped
	}
	causes := make([]metav1.StatusCause, 0, len(u.errs)+1)
	for i, err := range u.errs {
		causes = append(causes, metav1.StatusCause{Type: metav1.CauseTypeUnexpectedServerResponse, Field: u.keys[i], Message: err.Error()})
	}
	if u.crowded {
		causes = append(causes, metav1.StatusCause{Type: metav1.CauseTypeTooMany, Message: "too many errors, the list is truncated"})
	} else if u.stopped != nil {
		causes = append(causes, metav1.StatusCause{Type: metav1.CauseTypeUnexpectedServerResponse, Message: u.stopped.Error()})
	}
	message := fmt.Sprintf("failed to read one or more %s from the storage: %v", resource, u.errs[0])
	if more := len(u.errs) - 1; more > 0 {
		message = fmt.Sprintf("%s (and %d more)", message, more)
	}
	return &apierrors.StatusError{ErrStatus: metav1.Status{
		Status:  metav1.StatusFailure,
		Code:    http.StatusInternalServerError,
		Reason:  metav1.StatusReasonStoreReadError,
		Message: message,
		Details: &metav1.StatusDetails{Group: resource.Group, Kind: resource.Resource, Name: "list", Causes: causes},
	}}
}
