// Package polling lets tests wait for what comes true by itself: they look again and again, and never guess how long it takes.
package polling

import (
	"context"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"
)

// Until calls check every so often until it has no complaint. After the limit, with which the context of check ends, the test fails at
// once, with what was waited for and the last complaint.
func Until(t testing.TB, every, limit time.Duration, what string, check func(ctx context.Context) error) {
	t.Helper()
	var complaint error
	ctx := context.WithoutCancel(t.Context()) // cleanups wait as well
	err := wait.PollUntilContextTimeout(ctx, every, limit, true, func(ctx context.Context) (bool, error) {
		complaint = check(ctx)
		return complaint == nil, nil
	})
	if err != nil {
		t.Fatalf("%s: not within %s: %v", what, limit, complaint)
	}
}

// Throughout calls check every so often for as long as span, and fails the test at once at its first complaint. It is for what must not
// happen: there is nothing to wait for then but time.
func Throughout(t testing.TB, every, span time.Duration, what string, check func() error) {
	t.Helper()
	err := wait.PollUntilContextTimeout(t.Context(), every, span, true, func(context.Context) (bool, error) { return false, check() })
	if !wait.Interrupted(err) {
		t.Fatalf("%s: %v", what, err)
	}
}
