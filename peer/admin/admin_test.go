package admin

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func serve(t *testing.T, calls Calls) (*Client, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "peer.sock")
	listener, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- Run(ctx, listener, calls, slog.New(slog.DiscardHandler)) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return NewClient(path), path
}

// TestTheLastLineGetsOut: a call that ends the peer is answered before the process may go.
func TestTheLastLineGetsOut(t *testing.T) {
	path := filepath.Join(t.TempDir(), "peer.sock")
	listener, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, end := context.WithCancel(t.Context())
	defer end()
	served := make(chan struct{})
	left := make(chan error, 1)
	go func() {
		defer close(served)
		left <- Run(ctx, listener, Calls{Leave: func(_ context.Context, progress func(string)) error {
			end()
			select {
			case <-served:
				t.Error("the socket's loop has ended before the call")
			case <-time.After(50 * time.Millisecond):
			}
			progress("left the cluster")
			return nil
		}}, slog.New(slog.DiscardHandler))
	}()
	var lines []string
	if err := NewClient(path).Leave(t.Context(), func(line string) { lines = append(lines, line) }); err != nil || !slices.Equal(lines, []string{"left the cluster"}) {
		t.Errorf("%v, lines %q", err, lines)
	}
	if err := <-left; err != nil {
		t.Error(err)
	}
}

func TestSocketIsPrivateAndSingle(t *testing.T) {
	_, path := serve(t, Calls{})
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if _, err := Listen(path); !errors.Is(err, ErrRunning) {
		t.Errorf("a second peer on the folder: %v", err)
	}
}

func TestACrashedPeersSocketIsReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "peer.sock")
	crashed, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	crashed.SetUnlinkOnClose(false)
	_ = crashed.Close()
	for range 2 { // and after an orderly end
		listener, err := Listen(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := listener.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestNotRunning(t *testing.T) {
	_, err := NewClient(filepath.Join(t.TempDir(), "peer.sock")).Status(t.Context())
	if !errors.Is(err, ErrNotRunning) || !strings.Contains(err.Error(), "--data-dir") {
		t.Errorf("%v", err)
	}
}

func TestCallsNobodyServes(t *testing.T) {
	client, _ := serve(t, Calls{})
	_, statusErr := client.Status(t.Context())
	_, imagesErr := client.Images(t.Context())
	_, importErr := client.ImportImage(t.Context(), strings.NewReader("x"), func(string) {})
	for _, err := range []error{statusErr, imagesErr, importErr, client.Leave(t.Context(), func(string) {})} {
		if err == nil || !strings.Contains(err.Error(), "not available") {
			t.Errorf("%v", err)
		}
	}
}

// The tarball is larger than any buffer between, so progress has to come while
// it is still being sent.
func TestImportStreamsBothWays(t *testing.T) {
	tarball := bytes.Repeat([]byte("layer"), 1<<20)
	client, _ := serve(t, Calls{ImportImage: func(_ context.Context, body io.Reader, progress func(string)) ([]Image, error) {
		var got int64
		for {
			n, err := io.CopyN(io.Discard, body, 1<<20)
			got += n
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return nil, err
			}
			progress("a megabyte more")
		}
		return []Image{{Name: "demo", Size: got}}, nil
	}})
	var lines []string
	images, err := client.ImportImage(t.Context(), bytes.NewReader(tarball), func(line string) { lines = append(lines, line) })
	if err != nil || len(images) != 1 || images[0].Size != int64(len(tarball)) || len(lines) != 5 {
		t.Errorf("%v, %v, %d lines", err, images, len(lines))
	}
}

func TestLeaveReportsStepsAndErrors(t *testing.T) {
	fail := errors.New("shard 3 cannot spare this voter")
	client, _ := serve(t, Calls{Leave: func(_ context.Context, progress func(string)) error {
		progress("one")
		progress("two")
		return fail
	}})
	var lines []string
	err := client.Leave(t.Context(), func(line string) { lines = append(lines, line) })
	if err == nil || err.Error() != fail.Error() || !slices.Equal(lines, []string{"one", "two"}) {
		t.Errorf("%v, %v", err, lines)
	}
}

// A caller that goes away ends its call.
func TestCancelledCall(t *testing.T) {
	begun, ended := make(chan struct{}), make(chan struct{})
	client, _ := serve(t, Calls{Status: func(ctx context.Context) (*Status, error) {
		close(begun)
		<-ctx.Done()
		close(ended)
		return nil, ctx.Err()
	}})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-begun
		cancel()
	}()
	if _, err := client.Status(ctx); err == nil {
		t.Error("answered")
	}
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Error("the call goes on")
	}
}
