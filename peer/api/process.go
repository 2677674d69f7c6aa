package api

import (
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"sync"

	"k8s.io/apiserver/pkg/features"
	"k8s.io/apiserver/pkg/util/compatibility"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/klog/v2"
)

// prepareProcess sets what upstream keeps in variables of the process: feature gates, where it logs, and what happens when it gives up.
func prepareProcess(log *slog.Logger) error {
	processOnce.Do(func() { processErr = prepareOnce(log) })
	return processErr
}

var (
	processOnce sync.Once
	processErr  error
)

func prepareOnce(log *slog.Logger) error {
	// Upstream ends the process when a post-start hook fails or is cut short (klog.Fatal). A peer has pods to look after
	// and must outlive that: end the one goroutine instead.
	klog.OsExit = func(int) { runtime.Goexit() }
	klog.SetSlogLogger(slog.New(demoted{log.Handler()}))

	// peers of different versions do not proxy to each other, and a peer's liveness never enters the log
	off := map[string]bool{string(features.UnknownVersionInteroperabilityProxy): false, string(features.APIServerIdentity): false}
	if err := utilfeature.DefaultMutableFeatureGate.SetFromMap(off); err != nil {
		return fmt.Errorf("feature gates: %w", err)
	}
	return compatibility.DefaultComponentGlobalsRegistry.Set()
}

// demoted lowers every record by two levels: what upstream calls an error is one failed attempt of something that it
// repeats, and what it says in passing is less than our debug output.
type demoted struct{ slog.Handler }

const demotion = slog.LevelError - slog.LevelInfo

func (d demoted) Enabled(ctx context.Context, level slog.Level) bool {
	return d.Handler.Enabled(ctx, level-demotion)
}

func (d demoted) Handle(ctx context.Context, r slog.Record) error {
	r.Level -= demotion
	return d.Handler.Handle(ctx, r)
}

func (d demoted) WithAttrs(attrs []slog.Attr) slog.Handler {
	return demoted{d.Handler.WithAttrs(attrs)}
}

func (d demoted) WithGroup(name string) slog.Handler { return demoted{d.Handler.WithGroup(name)} }
