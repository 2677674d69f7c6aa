package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"strings"
	"syscall"
	"time"
)

// ErrRunning means that another peer process serves this data folder.
var ErrRunning = errors.New("a peer is running on this data folder already")

// Listen opens the socket with mode 0600 and locks the data folder for this
// process. The lock ends with the process however it ends, so a socket that a
// crashed peer left is replaced, and never one in use.
func Listen(path string) (net.Listener, error) {
	lock, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("administration socket: %w", err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = lock.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w (%s): stop it, or choose another --data-dir", ErrRunning, path)
		}
		return nil, fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	listener, err := listen(path)
	if err != nil {
		_ = lock.Close()
		return nil, fmt.Errorf("administration socket: %w", err)
	}
	return &lockedListener{Listener: listener, lock: lock}, nil
}

func listen(path string) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	// The folder around it is 0700, so nobody slips in before the chmod.
	if err := os.Chmod(path, 0o600); err != nil {
		_ = listener.Close()
		return nil, err
	}
	return listener, nil
}

// lockedListener gives the lock up when it is closed.
type lockedListener struct {
	net.Listener
	lock *os.File
}

func (l *lockedListener) Close() error {
	return errors.Join(l.Listener.Close(), l.lock.Close())
}

// Run serves calls on the listener until ctx ends. What is being asked then has a second to be answered.
func Run(ctx context.Context, listener net.Listener, calls Calls, logger *slog.Logger) error {
	server := &http.Server{
		Handler: handler(calls), ReadHeaderTimeout: 10 * time.Second,
		BaseContext: func(net.Listener) context.Context { return ctx },
		ErrorLog:    slog.NewLogLogger(logger.Handler(), slog.LevelDebug),
	}
	answered := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(answered)
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = server.Shutdown(grace)
		_ = server.Close()
	})
	err := server.Serve(listener)
	if !stop() {
		<-answered // `peer leave` ends the process; its last line gets out first
		return nil
	}
	return fmt.Errorf("administration socket: %w", err)
}

func handler(calls Calls) http.Handler {
	mux := http.NewServeMux()
	ask(mux, statusPath, calls.Status)
	ask(mux, imagesPath, calls.ListImages)
	ask(mux, settingsPath, calls.Settings)
	ask(mux, lossesPath, calls.Losses)
	mux.HandleFunc("GET "+placementPath, func(w http.ResponseWriter, r *http.Request) {
		if calls.ExplainPlacement == nil {
			refuse(w, http.StatusNotImplemented, errNotAvailable)
			return
		}
		placement, err := calls.ExplainPlacement(r.Context(), r.FormValue("namespace"), r.FormValue("pod"))
		answer(w, placement, err)
	})
	mux.HandleFunc("POST "+imagesPath, func(w http.ResponseWriter, r *http.Request) {
		stream(w, calls.ImportImage != nil, func(progress func(string)) ([]Image, error) {
			return calls.ImportImage(r.Context(), r.Body, progress)
		})
	})
	mux.HandleFunc("POST "+leavePath, func(w http.ResponseWriter, r *http.Request) {
		stream(w, calls.Leave != nil, func(progress func(string)) ([]Image, error) {
			return nil, calls.Leave(r.Context(), progress)
		})
	})
	handleChange(mux, settingsPath, calls.Set != nil, func(ctx context.Context, c change, progress func(string)) error {
		return calls.Set(ctx, c.Name, c.Value, progress)
	})
	handleChange(mux, recoverPath, calls.Recover != nil, func(ctx context.Context, c change, progress func(string)) error {
		return calls.Recover(ctx, c.Shards, progress)
	})
	handleChange(mux, hintPath, calls.Hint != nil, func(ctx context.Context, c change, _ func(string)) error {
		return calls.Hint(ctx, c.Addresses)
	})
	mux.HandleFunc("POST "+backupPath, func(w http.ResponseWriter, r *http.Request) { serveBackup(w, r, calls.Backup) })
	// For those who look for time or memory: go tool pprof over the socket (CONTRIBUTING.md).
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	return mux
}

// ask serves a call that takes nothing and answers at once.
func ask[T any](mux *http.ServeMux, path string, call func(context.Context) (T, error)) {
	mux.HandleFunc("GET "+path, func(w http.ResponseWriter, r *http.Request) {
		if call == nil {
			refuse(w, http.StatusNotImplemented, errNotAvailable)
			return
		}
		result, err := call(r.Context())
		answer(w, result, err)
	})
}

// handleChange serves a call that takes a change and reports progress.
func handleChange(mux *http.ServeMux, path string, available bool, call func(context.Context, change, func(string)) error) {
	mux.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) {
		var what change
		if err := json.NewDecoder(r.Body).Decode(&what); err != nil {
			refuse(w, http.StatusBadRequest, fmt.Errorf("unreadable request: %w", err))
			return
		}
		stream(w, available, func(progress func(string)) ([]Image, error) {
			return nil, call(r.Context(), what, progress)
		})
	})
}

// errorTrailer carries what went wrong after a stream had begun.
const errorTrailer = "Shoal-Error"

func serveBackup(w http.ResponseWriter, r *http.Request, call func(context.Context, string, io.Writer) error) {
	if call == nil {
		refuse(w, http.StatusNotImplemented, errNotAvailable)
		return
	}
	var what change
	if err := json.NewDecoder(r.Body).Decode(&what); err != nil {
		refuse(w, http.StatusBadRequest, fmt.Errorf("unreadable request: %w", err))
		return
	}
	w.Header().Set("Trailer", errorTrailer)
	w.Header().Set("Content-Type", "application/octet-stream")
	if err := call(r.Context(), what.Passphrase, w); err != nil {
		w.Header().Set(errorTrailer, strings.ReplaceAll(err.Error(), "\n", "; "))
	}
}

var errNotAvailable = errors.New("not available yet: the peer is starting, or was built without it")

func refuse(w http.ResponseWriter, status int, err error) {
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(event{Error: err.Error()})
}

func answer(w http.ResponseWriter, body any, err error) {
	if err != nil {
		refuse(w, http.StatusInternalServerError, err)
		return
	}
	_ = json.NewEncoder(w).Encode(body) // the caller went away
}

// stream runs a long call and writes one JSON line per progress report.
func stream(w http.ResponseWriter, available bool, run func(progress func(string)) ([]Image, error)) {
	if !available {
		refuse(w, http.StatusNotImplemented, errNotAvailable)
		return
	}
	control := http.NewResponseController(w)
	_ = control.EnableFullDuplex() // progress is written while the tarball is read
	encoder := json.NewEncoder(w)
	send := func(e event) {
		if encoder.Encode(e) == nil {
			_ = control.Flush()
		}
	}
	images, err := run(func(line string) { send(event{Progress: line}) })
	last := event{Images: images, Done: true}
	if err != nil {
		last.Error = err.Error()
	}
	send(last)
}
