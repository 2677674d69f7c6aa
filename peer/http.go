package peer

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"time"
)

// serveHTTP serves on a listener until ctx ends, and returns when the requests that were under way then have been answered. Where the
// listener proves who calls, callerOf tells it to handlers.
func serveHTTP(ctx context.Context, listener net.Listener, handler http.Handler, log *slog.Logger) error {
	server := &http.Server{
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			if proven, ok := conn.(interface{ PeerID() string }); ok {
				return context.WithValue(ctx, caller{}, proven.PeerID())
			}
			return ctx
		},
		Handler: endStreams(ctx, handler), ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute,
		// Not ctx: a write must not be cut off because the peer that took it in is being stopped.
		BaseContext: func(net.Listener) context.Context { return context.WithoutCancel(ctx) },
		ErrorLog:    slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		Protocols:   new(http.Protocols),
	}
	server.Protocols.SetHTTP1(true)
	server.Protocols.SetHTTP2(true)
	answered := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(answered)
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), answerTimeout)
		defer cancel()
		if door, ok := listener.(interface{ Refuse() }); ok {
			// Who is inside already gets the time to ask; everybody else finds another peer without having asked in vain.
			door.Refuse()
			time.Sleep(lastCall)
		}
		// What is still open after the grace is cut: its client asks another peer.
		if server.Shutdown(grace) != nil {
			_ = server.Close()
		}
	})
	err := server.Serve(listener)
	if !stop() {
		<-answered // Serve returns as soon as Shutdown has been called
		return nil
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// answerTimeout is how long a peer that is being stopped goes on answering what it was asked before.
const answerTimeout = 5 * time.Second

// lastCall is the time between the end of a handshake and its first request.
const lastCall = 150 * time.Millisecond

// endStreams ends, with ctx, the requests that would not end by themselves: watches, followed logs, sessions.
func endStreams(ctx context.Context, handler http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if isStream(r) {
			inner, cancel := context.WithCancel(r.Context())
			defer cancel()
			defer context.AfterFunc(ctx, cancel)()
			r = r.WithContext(inner)
		}
		handler.ServeHTTP(w, r)
	})
}

func isStream(r *http.Request) bool {
	if r.Header.Get("Upgrade") != "" {
		return true
	}
	query := r.URL.Query()
	for _, name := range []string{"watch", "follow"} {
		if value := query.Get(name); query.Has(name) && value != "false" && value != "0" {
			return true
		}
	}
	return false
}
