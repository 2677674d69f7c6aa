package consensus

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/lni/dragonboat/v4/logger"
)

// dragonboat's loggers are global to the process: they report to the logger of the
// host that was opened last.
var (
	raftLog     atomic.Pointer[slog.Logger]
	raftLogOnce sync.Once
)

func setRaftLogger(l *slog.Logger) {
	raftLog.Store(l)
	raftLogOnce.Do(func() {
		logger.SetLoggerFactory(func(name string) logger.ILogger { return &raftLogger{name: name} })
	})
}

// raftLogger reports one of dragonboat's packages through slog. Its information is
// debugging to us, and so are its warnings: a lost peer makes dozens a second, and
// what they mean for a shard is in Status and in the errors of requests.
type raftLogger struct{ name string }

func (l *raftLogger) SetLevel(logger.LogLevel) {}

func (l *raftLogger) Debugf(string, ...any) {}

func (l *raftLogger) Infof(format string, args ...any) { l.debug(format, args) }

func (l *raftLogger) Warningf(format string, args ...any) { l.debug(format, args) }

func (l *raftLogger) Errorf(format string, args ...any) { l.debug(format, args) }

func (l *raftLogger) Panicf(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	raftLog.Load().Error("raft invariant broken, the process has to stop", "part", l.name, "what", text)
	panic(text)
}

func (l *raftLogger) debug(format string, args []any) {
	if log := raftLog.Load(); log.Enabled(context.Background(), slog.LevelDebug) {
		log.Debug(fmt.Sprintf(format, args...), "part", "raft/"+l.name)
	}
}
