//go:build linux

package fence

import (
	"context"
	"log/slog"
	"time"

	"shoal/internal/boottime"
)

// Watchdog kills the listed pods while the heartbeat is overdue, also what is
// started anew meanwhile. When the lease is renewed again it lets them be; what
// becomes of the killed ones is the peer's business.
type Watchdog struct {
	Dir       Dir
	KillAfter time.Duration // 0 = the constant
	Logger    *slog.Logger  // nil = slog.Default()

	seen sight
	told map[string]bool // pods whose end was logged during this silence; nil while there is none
}

// Run looks until ctx ends. It fails only when there is no clock.
func (w *Watchdog) Run(ctx context.Context) error {
	if w.KillAfter == 0 {
		w.KillAfter = KillAfter
	}
	if w.Logger == nil {
		w.Logger = slog.Default()
	}
	ticker := time.NewTicker(pollEvery)
	defer ticker.Stop()
	for {
		now, err := boottime.Now()
		if err != nil {
			return err
		}
		w.look(now)
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// look reads the heartbeat and acts on it. One that cannot be read grows old.
func (w *Watchdog) look(now time.Duration) {
	if text, found, err := w.Dir.read(); err == nil {
		w.seen = w.seen.next(now, text, found)
	}
	if !w.seen.overdue(now, w.KillAfter) {
		if w.told != nil {
			w.Logger.Info("the peer renews its lease again")
		}
		w.told = nil
		return
	}
	pods, err := w.Dir.Pods()
	if w.told == nil {
		w.told = map[string]bool{}
		w.Logger.Warn("the peer is silent: pods that must not run twice are killed", "listed", len(pods), "err", err)
	}
	for _, pod := range pods {
		killed, err := pod.kill()
		if (killed > 0 || err != nil) && !w.told[pod.UID] {
			w.told[pod.UID] = true
			w.Logger.Warn("pod killed because the peer is silent", "pod", pod.UID, "processes", killed, "err", err)
		}
	}
}
