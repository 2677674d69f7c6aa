package membership

import (
	"bytes"
	"context"
	"log/slog"
	"sync"
	"time"
)

// logWriter turns serf's and memberlist's lines ("[WARN] memberlist: …") into slog records. Anybody can send garbage to
// a UDP port, and each such packet is worth a line to memberlist, so lines above debug are rationed.
type logWriter struct {
	logger *slog.Logger

	mu         sync.Mutex
	window     time.Time
	lines      int
	suppressed int
}

const (
	logWindow = 10 * time.Second
	logLines  = 20 // per window
)

var logLevels = map[string]slog.Level{
	"[DEBUG] ": slog.LevelDebug,
	"[INFO] ":  slog.LevelDebug, // joins and leaves are reported by whoever subscribes
	"[WARN] ":  slog.LevelInfo,
	"[ERR] ":   slog.LevelWarn,
}

func (w *logWriter) Write(line []byte) (int, error) {
	level, text := slog.LevelInfo, bytes.TrimSpace(line)
	for prefix, l := range logLevels {
		if rest, ok := bytes.CutPrefix(text, []byte(prefix)); ok {
			level, text = l, rest
			break
		}
	}
	if level > slog.LevelDebug && !w.ration() {
		return len(line), nil
	}
	w.logger.Log(context.Background(), level, string(text))
	return len(line), nil
}

// ration reports whether one more line may be written in this window.
func (w *logWriter) ration() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if now := time.Now(); now.Sub(w.window) > logWindow {
		if w.suppressed > 0 {
			w.logger.Warn("gossip had more to complain about", "lines", w.suppressed)
		}
		w.window, w.lines, w.suppressed = now, 0, 0
	}
	w.lines++
	if w.lines > logLines {
		w.suppressed++
		return false
	}
	return true
}
