package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"k8s.io/apiserver/pkg/authentication/user"
)

func loopbackOf(handler http.HandlerFunc) http.RoundTripper {
	return &loopbackTransport{handler: func() http.Handler { return handler }, user: &user.DefaultInfo{Name: "me"}}
}

func loopbackRequest(ctx context.Context, t *testing.T, body string) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, loopbackHost+"/path?q=1", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	return req
}

func TestLoopbackAnswersAsItsUser(t *testing.T) {
	resp, err := loopbackOf(func(w http.ResponseWriter, r *http.Request) {
		who, ok, _ := authenticateLoopback(r)
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("X-Test", "yes")
		w.WriteHeader(http.StatusCreated)
		fmt.Fprintf(w, "%v %s %s %s", ok, who.User.GetName(), r.URL.Path, body)
	}).RoundTrip(loopbackRequest(t.Context(), t, "hello"))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || string(body) != "true me /path hello" || resp.StatusCode != http.StatusCreated || resp.Header.Get("X-Test") != "yes" {
		t.Errorf("%d %q %v", resp.StatusCode, body, err)
	}
}

func TestLoopbackIsNotForgedFromOutside(t *testing.T) {
	req := loopbackRequest(t.Context(), t, "")
	req.Header.Set("X-Remote-User", "me")
	if _, ok, err := authenticateLoopback(req); ok || err != nil {
		t.Errorf("ok %v, err %v", ok, err)
	}
}

// TestLoopbackEnds covers the ways in which one side of a stream goes away: the other must not wait for ever, and half an
// answer must not look whole.
func TestLoopbackEnds(t *testing.T) {
	stream := func(ended chan<- struct{}) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			defer close(ended)
			for {
				if _, err := fmt.Fprintln(w, "line"); err != nil {
					return
				}
				w.(http.Flusher).Flush()
			}
		}
	}
	t.Run("the reader closes", func(t *testing.T) {
		ended := make(chan struct{})
		resp, err := loopbackOf(stream(ended)).RoundTrip(loopbackRequest(t.Context(), t, ""))
		if err != nil {
			t.Fatal(err)
		}
		if err := resp.Body.Close(); err != nil {
			t.Fatal(err)
		}
		waitFor(t, ended)
	})
	t.Run("the caller gives up", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		resp, err := loopbackOf(stream(ended)).RoundTrip(loopbackRequest(ctx, t, ""))
		if err != nil {
			t.Fatal(err)
		}
		cancel()
		waitFor(t, ended)
		if _, err := io.ReadAll(resp.Body); !errors.Is(err, context.Canceled) {
			t.Errorf("read: %v", err)
		}
	})
	t.Run("the caller gives up before the headers", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		_, err := loopbackOf(func(_ http.ResponseWriter, r *http.Request) {
			defer close(ended)
			cancel()
			<-r.Context().Done()
		}).RoundTrip(loopbackRequest(ctx, t, ""))
		if !errors.Is(err, context.Canceled) {
			t.Errorf("round trip: %v", err)
		}
		waitFor(t, ended)
	})
	t.Run("the handler aborts midway", func(t *testing.T) {
		resp, err := loopbackOf(func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprint(w, "half")
			panic(http.ErrAbortHandler)
		}).RoundTrip(loopbackRequest(t.Context(), t, ""))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(resp.Body); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("read: %v", err)
		}
	})
	t.Run("the handler aborts at once", func(t *testing.T) {
		_, err := loopbackOf(func(http.ResponseWriter, *http.Request) { panic("broken") }).RoundTrip(loopbackRequest(t.Context(), t, ""))
		if !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("round trip: %v", err)
		}
	})
}

func waitFor(t *testing.T, ended <-chan struct{}) {
	t.Helper()
	select {
	case <-ended:
	case <-time.After(5 * time.Second):
		t.Fatal("the handler did not end")
	}
}
