package api

import (
	"net/http"

	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/endpoints/responsewriter"
)

// directWatches lets watches write their events to the connection itself. On the way there lie six writers of filters
// (audit, metrics, tracing) that have seen all they look for once the header is written, and that together cost a
// watch more than its event does.
type directWatches struct{ next http.Handler }

// ServeHTTP implements http.Handler.
func (d directWatches) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	info, ok := request.RequestInfoFrom(r.Context())
	// Below HTTP/2 a watch may be a WebSocket, which takes the connection over.
	if ok && info.Verb == "watch" && r.ProtoMajor == 2 {
		if bare, ok := innermost(w).(bareWriter); ok {
			w = &directWriter{bareWriter: bare, filtered: w}
		}
	}
	d.next.ServeHTTP(w, r)
}

// bareWriter is what net/http's writers for HTTP/2 are, and upstream asks for.
type bareWriter interface {
	http.ResponseWriter
	responsewriter.CloseNotifierFlusher
}

// innermost is the writer that was given to the first filter.
func innermost(w http.ResponseWriter) http.ResponseWriter {
	for {
		wrapper, ok := w.(interface{ Unwrap() http.ResponseWriter })
		if !ok {
			return w
		}
		w = wrapper.Unwrap()
	}
}

// directWriter shows the header to the filters and nothing else.
type directWriter struct {
	bareWriter
	filtered http.ResponseWriter
	headed   bool
}

// Header implements http.ResponseWriter.
func (w *directWriter) Header() http.Header { return w.filtered.Header() }

// WriteHeader implements http.ResponseWriter.
func (w *directWriter) WriteHeader(code int) {
	w.headed = true
	w.filtered.WriteHeader(code)
}

// Write implements http.ResponseWriter.
func (w *directWriter) Write(b []byte) (int, error) {
	w.head()
	return w.bareWriter.Write(b)
}

// Flush implements http.Flusher.
func (w *directWriter) Flush() {
	w.head()
	w.bareWriter.Flush()
}

func (w *directWriter) head() {
	if !w.headed {
		w.WriteHeader(http.StatusOK)
	}
}
