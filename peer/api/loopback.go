package api

import (
	"context"
	"io"
	"net/http"
	"sync"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/client-go/rest"
)

// loopbackHost is the host of in-process clients' URLs. It is never resolved.
const loopbackHost = "https://shoal.invalid"

// loopbackUser is a key for request contexts. No request from outside the process can carry it.
type loopbackUser struct{}

// authenticateLoopback accepts the user that an in-process client put into the request's context.
func authenticateLoopback(req *http.Request) (*authenticator.Response, bool, error) {
	u, ok := req.Context().Value(loopbackUser{}).(user.Info)
	if !ok {
		return nil, false, nil
	}
	return &authenticator.Response{User: u}, true, nil
}

// loopbackTransport calls the handler in place of a server behind a socket.
type loopbackTransport struct {
	handler func() http.Handler
	user    user.Info
}

func newLoopbackConfig(handler func() http.Handler, u user.Info) *rest.Config {
	return &rest.Config{
		Host:               loopbackHost,
		Transport:          &loopbackTransport{handler: handler, user: u},
		DisableCompression: true,
		QPS:                -1, // no client-side limit: the server's own limits hold
		ContentConfig: rest.ContentConfig{
			ContentType:        runtime.ContentTypeProtobuf,
			AcceptContentTypes: runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON,
		},
	}
}

func privilegedUser() user.Info {
	return &user.DefaultInfo{Name: user.APIServerUser, Groups: []string{user.SystemPrivilegedGroup, user.AllAuthenticated}}
}

// RoundTrip runs the handler in a goroutine of its own and returns when it has sent its headers. The handler ends when
// the request's context ends or the response's body is closed.
func (t *loopbackTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancel(context.WithValue(req.Context(), loopbackUser{}, t.user))
	in := req.Clone(ctx)
	in.Proto, in.ProtoMajor, in.ProtoMinor = "HTTP/2.0", 2, 0
	in.Host = req.URL.Host
	in.RequestURI = req.URL.RequestURI()
	in.RemoteAddr = "127.0.0.1:0"
	if in.Body == nil {
		in.Body = http.NoBody
	}

	reader, writer := io.Pipe()
	w := &loopbackWriter{
		request: req, header: http.Header{}, pipe: writer,
		body:   &loopbackBody{PipeReader: reader, cancel: cancel},
		headed: make(chan *http.Response, 1), ctx: ctx,
	}
	// neither side of the pipe may wait for the other when the caller has given up
	forget := context.AfterFunc(req.Context(), func() { _ = writer.CloseWithError(req.Context().Err()) })
	aborted := make(chan struct{})
	go func() {
		defer func() {
			forget()
			_ = in.Body.Close()
			// net/http does the same for a connection's goroutine: a broken or aborted request ends no process, and its
			// client must not take half an answer for a whole one
			if recover() != nil {
				_ = writer.CloseWithError(io.ErrUnexpectedEOF)
				close(aborted)
				return
			}
			w.WriteHeader(http.StatusOK)
			_ = writer.Close()
		}()
		t.handler().ServeHTTP(w, in)
	}()

	select {
	case resp := <-w.headed:
		return resp, nil
	case <-aborted:
		select {
		case resp := <-w.headed:
			return resp, nil
		default:
			cancel()
			return nil, io.ErrUnexpectedEOF
		}
	case <-req.Context().Done():
		cancel()
		return nil, context.Cause(req.Context())
	}
}

// loopbackBody ends the handler when its reader has had enough.
type loopbackBody struct {
	*io.PipeReader
	cancel context.CancelFunc
}

func (b *loopbackBody) Read(p []byte) (int, error) {
	n, err := b.PipeReader.Read(p)
	if err != nil {
		b.cancel()
	}
	return n, err
}

func (b *loopbackBody) Close() error {
	b.cancel()
	return b.PipeReader.Close()
}

// loopbackWriter is the http.ResponseWriter of an in-process request; it looks like one of HTTP/2 to the handlers.
type loopbackWriter struct {
	request *http.Request
	header  http.Header
	body    *loopbackBody
	pipe    *io.PipeWriter
	headed  chan *http.Response
	ctx     context.Context
	once    sync.Once
}

func (w *loopbackWriter) Header() http.Header { return w.header }

func (w *loopbackWriter) WriteHeader(status int) {
	if status < http.StatusOK {
		return
	}
	w.once.Do(func() {
		w.headed <- &http.Response{
			Status: http.StatusText(status), StatusCode: status,
			Proto: "HTTP/2.0", ProtoMajor: 2,
			Header: w.header.Clone(), Body: w.body, ContentLength: -1, Request: w.request,
		}
	})
}

func (w *loopbackWriter) Write(p []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	return w.pipe.Write(p)
}

// Flush sends the headers; what was written has already reached the reader.
func (w *loopbackWriter) Flush() { w.WriteHeader(http.StatusOK) }

// CloseNotify is what upstream's handlers look for to tell a streaming writer from a recorder.
func (w *loopbackWriter) CloseNotify() <-chan bool {
	closed := make(chan bool, 1)
	context.AfterFunc(w.ctx, func() { closed <- true })
	return closed
}
