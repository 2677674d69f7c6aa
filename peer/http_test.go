package peer

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"testing"
	"time"
)

// TestServeHTTPAnswersWhatWasAsked ends a server while a write and a watch are under way: the write is answered, the watch ends, and only
// then does the server return.
func TestServeHTTPAnswersWhatWasAsked(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, end := context.WithCancel(t.Context())
	defer end()
	begun, finish := make(chan string, 2), make(chan struct{})
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		begun <- r.URL.Path
		if r.URL.Query().Get("watch") != "" {
			<-r.Context().Done()
			return
		}
		select {
		case <-finish:
			_, _ = io.WriteString(w, "written")
		case <-r.Context().Done():
		}
	})
	ended := make(chan error, 1)
	go func() { ended <- serveHTTP(ctx, listener, handler, slog.New(slog.DiscardHandler)) }()

	answers := map[string]chan string{"/write": make(chan string, 1), "/watch?watch=true": make(chan string, 1)}
	for path, answer := range answers {
		go func() {
			response, err := http.Post("http://"+listener.Addr().String()+path, "text/plain", nil)
			if err != nil {
				answer <- err.Error()
				return
			}
			defer response.Body.Close()
			body, _ := io.ReadAll(response.Body)
			answer <- string(body)
		}()
	}
	<-begun
	<-begun
	end()
	if got := <-answers["/watch?watch=true"]; got != "" {
		t.Errorf("the watch brought %q", got)
	}
	select {
	case err := <-ended:
		t.Errorf("the server has ended with a request under way: %v", err)
	case got := <-answers["/write"]:
		t.Errorf("the write was answered with %q", got)
	case <-time.After(50 * time.Millisecond):
	}
	close(finish)
	if got := <-answers["/write"]; got != "written" {
		t.Errorf("the write was answered with %q", got)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestStreamsAreTold(t *testing.T) {
	for target, want := range map[string]bool{
		"/api/v1/pods": false, "/api/v1/pods?watch=1": true, "/api/v1/pods?watch=true": true, "/api/v1/pods?watch=false": false,
		"/api/v1/namespaces/a/pods/b/log?follow=true": true, "/api/v1/namespaces/a/pods/b/log": false, "/api/v1/pods?watch": true,
	} {
		request, err := http.NewRequest(http.MethodGet, target, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := isStream(request); got != want {
			t.Errorf("%s: %v", target, got)
		}
	}
}
