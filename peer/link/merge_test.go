package link

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"
)

// mergedPair is a merged connection over TCP and the other end of it.
func mergedPair(t *testing.T) (*mergedConn, net.Conn) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	client, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	server, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	merged := newMergedConn(server)
	merged.merge()
	t.Cleanup(func() { _, _ = merged.Close(), client.Close() })
	return merged, client
}

// What is written before Close arrives whole and in order, also when the reader is slow
// and although crypto/tls sets a deadline in the past before it closes.
func TestMergedWritesArriveBeforeTheEnd(t *testing.T) {
	merged, client := mergedPair(t)
	var want bytes.Buffer
	written := make(chan error, 1)
	for i := range 5000 {
		want.Write(bytes.Repeat([]byte{byte(i)}, 100+i%100))
	}
	go func() {
		for rest := want.Bytes(); len(rest) > 0; {
			n := min(len(rest), 100)
			if _, err := merged.Write(rest[:n]); err != nil {
				written <- err
				return
			}
			rest = rest[n:]
		}
		written <- errors.Join(merged.SetWriteDeadline(time.Now()), merged.Close())
	}()
	got, err := io.ReadAll(client)
	if err != nil || !bytes.Equal(got, want.Bytes()) {
		t.Errorf("%d bytes of %d arrived, %v", len(got), want.Len(), err)
	}
	if err := <-written; err != nil {
		t.Error(err)
	}
}

// A reader that does not read holds up its writer, in bounded memory, until a deadline.
func TestMergedWritesWaitForTheReader(t *testing.T) {
	merged, _ := mergedPair(t)
	if err := merged.SetWriteDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	chunk := make([]byte, 64<<10)
	for n := 0; ; n += len(chunk) {
		_, err := merged.Write(chunk)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if err != nil || n > 1<<30 {
			t.Fatalf("after %d bytes: %v", n, err)
		}
	}
	merged.mu.Lock()
	defer merged.mu.Unlock()
	if len(merged.pending) > mergedBytes+len(chunk) {
		t.Errorf("%d bytes are held back", len(merged.pending))
	}
}

// A broken connection is told to its writer, and Close does not wait for its reader.
func TestMergedWritesEnd(t *testing.T) {
	merged, client := mergedPair(t)
	_ = client.Close()
	deadline := time.Now().Add(10 * time.Second)
	for {
		if _, err := merged.Write([]byte("x")); err != nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("no error of a connection that the other side has closed")
		}
	}
	broken := newMergedConn(halfBroken{merged.Conn, make(chan struct{})})
	broken.merge()
	if _, err := broken.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := broken.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the reader of a connection that takes nothing more ends with: %v", err)
	}
	stuck, _ := mergedPair(t)
	_ = stuck.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
	for {
		if _, err := stuck.Write(make([]byte, 64<<10)); err != nil {
			break
		}
	}
	begun := time.Now()
	_ = stuck.Close()
	if took := time.Since(begun); took > 5*closeTimeout {
		t.Errorf("Close waited %v for a reader that does not read", took)
	}
}

// halfBroken takes nothing, and its reader waits until it is closed.
type halfBroken struct {
	net.Conn
	closed chan struct{}
}

func (halfBroken) Write([]byte) (int, error) { return 0, errors.New("broken") }

func (c halfBroken) Read([]byte) (int, error) {
	<-c.closed
	return 0, net.ErrClosed
}

func (c halfBroken) Close() error {
	close(c.closed)
	return nil
}
