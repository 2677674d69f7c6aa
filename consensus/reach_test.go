package consensus

import (
	"context"
	"errors"
	"log/slog"
	"testing"
)

// TestAnUncertainAttemptStaysUncertain: once an attempt may have taken effect, no later one makes the request a refused one, whatever it
// says of itself: here that the host was shut down between the two, or that this is too large.
func TestAnUncertainAttemptStaysUncertain(t *testing.T) {
	for name, second := range map[string]error{"closed": nil, "refused": ErrTooLarge, "unknown": shardError(3, ErrUnknownOutcome, ErrTooLarge)} {
		t.Run(name, func(t *testing.T) {
			for range 50 { // which of two ready channels a select takes is drawn
				ctx, shutdown := context.WithCancel(t.Context())
				h := &Host{ctx: ctx, replicas: map[uint64]*replica{}, routes: newRoutes(Config{
					PeerID: "here", Peers: func() []string { return []string{"there"} }, Logger: slog.New(slog.DiscardHandler),
				})}
				attempts := 0
				err := h.reach(t.Context(), 3, nil, func(context.Context, string) error {
					if attempts++; attempts > 1 {
						return second
					}
					if second == nil {
						h.changed.broadcast()
						shutdown()
					}
					return &tryAgain{cause: errors.New("the line broke"), uncertain: true}
				})
				shutdown()
				if !errors.Is(err, ErrUnknownOutcome) || second == nil && !errors.Is(err, ErrClosed) || second != nil && !errors.Is(err, second) {
					t.Fatalf("after %d attempts: %v", attempts, err)
				}
			}
		})
	}
}
